#!/bin/sh
# Outputs under kill -9 and other signals, on media that cannot be written, and with two writers: what is there afterwards
# is the old file, a whole new one, or none.
set -u
build=${BUILD:-build}
bin=$(cd "$build/bin" && pwd)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-interrupted.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }
now() { date +%s%N; }

# $run: exec, for a subshell that becomes the program and can be killed as such
run=
convert() { $run "$bin/diffpak-convert" models/shapes-xl -q -o "$@"; }
quantize() { $run "$bin/diffpak-quantize" "$tmp/bf16.dpk" -q --scheme int8-dynamic --filter all -o "$@"; }
convert "$tmp/bf16.dpk" --dtype bf16 || bad "convert"
convert "$tmp/f32.dpk" --dtype f32 || bad "convert to f32"
begin=$(now); convert "$tmp/convert.want" || bad "convert"; convert_ns=$(($(now) - begin))
begin=$(now); quantize "$tmp/quantize.want" || bad "quantize"; quantize_ns=$(($(now) - begin))

# killed WHAT NANOSECONDS: many times, from the first moment to past the last; every other time onto a file that is there
killed() {
    what=$1 took=$2 whole=0 old=0 none=0 wrong=0 rounds=24
    for i in $(seq 0 $rounds); do
        dir=$tmp/$what; rm -rf "$dir"; mkdir "$dir"
        [ $((i % 2)) -eq 0 ] && echo "the old file" >"$dir/out.dpk"
        (run=exec; $what "$dir/out.dpk" 2>/dev/null) &
        pid=$!
        sleep "$(awk "BEGIN { print $took * $i / $rounds * 1.1 / 1e9 }")"
        kill -9 $pid 2>/dev/null; wait $pid 2>/dev/null
        if [ ! -e "$dir/out.dpk" ]; then none=$((none + 1)); [ $((i % 2)) -eq 0 ] && wrong=$((wrong + 1))
        elif cmp -s "$dir/out.dpk" "$tmp/$what.want"; then whole=$((whole + 1))
        elif [ "$(head -c 100 "$dir/out.dpk")" = "the old file" ]; then old=$((old + 1))
        else wrong=$((wrong + 1)); fi
        $what "$dir/out.dpk" && cmp -s "$dir/out.dpk" "$tmp/$what.want" || bad "$what after kill -9, round $i"
    done
    said="$what killed $((rounds + 1)) times: $none left none, $old the old file, $whole the whole new one"
    [ $wrong -eq 0 ] && [ $none -gt 0 ] && [ $old -gt 0 ] && ok "$said" || bad "$said, $wrong something else"
}
killed convert "$convert_ns"
killed quantize "$quantize_ns"

# signalled WHAT SIGNAL: as soon as there is a temporary file, until one time the program was cut while it wrote. It says how
# far it came, leaves the old file and nothing beside it. A shell has SIGINT ignored by what it runs behind.
signalled() {
    what=$1 signal=$2 cut=0 rounds=0 dir=$tmp/$1-$2
    while [ $cut -eq 0 ] && [ $rounds -lt 20 ]; do
        rounds=$((rounds + 1))
        rm -rf "$dir"; mkdir "$dir"
        echo "the old file" >"$dir/out.dpk"
        (run="exec env --default-signal=$signal"; $what "$dir/out.dpk" 2>"$tmp/err") &
        pid=$!
        until set -- "$dir"/out.dpk.tmp* && [ -e "$1" ] || ! kill -0 $pid 2>/dev/null; do :; done
        kill -s "$signal" $pid 2>/dev/null; wait $pid; status=$?
        [ "$(ls "$dir")" = out.dpk ] || { bad "$what, SIG$signal: left behind: $(echo $(ls "$dir"))"; return; }
        [ $status -eq 0 ] && cmp -s "$dir/out.dpk" "$tmp/$what.want" && continue # it had written all
        [ $status -eq 1 ] && [ "$(cat "$dir/out.dpk")" = "the old file" ] && grep -q stopped "$tmp/err" ||
            { bad "$what, SIG$signal: exit status $status: $(cat "$tmp/err")"; return; }
        cut=1
    done
    [ $cut -eq 1 ] && ok "$what, SIG$signal: $(cat "$tmp/err")" || bad "$what, SIG$signal: too late $rounds times"
}
for signal in INT TERM HUP; do
    signalled convert $signal
    signalled quantize $signal
