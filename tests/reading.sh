#!/bin/sh
# What the runtime reads, by the program: files of tests/versions and a broken one, through every command that needs no library.
# $ISAS: instruction sets. $RUN goes before the program (valgrind).
set -u
diffpak=${BUILD:-build}/bin/diffpak
temp=$(mktemp -d) || exit 1
trap 'rm -rf "$temp"' EXIT
passed=0 failed=0
expect() { # STATUS COMMAND...
    want=$1; shift
    ${RUN-} "$diffpak" "$@" >"$temp/out" 2>"$temp/err"
    status=$?
    if [ $status = "$want" ] && ! grep -q -e '^==[0-9]*==' -e 'Sanitizer' "$temp/err"; then passed=$((passed + 1)); return; fi
    failed=$((failed + 1))
    echo "ERROR: diffpak $*: exit status $status, want $want"
    head -n 40 "$temp/err"
}
for file in tests/versions/*.dpk; do
    expect 0 verify "$file"
    expect 0 inspect "$file" --tensors
    expect 0 tokens "$file" "a red circle, \"two\" Stars!"
    expect 0 schedule "$file" --steps 5
    for isa in ${ISAS-ref avx2}; do
        [ $isa = ref ] || grep -q avx2 /proc/cpuinfo || continue
        DPK_ISA=$isa expect 0 generate "$file" -p "a red circle" --steps 2 --width 64 --height 48 --no-binning --threads 2 \
            -o "$temp/a.png" -q
    done
    expect 0 generate "$file" -p "blue" --steps 1 --width 64 --height 64 --no-binning --no-mmap --memory-limit 64M -o "$temp/a.png" -q
done
head -c 5000 "$file" >"$temp/cut.dpk"
expect 1 verify "$temp/cut.dpk"
expect 1 verify tests/versions/README.md
expect 1 verify "$temp"
expect 0 noise --seed 1 --shape 1,4,8,8 -o "$temp/noise.npy"
[ $failed = 0 ] || echo "[  FAILED  ] $failed test(s)"
echo "[  PASSED  ] $passed test(s)."
[ $failed = 0 ]
