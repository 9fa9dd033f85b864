#!/bin/sh
# Real-size models without a download: convert the real configs with drawn weights, compare their
# parameter counts with the published ones, plan memory, run one step and one decode. Prints times,
# GFLOP/s and peak memory; PERF.md keeps the figures.
# Usage: tests/bench_real.sh [MODEL...]   (folders of tests/data/configs; default all four)
# Needs up to 11 GB of disk under $BUILD for one model at a time (T5-XXL), and some minutes.
# Memory of a step counts the mapped file too: the pages of the weights can be dropped at any time.
set -eu
build=${BUILD:-build}
bin=$build/bin
threads=${THREADS:-$(nproc)}
dir=$build/real
mkdir -p "$dir"
[ $# -gt 0 ] || set -- sdxl-base-1.0 ssd-1b sd-v1-5 pixart-xl-2-1024-ms

# peak COMMAND...: run it, then its peak resident memory and wall time
peak() {
    if [ -x /usr/bin/time ]; then
        /usr/bin/time -f '    peak resident %M KiB, %e s, %U s user' "$@"
    else "$@"; fi
}

# counts MODEL.dpk NAME=PARAMETERS...
counts() {
    file=$1; shift
    for want in "$@"; do
        got=$("$bin/diffpak" inspect "$file" |
            sed -n "s/^source.${want%=*}.parameters *//p")
        [ "$got" = "${want#*=}" ] || { echo "${want%=*}: $got parameters, want ${want#*=}"; exit 1; }
        echo "    ${want%=*}: $got parameters, as published"
    done
}

for name in "$@"; do
    model=$dir/$name.dpk
    size=1024
    echo "== $name"
    peak "$bin/diffpak-convert" "tests/data/configs/$name" --random-weights 1 -o "$model"
    case $name in
    sdxl-base-1.0) counts "$model" unet=2567463684 text_encoder=123060480 \
        text_encoder_2=694659840 vae=83653863 ;;
    ssd-1b) counts "$model" unet=1331334404 text_encoder=123060480 text_encoder_2=694659840 ;;
    sd-v1-5) size=512; counts "$model" unet=859520964 text_encoder=123060480 vae=83653863 ;;
    pixart-xl-2-1024-ms) counts "$model" transformer=611349152 text_encoder=4762310656 ;;
    esac
    "$bin/diffpak" inspect "$model" --width $size --height $size | tail -n 6
    for program in step decode; do
        peak "$bin/diffpak" bench "$model" --program $program --width $size --height $size \
            --batch 1 --repeat 1 --threads "$threads" --profile
    done
    rm -f "$model"
done
