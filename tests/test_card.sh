#!/bin/sh
# diffpak-quantize's quality card from the outside: reports, the error limit, ranking, budgets, auto.
set -u
build=${BUILD:-build}
bin=$build/bin
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-card.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }
works() {
    if "$@" >"$tmp/out" 2>"$tmp/err"; then ok "$(echo "$*" | cut -c1-120)"
    else bad "$*: exit status $?: $(head -n 3 "$tmp/err")"; fi
}
# fails STATUS PATTERN COMMAND...: exit status, one line, text, and no $tmp/no* of any kind
fails() {
    want=$1 pattern=$2; shift 2
    "$@" >"$tmp/out" 2>"$tmp/err"; got=$?
    lines=$(wc -l <"$tmp/err")
    if [ "$got" -ne "$want" ]; then bad "$*: exit status $got, want $want: $(head -n 2 "$tmp/err")"
    elif [ "$lines" -ne 1 ]; then bad "$*: $lines lines of error: $(cat "$tmp/err")"
    elif ! grep -qE -- "$pattern" "$tmp/err"; then bad "$*: no '$pattern' in: $(cat "$tmp/err")"
    elif ls "$tmp"/no* >/dev/null 2>&1; then bad "$*: left $(ls "$tmp"/no*)"
    else ok "$(head -n 1 "$tmp/err" | cut -c1-150)"; fi
}
# holds NAME: a Python program on standard input says so by its exit status; its arguments follow
holds() {
    what=$1; shift
    if python3 - "$@"; then ok "$what"; else bad "$what"; fi
}
field() { python3 -c 'import json, sys
d = json.load(open(sys.argv[1]))
for k in sys.argv[2].split("."): d = d[k]
print(d)' "$@"; }

q=$bin/diffpak-quantize
model=$tmp/shapes.dpk
tiny=$tmp/tiny.dpk
works "$bin/diffpak-convert" models/shapes-xl -o "$model"
works "$bin/diffpak-convert" tests/data/tiny-sdxl -o "$tiny"

# The pictures of a trained model: every linear with weights and activations in 8 bits
cat >"$tmp/golden.txt" <<'E2'
a large red circle on a blue background
a small yellow star at the top on a black background
a green heart on the left on a white background
a purple ring on an orange background
a pink cross on a gray background
a cyan diamond on a brown background
a red circle and a blue square on a white background
a large orange triangle on a purple background
a white circle on a red background
E2
works "$q" "$model" -o "$tmp/q.dpk" --scheme int8-dynamic --filter all --prompts "$tmp/golden.txt" \
    --steps 8 --report "$tmp/q.json" --report "$tmp/q.html"
holds "JSON: consistent; every picture at 30 dB or more" "$tmp/q.json" "$(wc -c <"$tmp/q.dpk")" <<'E2'
import json, math, sys
d = json.load(open(sys.argv[1]))
m = d["measured"]
assert d["file_bytes"]["after"] == int(sys.argv[2])
assert len(m["pictures"]) == 9 and m["steps"] == 8 and m["width"] == m["height"] == 128
assert [p["seed"] for p in m["pictures"]] == list(range(9))
for p in m["pictures"]:
    assert p["psnr_db"] >= 30 and p["ssim"] >= 0.98 and 0 < p["latent_error"] < 0.1, p
low = min(p["psnr_db"] for p in m["pictures"]); high = max(p["psnr_db"] for p in m["pictures"])
assert low <= m["psnr_db"] <= high
mean = sum(10 ** (-p["psnr_db"] / 10) for p in m["pictures"]) / 9
assert abs(-10 * math.log10(mean) - m["psnr_db"]) < 0.01
assert abs(sum(p["ssim"] for p in m["pictures"]) / 9 - m["ssim"]) < 1e-4
assert m["step_seconds_before"] > 0 and m["step_seconds_after"] > 0
used = [l for l in d["layers"] if "output_error" in l]
assert abs(sum(l["output_share"] for l in used) - 1) < 1e-3
# all but those of the encoder, which painting does not run
assert len(used) == len([l for l in d["layers"] if not l["name"].startswith("vae.encoder") and l["name"] != "vae.quant_conv"])
for l in used: assert 0.0005 < l["output_error"] < 0.1, l
E2
holds "page: whole, alone, escaped, charts and pictures" "$tmp/q.html" <<'E2'
import base64, html.parser, re, struct, sys
text = open(sys.argv[1], encoding="utf-8").read()
assert "http" not in text and "<script" not in text and "@import" not in text and "url(" not in text
count, stack, images = {}, [], []
class Page(html.parser.HTMLParser):
    def handle_starttag(self, tag, attrs):
        count[tag] = count.get(tag, 0) + 1
        if tag not in ("meta", "img", "br"): stack.append(tag)
        if tag == "img": images.append(dict(attrs))
    def handle_startendtag(self, tag, attrs): count[tag] = count.get(tag, 0) + 1
    def handle_endtag(self, tag): assert stack and stack.pop() == tag, tag
Page().feed(text)
assert not stack, stack
assert count["svg"] == 3 and count["rect"] > 140 and count["circle"] > 100, count
assert len(images) == 27
for i in images:
    kind, data = i["src"].split(",", 1)
    png = base64.b64decode(data, validate=True)
    assert kind == "data:image/png;base64" and png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24]) == (128, 128)
