#!/bin/sh
# diffpak-quantize from the outside: files, lists, reports, and what is refused.
# Every failure must be one line on standard error, exit status 1 (2 for wrong usage), and leave no file.
set -u
build=${BUILD:-build}
bin=$build/bin
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-quantize.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }

# fails STATUS PATTERN COMMAND...: exit status, one line, text, and no $tmp/no.dpk
fails() {
    want=$1 pattern=$2; shift 2
    "$@" >"$tmp/out" 2>"$tmp/err"; got=$?
    lines=$(wc -l <"$tmp/err")
    if [ "$got" -ne "$want" ]; then bad "$*: exit status $got, want $want: $(head -n 2 "$tmp/err")"
    elif [ "$lines" -ne 1 ]; then bad "$*: $lines lines of error: $(cat "$tmp/err")"
    elif ! grep -qE -- "$pattern" "$tmp/err"; then bad "$*: no '$pattern' in: $(cat "$tmp/err")"
    elif ls "$tmp"/no.dpk* >/dev/null 2>&1; then bad "$*: left $(ls "$tmp"/no.dpk*)"
    else ok "$(head -n 1 "$tmp/err" | cut -c1-150)"; fi
}
works() {
    if "$@" >"$tmp/out" 2>"$tmp/err"; then ok "$(echo "$*" | cut -c1-120)"
    else bad "$*: exit status $?: $(head -n 3 "$tmp/err")"; fi
}
# holds NAME: a Python program on standard input says so by its exit status; its arguments follow
holds() {
    what=$1; shift
    if python3 - "$@"; then ok "$what"; else bad "$what"; fi
}

q=$bin/diffpak-quantize
model=$tmp/model.dpk
works "$bin/diffpak-convert" models/shapes-xl -o "$model"

# the list
works "$q" "$model" --dry-run --filter all --json
holds "list as JSON" "$tmp/out" <<'E2'
import json, sys
d = json.load(open(sys.argv[1]))
assert list(d) == ["layers"] and len(d["layers"]) > 100
for l in d["layers"]:
    assert set(l) == {"name", "kind", "in", "out", "rows", "quantized", "reason"}, l
    assert l["kind"] in ("linear", "conv1x1") and l["in"] > 0 and l["out"] > 0 and l["rows"] > 0
    assert l["quantized"] is True
