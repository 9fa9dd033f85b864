#!/bin/sh
# The three programs from the outside: what a user types, right and wrong.
# Every failure must be one line on standard error, exit status 1 (2 for wrong usage), and leave no file.
set -u
build=${BUILD:-build}
bin=$build/bin
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-cli.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }

# fails STATUS PATTERN COMMAND...: exit status, one line, text
fails() {
    want=$1 pattern=$2; shift 2
    "$@" >"$tmp/out" 2>"$tmp/err"; got=$?
    lines=$(wc -l <"$tmp/err")
    if [ "$got" -ne "$want" ]; then bad "$*: exit status $got, want $want: $(head -n 2 "$tmp/err")"
    elif [ "$want" -eq 1 ] && [ "$lines" -ne 1 ]; then bad "$*: $lines lines of error: $(cat "$tmp/err")"
    elif ! grep -qiE -- "$pattern" "$tmp/err"; then bad "$*: no '$pattern' in: $(cat "$tmp/err")"
    else ok "$(head -n 1 "$tmp/err" | cut -c1-150)"; fi
}
works() {
    if "$@" >"$tmp/out" 2>"$tmp/err"; then ok "$(echo "$*" | cut -c1-120)"
    else bad "$*: exit status $?: $(head -n 3 "$tmp/err")"; fi
}
absent() { if [ -e "$1" ] || ls "$1".* >/dev/null 2>&1; then bad "$1 was left behind"; else ok "no $(basename "$1") left"; fi; }

model=$tmp/model.dpk
works "$bin/diffpak-convert" models/shapes-xl -o "$model"
works "$bin/diffpak" verify "$model"
works "$bin/diffpak" inspect "$model" --width 128 --height 128 --batch 2
works "$bin/diffpak" inspect "$model" --width 256 --height 192 --memory-limit 1K
least=$(sed -n 's/.* is too low; the least that can be met is \([0-9]*\) bytes/\1/p' "$tmp/out")
[ -n "$least" ] && ok "inspect says the least limit: $least" || bad "inspect says no least limit"
works "$bin/diffpak" generate "$model" -p "a" -o "$tmp/free.png" --steps 1 --width 256 --height 192
works "$bin/diffpak" generate "$model" -p "a" -o "$tmp/tight.png" --steps 1 --width 256 --height 192 --memory-limit "$least"
cmp -s "$tmp/free.png" "$tmp/tight.png" && ok "same picture in the least memory" || bad "another picture in the least memory"
works "$bin/diffpak" inspect "$model" --json --tensors
python3 -m json.tool "$tmp/out" >/dev/null && ok "inspect --json is JSON" || bad "inspect --json"
works "$bin/diffpak" generate "$model" -p "a red circle on a white background" -o "$tmp/a.png" --steps 2 --seed 3
works "$bin/diffpak" generate "$model" -p "a red circle" -p "a blue star" --batch 1 -n "" -o "$tmp/b.png" --steps 1 --width 96 --height 64 --threads 1 --trace "$tmp/trace"
[ -s "$tmp/b_0.png" ] && [ -s "$tmp/b_1.png" ] && ok "two prompts, two pictures" || bad "b_0.png, b_1.png are missing"
[ -s "$tmp/trace/latent_001.npy" ] && [ -s "$tmp/trace/context.npy" ] && [ -s "$tmp/trace/image.npy" ] && ok "trace is there" || bad "trace: $(ls "$tmp/trace")"
works "$bin/diffpak" generate "$model" -p "a red circle on a white background" -o "$tmp/c.png" --steps 2 --seed 3
cmp -s "$tmp/a.png" "$tmp/c.png" && ok "the same run gives the same file" || bad "two equal runs differ"
works "$bin/diffpak" bench "$model" --program step --width 64 --height 64 --repeat 1 --json
python3 -m json.tool "$tmp/out" >/dev/null && ok "bench --json is JSON" || bad "bench --json"
works "$bin/diffpak" bench "$model" --program step --width 64 --height 64 --repeat 2 --threads 2 --profile --json --chrome-trace "$tmp/trace.json"
python3 tests/check_bench.py "$tmp/out" "$tmp/trace.json" 2 && ok "profile and timeline agree" || bad "profile, timeline"
emulated=${bin%/bin}/lib/libdiffpak-cuda-emu.so
if [ -f "$emulated" ]; then
    export DPK_CUDA_PLUGIN="$emulated"
    works "$bin/diffpak" bench "$model" --backend cuda --program step --width 32 --height 32 --repeat 2 --profile --json --chrome-trace "$tmp/trace.json"
    python3 tests/check_bench.py "$tmp/out" "$tmp/trace.json" 0 && ok "profile and timeline of a device agree" || bad "profile, timeline of a device"
    unset DPK_CUDA_PLUGIN
