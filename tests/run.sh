#!/bin/sh
# Run test programs and scripts, as many at a time as there are cores, show each one's failures, and close with a line of
# totals. Exit status 1 if anything failed.
# Usage: tests/run.sh LOGDIR PROGRAM...   (RUN: what runs a program of another processor; JOBS: how many at a time;
# TEST_TIMEOUT: seconds for each, 900)
set -u

# One program: its lines go out at once, so that programs side by side do not mix theirs.
run_one() {
    name=$(basename "$2") log=$1/$(basename "$2").log
    start=$(date +%s)
    case $2 in *.sh) run= ;; *) run=${RUN-} ;; esac
    timeout "${TEST_TIMEOUT:-900}" $run "$2" >"$log" 2>&1
    status=$?
    p=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test(s).*/\1/p' "$log" | tail -n 1)
    f=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test(s).*/\1/p' "$log" | tail -n 1)
    p=${p:-0} f=${f:-0} note=
    if [ $status -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ $status -eq 0 ] && [ "$p" -eq 0 ]; then f=1 note="$name: ran no test"; fi
    if [ "$f" -ne 0 ]; then
        note="$note
---- $log (exit status $status)
$(grep -E 'ERROR|FAILED|error:|runtime error|Sanitizer|Segmentation|line [0-9]+' "$log" | head -n 40)
$(tail -n 15 "$log")"
    fi
    printf '%-28s %4d passed %3d failed  %4d s\n%s' "$name" "$p" "$f" $(($(date +%s) - start)) "${note:+$note
}"
    echo "$p $f" >"$1/$name.result"
}

if [ "$1" = --one ]; then
    run_one "$2" "$3"
    exit
fi
logs=$1; shift
mkdir -p "$logs"
rm -f "$logs"/*.result
printf '%s\n' "$@" | xargs -P "${JOBS:-$(nproc)}" -n 1 "$0" --one "$logs"
cat "$logs"/*.result | awk -v want=$# '{ passed += $1; failed += $2 }
    END { failed += want - NR; print passed " passed, " failed " failed"; exit failed > 0 }'