done
# nohup's programs go on
dir=$tmp/nohup; mkdir "$dir"
(trap '' HUP; run=exec; convert "$dir/out.dpk" 2>"$tmp/err") &
pid=$!
until set -- "$dir"/out.dpk.tmp* && [ -e "$1" ] || ! kill -0 $pid 2>/dev/null; do :; done
kill -s HUP $pid 2>/dev/null
wait $pid && cmp -s "$dir/out.dpk" "$tmp/convert.want" && ok "a hangup that is ignored" || bad "nohup: $(cat "$tmp/err")"

# two writers of one name: one of them wins, whole
mixed=0
for i in 1 2 3 4 5 6; do
    convert "$tmp/both.dpk" --dtype bf16 & one=$!
    convert "$tmp/both.dpk" --dtype f32 & two=$!
    wait $one || bad "the first of two writers failed"
    wait $two || bad "the second of two writers failed"
    cmp -s "$tmp/both.dpk" "$tmp/bf16.dpk" || cmp -s "$tmp/both.dpk" "$tmp/f32.dpk" || mixed=$((mixed + 1))
done
[ $mixed -eq 0 ] && ok "two writers, six times: one whole file" || bad "two writers: $mixed of 6 files are mixed"
[ "$(ls "$tmp" | grep -c '^both')" -eq 1 ] && ok "two writers leave one file" || bad "left behind: $(ls "$tmp" | grep '^both')"

# refused WHAT COMMAND...: one line that names the file, nothing written
refused() {
    what=$1; shift
    "$@" >"$tmp/out" 2>"$tmp/err"; got=$?
    [ $got -eq 1 ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && grep -q "$what" "$tmp/err" && ok "$(cat "$tmp/err")" ||
        bad "$*: exit status $got: $(head -n 3 "$tmp/err")"
}
# What is on a medium that cannot be written runs; what goes to it is refused. /proc is such a medium everywhere.
small="--steps 1 --width 24 --height 16 -q"
refused /proc/out.dpk convert /proc/out.dpk
refused /proc/out.dpk quantize /proc/out.dpk
refused /proc/out.png "$bin/diffpak" generate "$tmp/bf16.dpk" -p a $small -o /proc/out.png
refused /proc/out "$bin/diffpak" generate "$tmp/bf16.dpk" -p a $small -o "$tmp/a.png" --trace /proc/out
# and where this shell may mount, a real one
mkdir "$tmp/medium"; cp "$tmp/bf16.dpk" "$tmp/medium/model.dpk"
cat >"$tmp/mounted.sh" <<'MOUNTED'
mount --bind "$1/medium" "$1/medium" && mount -o remount,bind,ro "$1/medium" || exit 77
touch "$1/medium/x" 2>/dev/null && exit 77
"$2/diffpak" generate "$1/medium/model.dpk" -p a --steps 1 --width 24 --height 16 -q -o "$1/read-only.png" || exit 1
"$2/diffpak" verify "$1/medium/model.dpk" >/dev/null || exit 1
"$2/diffpak-quantize" "$1/medium/model.dpk" -q --scheme int8-dynamic --filter all -o "$1/medium/q.dpk" && exit 1
exit 0
MOUNTED
unshare --user --map-root-user --mount sh "$tmp/mounted.sh" "$tmp" "$bin" >"$tmp/out" 2>"$tmp/err"
case $? in
0) grep -q "Read-only file system" "$tmp/err" && ok "$(tail -n 1 "$tmp/err")" || bad "read-only: $(cat "$tmp/err")" ;;
77 | 126 | 127) echo "NOT TESTED: nothing can be mounted here: $(head -n 1 "$tmp/err")" ;;
*) grep -qi "unshare" "$tmp/err" && echo "NOT TESTED: $(head -n 1 "$tmp/err")" || bad "read-only medium: $(cat "$tmp/err")" ;;
esac

if [ $failed -gt 0 ]; then echo "[  FAILED  ] $failed test(s)."; fi
echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ]