fi
works "$bin/diffpak" bench "$model" --width 64 --height 64 --repeat 1 --threads 1 --profile
for line in text setup step decode "by operator" "by kernel" "slowest operators"; do
    grep -q "^ *$line" "$tmp/out" && ok "bench --profile: $line" || bad "bench --profile: no line $line"
done
fails 1 "cannot write there" "$bin/diffpak" bench "$model" --program setup --repeat 1 --chrome-trace "$tmp/none/trace.json"
fails 1 "packed model" "$bin/diffpak" bench "$model" --program setup --repeat 1 --chrome-trace "$model"
works "$bin/diffpak" verify "$model"

# what the pictures say about themselves
python3 - "$tmp/a.png" <<'E2' && ok "text chunks of the picture" || bad "text chunks of the picture"
import struct, sys
data = open(sys.argv[1], "rb").read()
keys, at = set(), 8
while at < len(data):
    n, kind = struct.unpack(">I4s", data[at:at + 8])
    if kind in (b"tEXt", b"iTXt"):
        keys.add(data[at + 8:at + 8 + n].split(b"\0")[0].decode())
    at += 12 + n
want = {"prompt", "seed", "steps", "guidance", "scheduler", "model"}
sys.exit(0 if want <= keys else print("missing", want - keys) or 1)
E2

# from a picture; prompts that are long or have weights; memory
works "$bin/diffpak" generate "$model" -p "a blue star" -o "$tmp/i.png" --init "$tmp/a.png" --strength 0.7 --steps 3
works "$bin/diffpak" generate "$model" -p "a blue star" -o "$tmp/i.png" --init "$tmp/a.png" --mask "$tmp/c.png" --strength 1 --steps 2 --width 96 --height 64
long="a red circle, a blue star, a green heart, a pink ring, a white cross, a black square"
"$bin/diffpak" generate "$model" -p "$long, $long, $long, $long" -o "$tmp/l.png" --steps 1 2>"$tmp/err"
grep -q "the prompt has .* ignored" "$tmp/err" && ok "$(cat "$tmp/err")" || bad "a long prompt: $(cat "$tmp/err")"
"$bin/diffpak" generate "$model" -p "$long, $long, $long, $long" -o "$tmp/m.png" --steps 1 --long-prompt chunks 2>"$tmp/err"
[ ! -s "$tmp/err" ] && ! cmp -s "$tmp/l.png" "$tmp/m.png" && ok "a long prompt in chunks" || bad "a long prompt in chunks: $(cat "$tmp/err")"
works "$bin/diffpak" generate "$model" -p "a (red:1.4) circle" -o "$tmp/w.png" --steps 1 --prompt-weights --memory-limit 64M
fails 1 "the mask is 96x64, the picture to start from is 128x128" "$bin/diffpak" generate "$model" -p "a" -o "$tmp/x.png" --init "$tmp/a.png" --mask "$tmp/i.png"
fails 1 "nowhere.png" "$bin/diffpak" generate "$model" -p "a" -o "$tmp/x.png" --init "$tmp/nowhere.png"
fails 1 "strength" "$bin/diffpak" generate "$model" -p "a" -o "$tmp/x.png" --init "$tmp/a.png" --strength 2
fails 1 "needs .* bytes, the limit is 1048576" "$bin/diffpak" generate "$model" -p "a" -o "$tmp/x.png" --memory-limit 1M
fails 2 "without --init" "$bin/diffpak" generate "$model" -p "a" -o "$tmp/x.png" --mask "$tmp/a.png"
fails 2 "truncate or chunks" "$bin/diffpak" generate "$model" -p "a" -o "$tmp/x.png" --long-prompt some
fails 2 "want bytes" "$bin/diffpak" generate "$model" -p "a" -o "$tmp/x.png" --memory-limit 5Q

# numbers against the goldens
works "$bin/diffpak" schedule "$model" --steps 30 --json
python3 - "$tmp/out" <<'E2' && ok "30 Euler steps" || bad "30 Euler steps"
import json, sys
s = json.load(open(sys.argv[1]))
assert s["timesteps"][:2] == [958, 925] and s["timesteps"][-1] == 1 and len(s["timesteps"]) == 30
want = {0: 11.47685, 1: 9.543585, 29: 0.04131448, 30: 0.0}
assert all(abs(s["sigmas"][i] - v) <= 1e-6 * max(1, v) for i, v in want.items()), s["sigmas"]
assert abs(s["init_noise_sigma"] - 11.520333) < 1e-5
E2
works "$bin/diffpak" noise --seed 0 --shape 1,4,128,128 -o "$tmp/n.npy"
python3 - "$tmp/n.npy" <<'E2' && ok "noise of seed 0" || bad "noise of seed 0"
import struct, sys
data = open(sys.argv[1], "rb").read()
values = struct.unpack("<65536f", data[-65536 * 4:])
want = [-1.1258398, -1.1523602, -0.2505786, -0.4338788, 0.8487104, 0.6920092, -0.3160128, -2.1152194]
assert all(abs(a - b) < 5e-7 for a, b in zip(values, want)) and abs(values[-1] + 1.4578041) < 5e-7
E2
works "$bin/diffpak" tokens "$model" "a large red circle on a blue background" --json
python3 -m json.tool "$tmp/out" >/dev/null && ok "tokens --json is JSON" || bad "tokens --json"

