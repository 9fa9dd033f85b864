#!/bin/sh
# Real-size models without a download: convert the real configs with drawn weights, plan memory, run one
# step and one decode. Prints times, GFLOP/s and peak memory; PERF.md keeps the figures.
# Usage: tests/bench_real.sh [MODEL...]   (folders of tests/data/configs; default sdxl-base-1.0)
# Needs about 8 GB of disk under $BUILD for SDXL, and some minutes.
set -eu
build=${BUILD:-build}
bin=$build/bin
threads=${THREADS:-$(nproc)}
dir=$build/real
mkdir -p "$dir"
[ $# -gt 0 ] || set -- sdxl-base-1.0

# peak COMMAND...: run it, then its peak resident memory and wall time
peak() {
    if [ -x /usr/bin/time ]; then /usr/bin/time -f '    peak resident %M KiB, %e s, %U s user' "$@"
    else "$@"; fi
}

for name in "$@"; do
    model=$dir/$name.dpk
    size=1024
    [ "$name" = sd-v1-5 ] && size=512
    echo "== $name"
    peak "$bin/diffpak-convert" "tests/data/configs/$name" --random-weights 1 -o "$model"
    "$bin/diffpak" inspect "$model" --width $size --height $size
    for program in step decode; do
        peak "$bin/diffpak" bench "$model" --program $program --width $size --height $size \
            --batch 1 --repeat 1 --threads "$threads" --profile
    done
done
