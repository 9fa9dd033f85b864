#!/bin/sh
# The smallest build (make WITHOUT=...): one level, no int8, no Philox, no library; static by musl where musl-gcc is. What is
# there gives what the whole build gives, what is not is refused by name. Then the build for processors with bfloat16 alone.
set -u
build=${BUILD:-build}
make=${MAKE:-make}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-without.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }
works() {
    what=$1; shift
    if "$@" >"$tmp/out" 2>"$tmp/err"; then ok "$what"
    else bad "$what: exit status $?: $(tail -n 3 "$tmp/err" "$tmp/out")"; fi
}
refuses() { # STATUS WORDS COMMAND...
    want=$1 words=$2; shift 2
    "$@" >"$tmp/out" 2>"$tmp/err"
    status=$?
    if [ $status -eq "$want" ] && grep -q "$words" "$tmp/err"; then ok "refused: $words"
    else bad "$*: exit status $status, want $want and \"$words\": $(cat "$tmp/err")"; fi
}

parts="int8 philox avx2 avx512 neon"
if command -v musl-gcc >/dev/null; then
    leaf=$build/leaf/musl/bin/diffpak
    works "make musl" env -u MAKELEVEL "$make" -j2 --no-print-directory BUILD="$build/leaf" OPT=-O1 WITHOUT="$parts" musl
else
    leaf=$build/leaf/bin/diffpak
    works "make WITHOUT" env -u MAKELEVEL "$make" -j2 --no-print-directory BUILD="$build/leaf" OPT=-O1 WITHOUT="png archive $parts" "$leaf"
fi
needed=$(readelf -d "$leaf" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | tr '\n' ' ')
echo "$needed" | grep -q 'png\|archive' && bad "the leaf needs $needed" || ok "the leaf needs ${needed:-no library}"

model=$tmp/model.dpk
works "convert" "$build/bin/diffpak-convert" tests/data/tiny-sdxl -o "$model" -q
works "quantize" "$build/bin/diffpak-quantize" "$model" -o "$tmp/int8.dpk" --scheme int8-dynamic --filter all -q
paint() { program=$1; shift; "$program" generate "$model" -p "a cat" --steps 2 --seed 3 -q --width 152 --height 104 "$@"; }
paint_ref() { (export DPK_ISA=ref; paint "$@"); }
works "the whole build paints" paint_ref "$build/bin/diffpak" -o "$tmp/whole.png" --trace "$tmp/whole"
works "the leaf paints" paint "$leaf" -o "$tmp/leaf.png" --trace "$tmp/leaf"

# The PNG that it writes by itself: sums, compression, pixels, text.
python3 - "$tmp/leaf.png" "$tmp/leaf/image.npy" "$tmp/whole/image.npy" >"$tmp/out" 2>&1 <<'END'
import array, struct, sys, zlib
data = open(sys.argv[1], "rb").read()
assert data[:8] == b"\x89PNG\r\n\x1a\n"
at, chunks = 8, []
while at < len(data):
    n, = struct.unpack_from(">I", data, at)
    kind, body = data[at + 4:at + 8], data[at + 8:at + 8 + n]
    assert struct.unpack_from(">I", data, at + 8 + n)[0] == zlib.crc32(kind + body), kind
    chunks.append((kind, body))
    at += 12 + n
assert chunks[0][0] == b"IHDR" and chunks[-1] == (b"IEND", b"") and at == len(data)
width, height = struct.unpack_from(">II", chunks[0][1])
rows = zlib.decompress(b"".join(b for k, b in chunks if k == b"IDAT"))
assert len(rows) == height * (width * 3 + 1)
def npy(path):
    raw = open(path, "rb").read()
    floats = array.array("f", raw[10 + struct.unpack_from("<H", raw, 8)[0]:])
    assert len(floats) == width * height * 3
    return floats
