# Sums a linker map by part of the program: code, constants and tables that the program carries.
# An input section is " .text.name 0xADDRESS 0xSIZE FILE", or name and the rest on two lines.
function hex(text, n, i) {
    n = 0
    for (i = 3; i <= length(text); i++) n = n * 16 + index("0123456789abcdef", substr(text, i, 1)) - 1
    return n
}
function group(object) {
    if (object ~ /neonbf16\.o$/) return "kernels, NEON BF16"
    if (object ~ /neon(dot)?\.o$/) return "kernels, NEON"
    if (object ~ /avx512bf16\.o$/) return "kernels, AVX-512 BF16"
    if (object ~ /avx512\.o$/) return "kernels, AVX-512"
    if (object ~ /avx2\.o$/) return "kernels, AVX2"
    if (object ~ /\.ref\.o$|_ref\.o$/) return "kernels, portable C"
    if (object ~ /^op_|^gemm|^kernels|^cpu\.o|^cpu_rows|^isa\.o|^pool|^attention_|^rows8|^winograd\.|^peak/) return "kernels, what all levels share"
    if (object ~ /^(fail|ops|dpk_|map_guard)/) return "reading .dpk files, operator table"
    if (object ~ /^(tokenizer|unicode|prompt)/) return "tokenizers, Unicode"
    if (object ~ /^(sampler|schedule|random|guide)/) return "samplers, random numbers"
    if (object ~ /^(cli|npy|png|json_scan)/) return "command line, PNG and NPY"
    if (object ~ /\(none\)/) return "C library's start-up code"
    return "planner, executor, text to image"
}
# What leaving out parts would save, by names of make WITHOUT=.
function count(object, bytes) {
    if (match(object, /(avx2|avx512|avx512bf16|neon|neondot|neonbf16)\.o$/)) {
        level = substr(object, RSTART, RLENGTH - 2)
        if (level == "neondot") level = "neon"
        left[level] += bytes
        if (level == "avx512bf16") left["avx512"] += bytes
        if (level == "neonbf16") left["neon"] += bytes
    }
    if ((object ~ /(avx2|avx512|neon|neondot)\.o$/ && object != "tile_s8_avx512.o") || object ~ /^winograd_f32\./) left["f32"] += bytes
    if (object ~ /^tile_s8_|^quantize\./) left["int8"] += bytes
    if (object ~ /^random_philox/) left["philox"] += bytes
    if (object ~ /^cli_bundle/) left["archive"] += bytes
    if (object ~ /^png\./) left["png"] += bytes
}
/^Linker script and memory map/ { on = 1 }
!on { next }
/^ \.[a-z_]/ && NF == 1 { name = $1; getline; $0 = " " name " " $0 }
/^ \.(text|rodata|data|bss|eh_frame|init_array|fini_array|gcc_except_table|tdata|tbss)/ && $3 ~ /^0x/ && hex($2) > 0 {
    if ($1 ~ /^\.(bss|tbss)/) next
    object = $4
    if (object ~ /\)$/) { sub(/.*\(/, "", object); sub(/\)$/, "", object) }
    else if (object ~ /obj\//) sub(/.*\//, "", object)
    else object = "(none)"
    bytes = hex($3)
    sum[group(object)] += bytes
    total += bytes
    count(object, bytes)
}
END {
    for (g in sum) printf "%9d  %s\n", sum[g], g | "sort -rn"
    close("sort -rn")
    printf "%9d  headers, symbols, relocations, padding\n", file - total
    printf "%9d  stripped diffpak\n", file
    print "of which make WITHOUT=... leaves out:"
    for (p in left) printf "%9d  %s\n", left[p], p | "sort -rn"
}