assert images[0]["src"] != images[1]["src"]
assert "prefers-color-scheme:dark" in text and "width=device-width" in text
for number in re.findall(r' (?:x|y|width|height|cx|cy)="([^"]*)"', text): float(number)
E2
works "$bin/diffpak" inspect "$tmp/q.dpk"
for key in latent_error psnr ssim pictures worst; do
    grep -q "quant.card.$key  *[^ ]" "$tmp/out" && ok "inspect prints quant.card.$key" || bad "inspect does not print quant.card.$key"
done
works "$bin/diffpak" verify "$tmp/q.dpk"
works "$q" "$model" -o "$tmp/again.dpk" --scheme int8-dynamic --filter all --prompts "$tmp/golden.txt" --steps 8 --threads 1 --report "$tmp/again.json"
cmp -s "$tmp/q.dpk" "$tmp/again.dpk" && ok "the same measurement gives the same file, with one thread, too" || bad "two equal runs differ"
ls "$tmp"/*.try-* >/dev/null 2>&1 && bad "left $(ls "$tmp"/*.try-*)" || ok "no file of a try is left"

# fewer bits, larger error
works "$q" "$tiny" -o "$tmp/t8.dpk" --scheme int8-weight --filter all --steps 3 --size 128 --threads 1 --prompts 1 --report "$tmp/t8.json"
works "$q" "$tiny" -o "$tmp/t4.dpk" --scheme int4-weight:32 --filter all --steps 3 --size 128 --threads 1 --prompts 1 --report "$tmp/t4.json"
e8=$(field "$tmp/t8.json" measured.latent_error) e4=$(field "$tmp/t4.json" measured.latent_error)
python3 -c "import sys; sys.exit(not 0 < 2 * $e8 < $e4)" && ok "error in 8 bits $e8, in 4 bits $e4" || bad "error in 8 bits $e8, in 4 bits $e4"

# the limit: on either side of what was measured
fails 1 "latent's error is .*, at most" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int4-weight:32 --filter all --steps 3 --size 128 --threads 1 \
    --prompts 1 --max-error "$(python3 -c "print($e4 * 0.99)")"
works "$q" "$tiny" -o "$tmp/limit.dpk" --scheme int4-weight:32 --filter all --steps 3 --size 128 --threads 1 --prompts 1 \
    --max-error "$(python3 -c "print($e4 * 1.01)")"
works "$q" "$tiny" -o "$tmp/left.dpk" --scheme int8-dynamic --filter none --steps 2 --size 64 --prompts 1 --max-error 0 --report "$tmp/left.json"
[ "$(field "$tmp/left.json" measured.latent_error)" = 0 ] && ok "nothing quantized: no error" || bad "nothing quantized: error"

# ranking and budgets
printf 'quantize unet.*.to_qkv\nquantize unet.mid*\nquantize unet.*.ff.net.2\nquantize vae.decoder*\nskip *\n' >"$tmp/rules"
rank() { "$q" "$tiny" -o "$tmp/b.dpk" --scheme int4-weight:32 --filter "$tmp/rules" --steps 2 --size 128 --prompts 1 --threads 1 --report "$tmp/$1.json" "$2" $3 >"$tmp/out" 2>"$tmp/err"; }
rank all --sensitivity "" && ok "ranking" || bad "ranking: $(cat "$tmp/err")"
for db in 20 35 50 99; do rank "db$db" --budget "${db}dB" || bad "budget of $db dB: $(cat "$tmp/err")"; done
before=$(wc -c <"$tiny") least=$(field "$tmp/all.json" file_bytes.after)
middle=$(((before + least) / 2 + 8192))
rank small --budget "$middle" && ok "budget of $middle bytes" || bad "budget of bytes: $(cat "$tmp/err")"
holds "ranking and budgets: sound and monotonic" "$tmp" "$middle" <<'E2'
import json, sys
load = lambda n: json.load(open(f"{sys.argv[1]}/{n}.json"))
on = lambda d: {l["name"] for l in d["layers"] if l["quantized"]}
d = load("all")
r = d["sensitivity"]["ranking"]
names = [n for u in r for n in u["layers"]]
assert sorted(names) == sorted(on(d)) and len(set(names)) == len(names) > 10
assert all(u["picture_mse"] >= 0 and u["bytes_saved"] > 0 for u in r)
assert sum(u["picture_mse"] > 0 for u in r) > len(r) / 2
price = [u["picture_mse"] / u["bytes_saved"] for u in r]
assert all(a <= b * (1 + 1e-4) + 1e-30 for a, b in zip(price, price[1:])), price
assert sum(u["bytes_saved"] for u in r) == d["totals"]["bytes_before"] - d["totals"]["bytes_after"]
sets = [on(load(f"db{db}")) for db in (20, 35, 50, 99)]
assert all(a >= b for a, b in zip(sets, sets[1:])), [len(s) for s in sets]
assert len(sets[0]) > len(sets[-1]) , [len(s) for s in sets]
for l in load("db99")["layers"]: assert l["quantized"] or l["bytes_before"] == l["bytes_after"]
s = load("small")
assert s["file_bytes"]["after"] <= int(sys.argv[2]) and 0 < len(on(s)) < len(on(d)), (s["file_bytes"], len(on(s)))
E2
fails 1 "smallest file has" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int8-weight --filter "$tmp/rules" --threads 1 --steps 1 --size 64 --budget 1kB

# auto: the decisions follow the table
works "$q" "$model" -o "$tmp/auto.dpk" --scheme int8-dynamic --filter auto --threads 1 --json
cp "$tmp/out" "$tmp/auto.json"
holds "auto: table and decisions agree" "$tmp/auto.json" <<'E2'
import json, sys
d = json.load(open(sys.argv[1]))
shapes = d["timed"]["shapes"]
assert len(shapes) > 20
for s in shapes:
    assert s["seconds_before"] > 0 and s["seconds_after"] > 0
    gain = s["seconds_before"] / s["seconds_after"]
    assert s["quantize"] == (gain >= 1.1) or abs(gain - 1.1) < 1e-3, s
assert sum(s["layers"] for s in shapes if s["quantize"]) == d["totals"]["quantized"]
for l in d["layers"]:
    assert l["quantized"] == l["reason"].endswith(": quantize"), l
E2
"$bin/diffpak" inspect "$tmp/auto.dpk" | grep -q "quant.auto.000 .*rows: .*ms, quantized" && ok "the table is in the file" || bad "no table in the file"

# what is refused
fails 2 "want decibels .* or a file size" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int8-weight --budget 3parsecs
fails 2 "max-error -1: want a number" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int8-weight --max-error -1
fails 2 "steps 2.5: want a whole number" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int8-weight --steps 2.5
fails 2 "ends in .json or .html" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int8-weight --report x.pdf
fails 2 "is the output, too" "$q" "$tiny" -o "$tmp/no.json" --scheme int8-weight --report "$tmp/no.json"
fails 1 "absent/x.html: cannot create" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int8-weight --steps 1 --size 64 --report "$tmp/no.json" --report "$tmp/absent/x.html"
fails 1 "99 prompts" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int8-weight --prompts 99
printf '\n\n' >"$tmp/empty.txt"
fails 1 "no prompts" "$q" "$tiny" -o "$tmp/no.dpk" --scheme int8-weight --prompts "$tmp/empty.txt"
printf 'a <b>bold</b> "circle" & '"'square'"'\n' >"$tmp/markup.txt"
works "$q" "$tiny" -o "$tmp/markup.dpk" --scheme int8-weight --steps 1 --size 64 --prompts "$tmp/markup.txt" --report "$tmp/markup.html" --report "$tmp/markup.json"
grep -q "a &lt;b&gt;bold&lt;/b&gt; &quot;circle&quot; &amp; &#39;square&#39;" "$tmp/markup.html" && ! grep -q "<b>bold" "$tmp/markup.html" && ok "prompts are escaped" || bad "prompts are not escaped"
[ "$(field "$tmp/markup.json" measured.pictures | grep -c 'bold')" = 1 ] && ok "and JSON holds them" || bad "JSON lost a prompt"

echo "[  PASSED  ] $passed test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)"; exit 1; }