image, whole = npy(sys.argv[2]), npy(sys.argv[3])
worst = max(abs(a - b) for a, b in zip(image, whole))
assert worst < 1e-3, f"the leaf's picture is off by {worst}"
pixels = [min(max(v / 2 + .5, 0), 1) * 255 for v in image]
for y in range(height):
    row = rows[y * (width * 3 + 1):(y + 1) * (width * 3 + 1)]
    assert row[0] == 0
    for have, want in zip(row[1:], pixels[y * width * 3:(y + 1) * width * 3]):
        assert abs(have - want) <= 0.501, (y, have, want)
assert any(k == b"tEXt" and b == b"prompt\0a cat" for k, b in chunks)
END
[ $? -eq 0 ] && ok "its PNG is right, and the picture the whole build's" || bad "its PNG: $(tail -n 2 "$tmp/out")"
works "libpng reads it" paint "$build/bin/diffpak" --init "$tmp/leaf.png" -o "$tmp/again.png"

refuses 1 "this build reads no PNG" paint "$leaf" --init "$tmp/leaf.png" -o "$tmp/no.png"
refuses 1 "without philox" paint "$leaf" --rng cuda -o "$tmp/no.png"
refuses 1 "no kernel for s8 weights" "$leaf" generate "$tmp/int8.dpk" -p "a cat" --steps 2 -q -o "$tmp/no.png"
refuses 2 "unknown command bundle" "$leaf" bundle "$model" -o "$tmp/no.tar.zst"
refuses 1 "this build has ref" env DPK_ISA=avx2 "$leaf" generate "$model" -p "a cat" -q -o "$tmp/no.png"
refuses 2 "WITHOUT=everything: want some of" "$make" -n WITHOUT=everything

# Without float32: activations are bfloat16, at ref as well; pictures differ from float32's as bfloat16 does.
bf16=$build/leaf-bf16/bin/diffpak
works "make WITHOUT=f32" env -u MAKELEVEL "$make" -j2 --no-print-directory BUILD="$build/leaf-bf16" OPT=-O1 WITHOUT="f32 png archive" "$bf16"
works "convert to float32" "$build/bin/diffpak-convert" tests/data/tiny-sdxl --dtype f32 -o "$tmp/f32.dpk" -q
works "without f32, ref paints" paint_ref "$bf16" -o "$tmp/ref.png" --trace "$tmp/ref"
works "without f32, the best level paints" paint "$bf16" -o "$tmp/best.png" --trace "$tmp/best"
for level in ref best; do
    python3 - "$tmp/whole/image.npy" "$tmp/$level/image.npy" >"$tmp/out" 2>&1 <<'END'
import array, struct, sys
def npy(path):
    raw = open(path, "rb").read()
    return array.array("f", raw[10 + struct.unpack_from("<H", raw, 8)[0]:])
whole, image = npy(sys.argv[1]), npy(sys.argv[2])
assert len(whole) == len(image)
mean = sum(abs(a - b) for a, b in zip(whole, image)) / len(whole)
assert 1e-4 < mean < 0.02, f"off by {mean} on average"
END
    [ $? -eq 0 ] && ok "its picture is that of bfloat16 ($level)" || bad "its picture ($level): $(tail -n 1 "$tmp/out")"
done
works "without f32, it paints quantized files" "$bf16" generate "$tmp/int8.dpk" -p "a cat" --steps 2 -q --width 152 --height 104 -o "$tmp/best.png"
refuses 1 "no kernel for f32 weights" "$bf16" generate "$tmp/f32.dpk" -p "a cat" --steps 2 -q -o "$tmp/no.png"
refuses 1 "this build has ref" env DPK_ISA=avx2 "$bf16" generate "$model" -p "a cat" -q -o "$tmp/no.png"

[ -e "$tmp/no.png" ] && bad "something was written" || ok "what is refused writes nothing"

echo "[  PASSED  ] $passed test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)"; exit 1; }