# wrong usage
fails 2 "unknown option.*--bogus|--bogus" "$bin/diffpak" generate "$model" --bogus
fails 2 "bogus" "$bin/diffpak" bogus
fails 2 "bogus" "$bin/diffpak-convert" models/shapes-xl -o "$tmp/x.dpk" --bogus
fails 2 "dtype" "$bin/diffpak-convert" models/shapes-xl -o "$tmp/x.dpk" --dtype f8
fails 2 "." "$bin/diffpak-convert"
fails 2 "." "$bin/diffpak"

# checkpoints in one file, LoRA
single=tests/data/single/tiny-sd15.safetensors
lora=tests/data/lora/sd15_old/pytorch_lora_weights.safetensors
works "$bin/diffpak-convert" "$single" --config tests/data/tiny-sd15 --lora "$lora:0.5" --lora="$lora" -o "$tmp/single.dpk"
works "$bin/diffpak" verify "$tmp/single.dpk"
rm -f "$tmp/single.dpk"
fails 1 "vocab.json is missing.*--config" "$bin/diffpak-convert" "$single" -o "$tmp/single.dpk"
fails 1 "running averages" "$bin/diffpak-convert" "$single" --config tests/data/tiny-sd15 --ema -o "$tmp/single.dpk"
fails 1 "made for another base model" "$bin/diffpak-convert" tests/data/tiny-sdxl --lora "$lora" --lora-partial -o "$tmp/single.dpk"
fails 1 "match no layer.*--lora-partial" "$bin/diffpak-convert" tests/data/tiny-ssd1b --lora tests/data/lora/sdxl_kohya/sdxl_kohya.safetensors -o "$tmp/single.dpk"
works "$bin/diffpak-convert" tests/data/tiny-ssd1b --lora tests/data/lora/sdxl_kohya/sdxl_kohya.safetensors --lora-partial -o "$tmp/partial.dpk"
fails 2 "want FILE or FILE:SCALE" "$bin/diffpak-convert" tests/data/tiny-sd15 --lora "$lora:1e999" -o "$tmp/single.dpk"
absent "$tmp/single.dpk"

# bad sources
mkdir "$tmp/empty"
fails 1 "model_index.json" "$bin/diffpak-convert" "$tmp/empty" -o "$tmp/x.dpk"
fails 1 "nowhere" "$bin/diffpak-convert" "$tmp/nowhere" -o "$tmp/x.dpk"
cp -r models/shapes-xl "$tmp/broken" && rm "$tmp/broken/unet/diffusion_pytorch_model.safetensors"
fails 1 "unet" "$bin/diffpak-convert" "$tmp/broken" -o "$tmp/x.dpk"
rm -rf "$tmp/broken/unet"
fails 1 "unet" "$bin/diffpak-convert" "$tmp/broken" -o "$tmp/x.dpk"
rm -rf "$tmp/broken" && cp -r models/shapes-xl "$tmp/broken"
sed -i 's/"UNet2DConditionModel"/"UNet3DConditionModel"/' "$tmp/broken/model_index.json" "$tmp/broken/unet/config.json"
fails 1 "UNet3DConditionModel.*UNet2DConditionModel" "$bin/diffpak-convert" "$tmp/broken" -o "$tmp/x.dpk"
cp models/shapes-xl/model_index.json "$tmp/broken/" && cp models/shapes-xl/unet/config.json "$tmp/broken/unet/"
sed -i 's/StableDiffusionXLPipeline/FluxPipeline/' "$tmp/broken/model_index.json"
fails 1 "FluxPipeline.*StableDiffusionXLPipeline" "$bin/diffpak-convert" "$tmp/broken" -o "$tmp/x.dpk"
cp models/shapes-xl/model_index.json "$tmp/broken/"
# one weight to NaN: the last two bytes of the last tensor of an fp16 file
python3 - "$tmp/broken/unet/diffusion_pytorch_model.safetensors" <<'E2'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(-2, 2)
    f.write(b"\x00\x7e")
E2
fails 1 "nan" "$bin/diffpak-convert" "$tmp/broken" -o "$tmp/x.dpk"
absent "$tmp/x.dpk"