names = [l["name"] for l in d["layers"]]
assert len(set(names)) == len(names)
assert any(n.endswith("attn1.to_qkv") for n in names) and any(n.endswith("attn2.to_kv") for n in names)
assert {n.split(".")[0] for n in names} == {"unet", "vae", "text_encoder", "text_encoder_2"}
E2
works "$q" "$model" --dry-run
grep -q "^layer .*fused from.*rows.*decision.*reason" "$tmp/out" && grep -q "to_q+to_k+to_v" "$tmp/out" && ok "list as a table" || bad "list as a table: $(head -n 2 "$tmp/out")"
cp "$tmp/out" "$tmp/packed"
works "$q" models/shapes-xl --dry-run
cmp -s "$tmp/out" "$tmp/packed" && ok "the same list of a model that is not packed yet" || bad "another list of the model before it is packed"
for config in sdxl-base-1.0:397/727 pixart-xl-2-1024-ms:206/312; do
    n=${config#*:}
    works "$q" "tests/data/configs/${config%:*}" --dry-run
    n=$((${n%/*} + 1)) # and one of the autoencoder's encoder
    tail -n 1 "$tmp/out" | grep -q "^$n of ${config##*/} layers" && ok "$n layers of ${config%:*} by its configs" || bad "${config%:*}: $(tail -n 1 "$tmp/out")"
done
printf 'quantize unet.*.to_qkv  # these alone\nskip *\n' >"$tmp/rules"
works "$q" "$model" --dry-run --json --filter "$tmp/rules" --scheme int4-weight:32
holds "filter file" "$tmp/out" <<'E2'
import json, sys
for l in json.load(open(sys.argv[1]))["layers"]:
    want = l["name"].startswith("unet.") and l["name"].endswith(".to_qkv")
    assert l["quantized"] == want, l
    assert l["reason"] == ("line 1: quantize unet.*.to_qkv" if want else "line 2: skip *"), l
E2

# files
before=$(wc -c <"$model")
for scheme in int8-dynamic int8-weight int4-weight:32; do
    out=$tmp/$scheme.dpk
    works "$q" "$model" -o "$out" --scheme "$scheme" --filter all --report "$tmp/$scheme.json"
    works "$bin/diffpak" verify "$out"
    after=$(wc -c <"$out")
    [ "$after" -lt "$before" ] && ok "$scheme: $before to $after bytes" || bad "$scheme: $before to $after bytes"
    holds "$scheme: report" "$tmp/$scheme.json" "$scheme" "$after" <<'E2'
import json, sys
d = json.load(open(sys.argv[1]))
assert d["scheme"] == sys.argv[2] and d["file_bytes"]["after"] == int(sys.argv[3])
t = d["totals"]
assert t["layers"] == len(d["layers"]) and t["quantized"] == sum(l["quantized"] for l in d["layers"])
assert t["bytes_after"] == sum(l["bytes_after"] for l in d["layers"]) < t["bytes_before"]
low, high = (18, 26) if sys.argv[2].startswith("int4") else (40, 50)
assert low < t["sqnr_db"] < high, t
assert abs(sum(l.get("share_of_error", 0) for l in d["layers"]) - 1) < 1e-4
E2
    fails 1 "quantized already" "$q" "$out" -o "$tmp/no.dpk" --scheme int8-weight
done
works "$q" "$model" -o "$tmp/again.dpk" --scheme=int8-dynamic --filter=all -q --report="$tmp/again.json"
[ -s "$tmp/out" ] && bad "-q printed something" || ok "-q prints nothing"
cmp -s "$tmp/again.dpk" "$tmp/int8-dynamic.dpk" && ok "the same run gives the same file" || bad "two equal runs differ"
works "$q" "$model" -o "$tmp/ao.dpk" --scheme int8-dynamic --filter all --convention torchao --json
python3 -m json.tool "$tmp/out" >/dev/null && ok "--json is JSON" || bad "--json"
cmp -s "$tmp/ao.dpk" "$tmp/int8-dynamic.dpk" && bad "both conventions give the same file" || ok "conventions differ"

# what is refused
fails 1 "not packed" "$q" models/shapes-xl --dry-run --filter auto
fails 1 "is a folder" "$q" models/shapes-xl -o "$tmp/no.dpk" --scheme int8-weight
fails 1 "model_index.json is missing" "$q" "$tmp" --dry-run
fails 2 "IN.dpk is missing" "$q"
fails 2 "OUT.dpk is missing" "$q" "$model" --scheme int8-weight
fails 2 "scheme is missing" "$q" "$model" -o "$tmp/no.dpk"
fails 2 "int9.*want int8-dynamic" "$q" "$model" -o "$tmp/no.dpk" --scheme int9
fails 2 "group of 32, 64 or 128" "$q" "$model" -o "$tmp/no.dpk" --scheme int4-weight:7
fails 2 "unknown option --fast" "$q" "$model" --fast
fails 2 "needs a value" "$q" "$model" -o
fails 2 "one argument too many" "$q" "$model" "$model" --dry-run
fails 2 "convention" "$q" "$model" --dry-run --convention 2024
fails 2 "ends in .json" "$q" "$model" --dry-run --report x.pdf
fails 1 "filter nothing-like-it" "$q" "$model" --dry-run --filter nothing-like-it
printf 'skip *\nquantise *\n' >"$tmp/rules"
fails 1 "rules:2: .quantise" "$q" "$model" -o "$tmp/no.dpk" --scheme int8-weight --filter "$tmp/rules"
fails 1 "cannot open" "$q" "$tmp/absent.dpk" -o "$tmp/no.dpk" --scheme int8-weight
fails 2 "is the input" "$q" "$model" -o "$(dirname "$model")/./$(basename "$model")" --scheme int8-weight
fails 1 "not a .dpk file" "$q" "$bin/diffpak-quantize" -o "$tmp/no.dpk" --scheme int8-weight
fails 1 "absent" "$q" "$model" -o "$tmp/absent/x.dpk" --scheme int8-weight
head -c 100000 "$model" >"$tmp/short.dpk"
fails 1 "cut short" "$q" "$tmp/short.dpk" -o "$tmp/no.dpk" --scheme int8-weight
works "$q" --help
works "$q" --version

echo "[  PASSED  ] $passed test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)"; exit 1; }
