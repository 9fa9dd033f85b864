#!/bin/sh
# A slip of the command line must not destroy a file: sources and models are not written over.
# Usage: BUILD=build tests/test_unseen.sh
set -u
bin=${BUILD:-build}/bin
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0

check() { # NAME: the status of the command before
    if [ "$2" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $1"; fi
}

# NAME FILE COMMAND...: fails with status 1 and one line, FILE stays as it is, nothing is left over
refused() {
    name=$1 file=$2
    shift 2
    before=$(cksum <"$file") listing=$(ls "$(dirname "$file")")
    "$@" >/dev/null 2>"$tmp/err"
    status=$?
    [ $status -eq 1 ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && [ "$(cksum <"$file")" = "$before" ] &&
        [ "$(ls "$(dirname "$file")")" = "$listing" ]
    check "$name" $?
}

cp -r tests/data/tiny-sdxl "$tmp/model" && chmod -R u+w "$tmp/model" || exit 1
weights=$tmp/model/unet/diffusion_pytorch_model.safetensors
[ -f "$weights" ]
check "the model's weights" $?
refused "convert onto its own source" "$weights" "$bin/diffpak-convert" "$tmp/model" -o "$weights" -q
tar -cf "$tmp/model.tar" -C "$tmp" model
refused "convert onto its archive" "$tmp/model.tar" \
    "$bin/diffpak-convert" "$tmp/model.tar" -o "$tmp/model.tar" -q

"$bin/diffpak-convert" "$tmp/model" -o "$tmp/a.dpk" -q
check "convert" $?
: >"$tmp/empty" && "$bin/diffpak-convert" "$tmp/model" -o "$tmp/empty" -q
check "convert onto an empty file" $?
cmp -s "$tmp/a.dpk" "$tmp/empty"
check "the same file" $?
"$bin/diffpak-convert" "$tmp/model" -o "$tmp/empty" -q
check "convert onto a packed model without the ending" $?
echo damaged >"$tmp/b.dpk" && "$bin/diffpak-convert" "$tmp/model" -o "$tmp/b.dpk" -q
check "convert onto a damaged .dpk file" $?

refused "a picture onto the model" "$tmp/a.dpk" \
    "$bin/diffpak" generate "$tmp/a.dpk" -p x -o "$tmp/a.dpk" --steps 1 --width 16 --height 16
refused "an array onto a model" "$tmp/a.dpk" \
    "$bin/diffpak" noise --seed 1 --shape 1,4,2,2 -o "$tmp/a.dpk"

echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
[ $failed -eq 0 ]
