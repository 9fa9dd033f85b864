#!/bin/sh
# Run test programs and scripts, show each one's failures, and close with a line of totals.
# Exit status 1 if anything failed.
# Usage: tests/run.sh LOGDIR PROGRAM...   (RUN: what runs a program of another processor)
set -u
logs=$1; shift
mkdir -p "$logs"
passed=0 failed=0
for t in "$@"; do
    name=$(basename "$t")
    log=$logs/$name.log
    start=$(date +%s)
    case $t in *.sh) run= ;; *) run=${RUN-} ;; esac
    timeout 900 $run "$t" >"$log" 2>&1
    status=$?
    p=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test(s).*/\1/p' "$log" | tail -n 1)
    f=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test(s).*/\1/p' "$log" | tail -n 1)
    p=${p:-0} f=${f:-0}
    if [ $status -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ $status -eq 0 ] && [ "$p" -eq 0 ]; then echo "$name: ran no test"; f=1; fi
    passed=$((passed + p)) failed=$((failed + f))
    printf '%-28s %4d passed %3d failed  %4d s\n' "$name" "$p" "$f" $(($(date +%s) - start))
    if [ "$f" -ne 0 ]; then
        echo "---- $log (exit status $status)"
        grep -E 'ERROR|FAILED|error:|runtime error|Sanitizer|Segmentation|line [0-9]+' "$log" | head -n 40
        tail -n 15 "$log"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
