#!/bin/sh
# Bundles: packed, unpacked, verified, and spoilt in every way we could think of.
set -u
build=${BUILD:-build}
bin=$build/bin
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-bundle.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }
works() {
    if "$@" >"$tmp/out" 2>"$tmp/err"; then ok "$(echo "$*" | cut -c1-120)"
    else bad "$*: exit status $?: $(head -n 3 "$tmp/err")"; fi
}
fails() {
    pattern=$1; shift
    "$@" >"$tmp/out" 2>"$tmp/err"; got=$?
    [ $got -eq 1 ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && grep -q -- "$pattern" "$tmp/err" && ok "$(cat "$tmp/err")" ||
        bad "$*: exit status $got, want '$pattern': $(cat "$tmp/err")"
}

model=$tmp/shapes.dpk
works "$bin/diffpak-convert" models/shapes-xl -o "$model" -q
works "$bin/diffpak" generate "$model" -p "a red circle" --steps 1 -o "$tmp/sample one.png" -q
echo "free for all" >"$tmp/LICENSE"
: >"$tmp/empty.json"
works "$bin/diffpak" bundle "$model" "$tmp/LICENSE" "$tmp/empty.json" "$tmp/sample one.png" -o "$tmp/b.tar.zst"
works "$bin/diffpak" bundle "$model" "$tmp/LICENSE" "$tmp/empty.json" "$tmp/sample one.png" -o "$tmp/c.tar.zst"
cmp -s "$tmp/b.tar.zst" "$tmp/c.tar.zst" && ok "the same files, the same bytes" || bad "two bundles differ"
works "$bin/diffpak" verify "$tmp/b.tar.zst"
grep -q "b.tar.zst: good, sum $("$bin/diffpak" verify "$model" | sed 's/.*sum //')" "$tmp/out" || {
    "$bin/diffpak" verify "$tmp/b.tar.zst" | grep -q "$("$bin/diffpak" verify "$model" | sed 's/.*sum //')" &&
        ok "the model's own sum" || bad "verify: another sum"; }
works "$bin/diffpak" unbundle "$tmp/b.tar.zst" -o "$tmp/un"
for f in shapes.dpk LICENSE empty.json "sample one.png"; do cmp -s "$tmp/$f" "$tmp/un/$f" && ok "$f is back" || bad "$f is not back"; done
[ "$(ls "$tmp/un" | wc -l)" -eq 4 ] && ok "nothing else" || bad "unbundle: $(ls "$tmp/un")"
if command -v zstd >/dev/null; then
    mkdir "$tmp/tar"
    zstd -dcq "$tmp/b.tar.zst" | tar -xf - -C "$tmp/tar" && cmp -s "$tmp/tar/shapes/LICENSE" "$tmp/LICENSE" && ok "tar and zstd read it" || bad "tar"
    command -v xxhsum >/dev/null && { (cd "$tmp/tar/shapes" && xxhsum -c XXH3SUMS >/dev/null 2>&1) && ok "xxhsum -c" || bad "xxhsum -c"; }
fi

fails "is there already" "$bin/diffpak" unbundle "$tmp/b.tar.zst" -o "$tmp/un"
fails "cannot open" "$bin/diffpak" bundle "$model" "$tmp/nothing" -o "$tmp/x.tar.zst"
fails "two files" "$bin/diffpak" bundle "$model" "$tmp/LICENSE" "$tmp/LICENSE" -o "$tmp/x.tar.zst"
fails "second model" "$bin/diffpak" bundle "$model" "$model" -o "$tmp/x.tar.zst"
fails "is to be in the bundle" "$bin/diffpak" bundle "$model" -o "$model"
fails "is to be in the bundle" "$bin/diffpak" bundle "$model" "$tmp/LICENSE" -o "$tmp/LICENSE"
fails "name not allowed" "$bin/diffpak" bundle "$model" "$tmp/un/../tar/shapes/XXH3SUMS" -o "$tmp/x.tar.zst"
mkfifo "$tmp/pipe"
fails "not a regular file" "$bin/diffpak" bundle "$model" "$tmp/pipe" -o "$tmp/x.tar.zst"
cp "$model" "$tmp/flipped.dpk"
printf x | dd of="$tmp/flipped.dpk" bs=1 seek=$(($(wc -c <"$model") - 70)) conv=notrunc 2>/dev/null
fails "the sum is" "$bin/diffpak" bundle "$tmp/flipped.dpk" -o "$tmp/x.tar.zst"
cp "$tmp/LICENSE" "$tmp/licence é 字"
works "$bin/diffpak" bundle "$model" "$tmp/licence é 字" -o "$tmp/u.tar.zst"
works env LC_ALL=C "$bin/diffpak" verify "$tmp/u.tar.zst"
works env LC_ALL=C "$bin/diffpak" unbundle "$tmp/u.tar.zst" -o "$tmp/u/"
cmp -s "$tmp/LICENSE" "$tmp/u/licence é 字" && ok "names in other scripts" || bad "names: $(ls "$tmp/u")"
tar -C "$tmp" -cf "$tmp/plain.tar" un
fails "not a bundle" "$bin/diffpak" unbundle "$tmp/plain.tar" -o "$tmp/none"
cp "$tmp/LICENSE" "$tmp/fake.dpk"
fails "fake.dpk" "$bin/diffpak" bundle "$tmp/fake.dpk" -o "$tmp/x.tar.zst"
ls "$tmp" | grep -q '^x.tar' && bad "a refused bundle left something" || ok "nothing is left"

# Spoilt bundles, made by hand: refused by both, nothing unpacked
python3 - "$tmp" "$model" <<'P' || bad "python"
import io, os, subprocess, sys, tarfile
tmp, model = sys.argv[1], open(sys.argv[2], "rb").read()
sums = None
whole = tarfile.open(fileobj=io.BytesIO(subprocess.run(["sh", "-c", f"zstd -dcq {tmp}/b.tar.zst"], capture_output=True, check=True).stdout))
for m in whole: sums = whole.extractfile(m).read() if m.name.endswith("XXH3SUMS") else sums
line = sums.split(b"\n")[0] + b"\n"
def make(name, members, cut=None):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as t:
        for path, data, kind in members:
            info = tarfile.TarInfo(path)
            info.type, info.size = kind, len(data) if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            t.addfile(info, io.BytesIO(data))
    packed = subprocess.run(["zstd", "-q", "-1"], input=raw.getvalue(), capture_output=True, check=True).stdout
    open(f"{tmp}/bad-{name}.tar.zst", "wb").write(packed[:cut] if cut else packed)
F, L, S, H, D = tarfile.REGTYPE, b"x", tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
good = ("m/shapes.dpk", model, F)
make("cut", [good, ("m/XXH3SUMS", line, F)], 100000)
make("nosums", [good])
make("sum", [good, ("m/XXH3SUMS", line.replace(line[5:6], b"0" if line[5:6] != b"0" else b"1", 1), F)])
make("extra", [good, ("m/more", L, F), ("m/XXH3SUMS", line, F)])
make("missing", [good, ("m/XXH3SUMS", line + line.replace(b"shapes.dpk", b"LICENSE"), F)])
make("last", [("m/XXH3SUMS", line, F), good])
make("nomodel", [("m/LICENSE", L, F), ("m/XXH3SUMS", b"", F)])
make("up", [good, ("m/../../up", L, F), ("m/XXH3SUMS", line, F)])
make("root", [good, ("/tmp/root", L, F), ("m/XXH3SUMS", line, F)])
make("deep", [good, ("m/a/b", L, F), ("m/XXH3SUMS", line, F)])
make("other", [good, ("n/b", L, F), ("m/XXH3SUMS", line, F)])
make("link", [good, ("m/link", b"", S), ("m/XXH3SUMS", line, F)])
make("hard", [good, ("m/hard", b"", H), ("m/XXH3SUMS", line, F)])
make("folder", [("m/sub", b"", D), good, ("m/XXH3SUMS", line, F)])
make("dot", [good, ("m/.bashrc", L, F), ("m/XXH3SUMS", line, F)])
make("twice", [good, good, ("m/XXH3SUMS", line + line, F)])
make("above", [("../shapes.dpk", model, F), ("../XXH3SUMS", line, F)])
make("nul", [good, ("m/XXH3SUMS", line + b"\0more", F)])
make("control", [good, ("m/a\nb", L, F), ("m/XXH3SUMS", line, F)])
open(f"{tmp}/bad-noise.tar.zst", "wb").write(b"\x28\xb5\x2f\xfd" + os.urandom(5000))
open(f"{tmp}/bad-empty.tar.zst", "wb").write(b"\x28\xb5\x2f\xfd")
P
before=$(ls -A "$tmp" | sort)
for b in "$tmp"/bad-*.tar.zst; do
    fails "$(basename "$b")" "$bin/diffpak" verify "$b"
    fails "$(basename "$b")" "$bin/diffpak" unbundle "$b" -o "$tmp/none"
done
[ "$before" = "$(ls -A "$tmp" | sort)" ] && ok "nothing was unpacked" || bad "left behind: $(ls -A "$tmp")"
# a bundle that is whole, of a model that is not
head -c 200000 "$model" >"$tmp/short.dpk"
sum=$(command -v xxhsum >/dev/null && xxhsum -q -H3 "$tmp/short.dpk" | sed 's/.*XXH3_\([0-9a-f]*\).*/\1/')
[ -z "$sum" ] || {
    mkdir "$tmp/m" && mv "$tmp/short.dpk" "$tmp/m/" && echo "XXH3_$sum  short.dpk" >"$tmp/m/XXH3SUMS"
    tar -C "$tmp" -cf - m/short.dpk m/XXH3SUMS | zstd -q >"$tmp/short.tar.zst"
    fails "bytes" "$bin/diffpak" verify "$tmp/short.tar.zst"
}

echo "[  PASSED  ] $passed test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)"; exit 1; }
