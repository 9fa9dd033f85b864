# bash completion for diffpak, diffpak-convert and diffpak-quantize. Options are those that --help names.
_diffpak_options() {
    "$1" --help 2>/dev/null | grep -oE -- '(^|[ [(])--?[a-z][a-z-]*' | tr -d ' [(' | sort -u
}

_diffpak() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} program=${COMP_WORDS[0]} words=
    COMPREPLY=()
    case $before in
    --scheduler) words='euler euler-a ddim pndm dpm++2m dpm++2m-karras dpm++2m-sde unipc lcm heun lms' ;;
    --long-prompt) words='truncate chunks' ;;
    --rng | --backend) words='cpu cuda' ;;
    --dtype) words='bf16 f16 f32' ;;
    --scheme) words='int8-dynamic int8-weight int4-weight int4-weight:32 int4-weight:64 int4-weight:128' ;;
    --convention) words='diffusion-fast torchao' ;;
    --filter) words='diffusion-fast all none auto' ;;
    --program) words='text setup step decode encode' ;;
    *)
        if [[ $word == -* ]]; then
            words=$(_diffpak_options "$program")
        elif [[ ${program##*/} == diffpak && $COMP_CWORD -eq 1 ]]; then
            words='generate inspect verify run tokens schedule noise bench bundle unbundle'
        elif [[ ${COMP_WORDS[1]} == run && $COMP_CWORD -eq 3 ]]; then
            words='text denoise decode encode'
        fi
        ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ ${#COMPREPLY[@]} -eq 0 ]] || return
    local IFS=$'\n' # names of files may have spaces
    COMPREPLY=($(compgen -f -- "$word"))
}
complete -o filenames -F _diffpak diffpak diffpak-convert diffpak-quantize
