#!/bin/sh
# Line coverage by gcov of the sources that were compiled to count: a line a file, the lines not reached by what they are, the total.
# Exit status 1 below WANT per cent. Usage: tests/coverage.sh OBJECTS WANT SOURCE...
set -u
objects=$1 want=$2; shift 2
for source in "$@"; do
    gcov -t -o "$objects/$(dirname "$source")" "$objects/${source%.c}.gcda" 2>/dev/null |
        awk -v file="$source" '
            # count : number : text; a source of one file may bring those of its headers
            { count = $0; sub(/:.*/, "", count); gsub(/[ *]/, "", count)
              number = $0; sub(/^[^:]*:/, "", number); sub(/:.*/, "", number); number += 0
              text = $0; sub(/^[^:]*:[^:]*:/, "", text) }
            number == 0 && text ~ /^Source:/ { on = text == "Source:" file; next }
            on && (count ~ /^[0-9]+$/) { reached++ }
            on && (count == "#####" || count == "=====") {
                sub(/^ +/, "", text)
                print "missed", file, number, text
                missed++
            }
            END { print "total", file, reached + 0, missed + 0 }'
done | awk -v want="$want" '
    $1 == "missed" {
        where = $2 ":" $3; $1 = $2 = $3 = ""; sub(/^ +/, "")
        if (/DPK_ENOMEM|no memory|out of memory|failed = true/) kind = "memory"
        else if (/DPK_EIO|cannot (read|write)|strerror/) kind = "io"
        else kind = "other"
        n[kind]++
        if (kind == "other") other = other sprintf("  %-34s %s\n", where, substr($0, 1, 90))
        next
    }
    { printf "%6.2f %%  %4d of %4d  %s\n", $3 + $4 ? 100 * $3 / ($3 + $4) : 0, $3, $3 + $4, $2
      reached += $3; all += $3 + $4; if ($3 + $4 == 0) none = none " " $2 }
    END {
        if (all == 0) { print "ERROR: nothing was counted"; exit 1 }
        share = 100 * reached / all
        printf "\nnot reached: %d lines that report a lack of memory, %d that report a failure of the system", n["memory"], n["io"]
        printf " (tests/test_faults.c),\nand %d others, defences that no valid caller meets or causes too large for a test:\n%s", n["other"], other
        printf "%.2f %% of %d lines, want %g %%\n", share, all, want
        if (none) print "ERROR: not counted:" none
        exit share < want || none != ""
    }'
