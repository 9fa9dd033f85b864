#!/bin/sh
# Files of prompts: what is painted, kept, refused; shards; a run that is killed.
set -u
build=${BUILD:-build}
bin=$build/bin
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-batch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
unset SLURM_ARRAY_TASK_ID SLURM_ARRAY_TASK_COUNT SLURM_ARRAY_TASK_MIN SLURM_ARRAY_TASK_STEP
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }
model=$tmp/model.dpk
"$bin/diffpak-convert" models/shapes-xl -o "$model" 2>"$tmp/err" || bad "convert: $(cat "$tmp/err")"

# batch FOLDER WANT ARGUMENTS...: paints; the closing message has WANT
batch() {
    out=$tmp/$1 want=$2; shift 2
    "$bin/diffpak" generate "$model" -o "$out" --steps 2 "$@" >"$tmp/out" 2>"$tmp/err"; got=$?
    if [ $got -ne 0 ]; then bad "$*: exit status $got: $(cat "$tmp/err")"
    elif ! grep -q "$want" "$tmp/err"; then bad "$*: no '$want' in: $(cat "$tmp/err")"
    else ok "$(basename "$out"): $want"; fi
}
same() { cmp -s "$1" "$2" && ok "$(basename "$1") is the picture of $3" || bad "$1 differs from $2"; }

printf '\357\273\277a red circle\r\n\n{"prompt": "a blue \\"star\\" \\u00e9", "seed": 7, "width": 96, "height": 64}\n  a {white} cross \n' >"$tmp/p"
printf '{"prompt":"a green heart","negative":"","guidance":3.5,"steps":3,"scheduler":"ddim","rng":"cuda","no_binning":false}' >>"$tmp/p"
batch a "4 painted, 0 were there" --prompts "$tmp/p" --seed 5
"$bin/diffpak" generate "$model" -p "a red circle" --steps 2 --seed 5 -o "$tmp/1.png"
"$bin/diffpak" generate "$model" -p 'a blue "star" é' --steps 2 --seed 7 --width 96 --height 64 -o "$tmp/2.png"
"$bin/diffpak" generate "$model" -p "a {white} cross" --steps 2 --seed 5 -o "$tmp/3.png"
"$bin/diffpak" generate "$model" -p "a green heart" -n "" --guidance 3.5 --steps 3 --scheduler ddim --rng cuda --seed 5 -o "$tmp/4.png"
for i in 1 2 3 4; do same "$tmp/a/0000$i.png" "$tmp/$i.png" "generate -p"; done
python3 - "$tmp/a/manifest.jsonl" <<'P' && ok "the manifest" || bad "the manifest: $(cat "$tmp/a/manifest.jsonl")"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
assert [r["file"] for r in rows] == ["00001.png", "00002.png", "00003.png", "00004.png"]
assert [r["line"] for r in rows] == [1, 3, 4, 5] and [r["seed"] for r in rows] == ["5", "7", "5", "5"]
assert rows[1]["prompt"] == 'a blue "star" \u00e9' and (rows[1]["width"], rows[1]["height"]) == (96, 64)
assert rows[3]["negative"] == "" and rows[3]["rng"] == "cuda" and "negative" not in rows[0]
P

# what is there is kept; what is damaged, or was made from other inputs, is painted anew
batch a "0 painted, 4 were there" --prompts "$tmp/p" --seed 5
head -c 3000 "$tmp/1.png" >"$tmp/a/00001.png"
rm "$tmp/a/00004.png"
batch a "2 painted, 2 were there" --prompts "$tmp/p" --seed 5
for i in 1 4; do same "$tmp/a/0000$i.png" "$tmp/$i.png" "generate -p"; done
batch a "3 painted, 1 were there" --prompts "$tmp/p" --seed 6
cp "$tmp/1.png" "$tmp/init.png"
refuses_strength() { "$bin/diffpak" generate "$model" --prompts "$tmp/one" -o "$tmp/no" 2>"$tmp/err"; [ $? -eq 1 ] && grep -q "strength without" "$tmp/err"; }
echo '{"prompt":"x","strength":0.5}' >"$tmp/one"
echo "a line without a picture" >"$tmp/plain"
"$bin/diffpak" generate "$model" --prompts "$tmp/plain" --strength 0.5 --steps 1 -o "$tmp/plain.d" -q 2>"$tmp/err" && ok "strength for the lines that have a picture" || bad "$(cat "$tmp/err")"
refuses_strength && ok "$(cat "$tmp/err")" || bad "strength without init: $(cat "$tmp/err")"
printf '{"prompt":"x","init":"%s","strength":0.5}\n' "$tmp/init.png" >"$tmp/one"
batch i "1 painted" --prompts "$tmp/one"
batch i "1 were there" --prompts "$tmp/one"
cp "$tmp/3.png" "$tmp/init.png"
batch i "1 painted, 0" --prompts "$tmp/one"

# shards: together all, none twice
batch s "2 painted" --prompts "$tmp/p" --seed 5 --shard 1/3
batch s "1 painted" --prompts "$tmp/p" --seed 5 --shard 3/3
[ "$(ls "$tmp/s" | tr '\n' ' ')" = "00001.png 00003.png 00004.png manifest-1-of-3.jsonl manifest-3-of-3.jsonl " ] &&
    ok "shards 1 and 3 of 3" || bad "shards: $(ls "$tmp/s")"