# bad requests
fails 1 "UTF-8" "$bin/diffpak" generate "$model" -p "$(printf 'a \377 circle')" -o "$tmp/x.png"
fails 1 "width.*100|100.*width" "$bin/diffpak" generate "$model" -p "a circle" --width 100 -o "$tmp/x.png"
fails 1 "scheduler.*warp|warp" "$bin/diffpak" generate "$model" -p "a circle" --scheduler warp -o "$tmp/x.png"
fails 1 "no/such" "$bin/diffpak" generate "$model" -p "a circle" --steps 1 -o "$tmp/no/such/x.png"
fails 1 "no-model" "$bin/diffpak" generate "$tmp/no-model.dpk" -p "a circle" -o "$tmp/x.png"
fails 1 "packed already" "$bin/diffpak-convert" "$model" -o "$tmp/x.dpk"
# an open file by its name: written as it is, behind what is there
echo before >"$tmp/there"
"$bin/diffpak" generate "$model" -p "a circle" --steps 1 --width 64 --height 64 -q -o /proc/self/fd/1 >>"$tmp/there" 2>"$tmp/err" &&
    [ "$(tail -c +9 "$tmp/there" | head -c 3)" = PNG ] && ok "a picture behind what is there" || bad "/proc/self/fd/1: $(cat "$tmp/err")"
# known before the work: 100000 steps take minutes
early() { fails "$1" "$2" timeout 20 "$bin/diffpak" generate "$model" -p "a circle" --steps 100000 "$3" "$4"; }
early 1 "is a folder" -o "$tmp"
early 1 "not the name of a file" -o ""
early 1 "name of 240 bytes" -o "$tmp/$(printf '%240s' | tr ' ' n)"
early 1 "is a packed model" -o "$model"
early 2 "want a name in .png" -o "$tmp/x.JPG"
early 2 "want a name in .png" -o -
fails 1 "cannot write there" timeout 20 "$bin/diffpak" bench "$model" --repeat 100000 --chrome-trace "$tmp/no/such/t.json"
fails 2 "strength without --init" "$bin/diffpak" generate "$model" -p "a circle" --strength 0.5 -o "$tmp/x.png"
fails 2 "0 to 2\^64 - 1" "$bin/diffpak" generate "$model" -p "a circle" --seed 18446744073709551616 -o "$tmp/x.png"
fails 2 "1 to 2147483647" "$bin/diffpak" generate "$model" -p "a circle" --steps 3000000000 -o "$tmp/x.png"
fails 2 "component paint: want text" "$bin/diffpak" run "$model" paint --in x=y --out z=w
"$bin/diffpak" noise --seed 1 --shape 1,2,2,4 -o "$tmp/noise.npy"
fails 1 "decode has no output foo: want image" "$bin/diffpak" run "$model" decode --in latent="$tmp/noise.npy" --out foo="$tmp/foo.npy"
fails 1 "cannot write there" "$bin/diffpak" run "$model" decode --in latent="$tmp/noise.npy" --out image="$tmp/no/such/i.npy"
works "$bin/diffpak" generate "$model" -p "a circle" --help -o "$tmp/x.png"
fails 1 "." env DPK_ISA=warp "$bin/diffpak" generate "$model" -p "a circle" --steps 1 -o "$tmp/x.png"
absent "$tmp/x.png"

# a full disk: the file size limit stands in for it
(trap '' XFSZ; ulimit -f 2000; "$bin/diffpak-convert" models/shapes-xl -o "$tmp/full.dpk" >"$tmp/out" 2>"$tmp/err")
[ $? -eq 1 ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && ok "$(cat "$tmp/err" | cut -c1-150)" || bad "full disk: $(cat "$tmp/err")"
absent "$tmp/full.dpk"
tar -C models/shapes-xl -czf "$tmp/packed.tar.gz" .
(ulimit -f 200; "$bin/diffpak-convert" "$tmp/packed.tar.gz" -o "$tmp/full.dpk" >"$tmp/out" 2>"$tmp/err")
[ $? -eq 1 ] && grep -q TMPDIR "$tmp/err" && ok "$(cat "$tmp/err" | cut -c1-150)" || bad "no room to unpack: $(cat "$tmp/err")"

# damaged files
head -c 100000 "$model" >"$tmp/cut.dpk"
fails 1 "cut.dpk" "$bin/diffpak" verify "$tmp/cut.dpk"
cp "$model" "$tmp/flip.dpk"
python3 - "$tmp/flip.dpk" <<'E2'
import os, sys
with open(sys.argv[1], "r+b") as f:
    at = os.path.getsize(sys.argv[1]) - 5000
    f.seek(at)
    b = f.read(1)[0]
    f.seek(at)
    f.write(bytes([b ^ 16]))
E2
fails 1 "tensor|weights" "$bin/diffpak" verify "$tmp/flip.dpk"

echo "[  PASSED  ] $passed test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)"; exit 1; }
