#!/bin/sh
# The runtime's program where the system says no: at every place where it takes memory or touches a file, once. It must do
# without and write the same files, or fail with one line; a file that is there is whole. (libarchive itself ends a program
# without memory, at the worst by a fault of its own: bundle and unbundle are tried with files alone.)
set -u
build=${BUILD:-build}
bin=$build/bin
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-faults.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }
model=$tmp/model.dpk
"$bin/diffpak-convert" models/shapes-xl -q -o "$model" || bad "convert"

# run KIND POINT ARGUMENTS...: in an empty folder, what is written there is beside it in $tmp/NAME
run() {
    kind=$1 at=$2; shift 2
    rm -rf "$tmp/got"; mkdir "$tmp/got"
    (cd "$tmp/got" && timeout 60 env FAULT_KIND="$kind" FAULT_AT="$at" FAULT_POINTS="$tmp/points" LD_PRELOAD="$shim" \
        "$program" "$@") >"$tmp/out" 2>"$tmp/err"
}

# Of a run that failed, the manifest lists what it painted.
take_away() {
    list=folder/manifest.jsonl
    [ -e "$tmp/got/$list" ] && ! grep -qvxFf "$tmp/want/$list" "$tmp/got/$list" && rm "$tmp/got/$list"
}

# every KIND PROGRAM ARGUMENTS...
every() {
    kind=$1 program=$full/$2; shift 2
    name="$(basename "$program") $1, $kind" wrong=0 refused=0
    run "$kind" 0 "$@" || { bad "$name: $(cat "$tmp/err")"; return; }
    rm -rf "$tmp/want"; mv "$tmp/got" "$tmp/want"; cp "$tmp/points" "$tmp/places"
    for at in $(cat "$tmp/places"); do
        run "$kind" "$at" "$@"; got=$?
        [ $got -eq 1 ] && refused=$((refused + 1)) && take_away
        diff -r "$tmp/want" "$tmp/got" >"$tmp/diff" 2>&1
        [ $got -eq 1 ] && sed -i '/^Only in .*\/want/d' "$tmp/diff"
        if [ $got -gt 1 ] || [ -s "$tmp/diff" ] || [ "$(grep -c . "$tmp/err")" -ne $got ]; then
            wrong=$((wrong + 1))
            bad "$name, point $at: exit status $got: $(head -n 3 "$tmp/err" "$tmp/diff")"
        fi
    done
    n=$(wc -l <"$tmp/places")
    [ $wrong -eq 0 ] && [ $refused -gt $((n / 2)) ] && ok "$name: $n places, $refused refused" ||
        bad "$name: $n places, $refused refused, $wrong wrong"
}

full=$(cd "$bin" && pwd) shim=$(cd "$build/tests" && pwd)/fault_preload.so
printf 'a red circle\n{"prompt": "a blue star", "seed": 3}\n' >"$tmp/prompts"
echo "a licence" >"$tmp/LICENSE"
small="--steps 1 --width 24 --height 16 --threads 2 -q"
"$bin/diffpak" generate "$model" -p a $small -o "$tmp/init.png" || bad "generate"
"$bin/diffpak" bundle "$model" "$tmp/LICENSE" -o "$tmp/a.tar.zst" 2>"$tmp/err" || bad "bundle: $(cat "$tmp/err")"
for kind in io memory; do
    every $kind diffpak generate "$model" -p "a red circle" --init "$tmp/init.png" --strength 1 $small -o a.png --trace trace
    every $kind diffpak generate "$model" --prompts "$tmp/prompts" $small -o folder
    every $kind diffpak noise --seed 1 --shape 1,4,8,8 -o a.npy
done
every io diffpak bundle "$model" "$tmp/LICENSE" -o a.tar.zst
every io diffpak unbundle "$tmp/a.tar.zst" -o folder

if [ $failed -gt 0 ]; then echo "[  FAILED  ] $failed test(s)."; fi
echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ]