SLURM_ARRAY_TASK_ID=12 SLURM_ARRAY_TASK_MIN=10 SLURM_ARRAY_TASK_STEP=2 SLURM_ARRAY_TASK_COUNT=3
export SLURM_ARRAY_TASK_ID SLURM_ARRAY_TASK_MIN SLURM_ARRAY_TASK_STEP SLURM_ARRAY_TASK_COUNT
batch s "1 painted" --prompts "$tmp/p" --seed 5
for i in 1 2 3 4; do same "$tmp/s/0000$i.png" "$tmp/$i.png" "one run"; done
SLURM_ARRAY_TASK_ID=17
"$bin/diffpak" generate "$model" --prompts "$tmp/p" -o "$tmp/x" 2>"$tmp/err"; got=$?
[ $got -eq 2 ] && grep -q 'without gaps' "$tmp/err" && ok "$(cat "$tmp/err")" || bad "an array with gaps: $got $(cat "$tmp/err")"
unset SLURM_ARRAY_TASK_COUNT SLURM_ARRAY_TASK_MIN SLURM_ARRAY_TASK_STEP
"$bin/diffpak" generate "$model" --prompts "$tmp/p" -o "$tmp/x" 2>"$tmp/err"; got=$?
[ $got -eq 2 ] && grep -q 'is no number' "$tmp/err" && ok "$(cat "$tmp/err")" || bad "an array of unknown size: $got $(cat "$tmp/err")"
unset SLURM_ARRAY_TASK_ID

# a line that fails, and what was painted before stays listed
cp -r "$tmp/a" "$tmp/f" && rm "$tmp/f/00002.png" && mkdir "$tmp/f/00002.png"
"$bin/diffpak" generate "$model" -o "$tmp/f" --steps 2 --prompts "$tmp/p" --seed 6 2>"$tmp/err"; got=$?
[ $got -eq 1 ] && [ "$(grep -c '"file"' "$tmp/f/manifest.jsonl")" -eq 3 ] && ok "$(cat "$tmp/err")" ||
    bad "a failing line: $got $(cat "$tmp/err" "$tmp/f/manifest.jsonl")"

# killed at some moment, then run again: the same pictures, nothing else
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo "{\"prompt\": \"a red ring\", \"seed\": $i}"; done >"$tmp/many"
for wait in 0.05 0.15 0.3; do
    "$bin/diffpak" generate "$model" --prompts "$tmp/many" -o "$tmp/k" --steps 2 -q & pid=$!
    sleep $wait; kill -9 $pid 2>/dev/null; wait $pid 2>/dev/null
done
batch k " were there" --prompts "$tmp/many"
batch l "16 painted" --prompts "$tmp/many"
rm -f "$tmp/k"/*.tmp-*
diff -r "$tmp/k" "$tmp/l" >"$tmp/out" && ok "after kill -9 the same folder" || bad "after kill -9: $(head -n 3 "$tmp/out")"

# two at once into one folder
"$bin/diffpak" generate "$model" --prompts "$tmp/many" -o "$tmp/two" --steps 2 -q & pid=$!
"$bin/diffpak" generate "$model" --prompts "$tmp/many" -o "$tmp/two" --steps 2 -q && wait $pid && ok "two at once" || bad "two at once"
diff -r "$tmp/two" "$tmp/l" >"$tmp/out" && ok "the same folder" || bad "two at once: $(head -n 3 "$tmp/out")"

# refused before anything is painted
refused() {
    printf 'a good line\n%s\n' "$1" >"$tmp/q"
    "$bin/diffpak" generate "$model" --prompts "$tmp/q" -o "$tmp/none" 2>"$tmp/err"; got=$?
    [ $got -eq 1 ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && grep -q "line 2: .*$2" "$tmp/err" && [ ! -e "$tmp/none" ] &&
        ok "$(cat "$tmp/err")" || bad "$1: exit status $got: $(cat "$tmp/err"; ls "$tmp/none" 2>/dev/null)"
}
refused '{"prompt":"a","steps":true}' 'want a text or a number'
refused '{"prompt":"a","steps":-3}' 'want a whole number'
refused '{"prompt":"a","promtp":"b"}' 'unknown key'
refused '{"prompt":"a","output":"b"}' 'unknown key'
refused '{"prompt":"a","no_binning":1}' 'want true or false'
refused '{"prompt":"a","seed":[1,2]}' 'want a text or a number'
refused '{"prompt":"a","prompt":"b"}' 'prompt twice'
refused '{"prompt":"a"} and more' 'want the end'
refused '{"prompt":"a"' 'JSON ends'
refused '{"seed":1}' 'a prompt is missing'
refused '{"prompt":"a","scheduler":"nope"}' 'not known'
refused '{"prompt":"a","width":13}' 'multiple of 8'
refused '{"prompt":"a","init":"nowhere.png"}' 'nowhere.png'
refused "$(printf 'a \377 b')" 'not UTF-8'
refused "$(head -c 1100000 /dev/zero | tr '\0' a)" 'a prompt above 1048576 bytes'
usage() {
    want=$1; shift
    "$bin/diffpak" generate "$model" -o "$tmp/none" "$@" 2>"$tmp/err"; got=$?
    [ $got -eq 2 ] && grep -q "$want" "$tmp/err" && ok "$(cat "$tmp/err")" || bad "$*: exit status $got: $(cat "$tmp/err")"
}
"$bin/diffpak" generate "$model" --prompts "$tmp/p" -o "$tmp/p" 2>"$tmp/err" && bad "a file as the folder" || { grep -q "is a file" "$tmp/err" && ok "$(cat "$tmp/err")" || bad "$(cat "$tmp/err")"; }
usage 'I/N' --prompts "$tmp/p" --shard 0/2
usage 'I/N' --prompts "$tmp/p" --shard 3/2
usage 'want one of them' --prompts "$tmp/p" -p x
usage 'without --prompts' -p x --shard 1/2
usage 'several seeds' --prompts "$tmp/p" --seed 1 --seed 2

echo "[  PASSED  ] $passed test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)"; exit 1; }
