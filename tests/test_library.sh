#!/bin/sh
# What the built library and programs may contain: dependencies, exported symbols, size.
set -u
build=${BUILD:-build}
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }

needed=$(readelf -d "$build/lib/libdiffpak.so" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort | tr '\n' ' ')
extra=$(echo "$needed" | tr ' ' '\n' | grep -vE '^(libc\.so\.6|libm\.so\.6|libpthread\.so\.0|ld-linux.*|)$')
[ -z "$extra" ] && ok "libdiffpak.so needs $needed" || bad "libdiffpak.so needs $extra too"

# "address T dpk_open@@DIFFPAK_0.1"; the version itself is an A
dynamic=$(nm -D --defined-only "$build/lib/libdiffpak.so" | awk '$2 != "A" {print $3}' | sort)
foreign=$(echo "$dynamic" | grep -v '^dpk_')
[ -z "$foreign" ] && ok "every exported symbol is dpk_*" || bad "exported: $foreign"

declared=$(sed -n 's/^DPK_API.* \**\(dpk_[a-z_]*\)(.*/\1/p' runtime/diffpak.h | sort)
exported=$(echo "$dynamic" | sed 's/@.*//')
[ "$declared" = "$exported" ] && ok "the exported symbols are those of diffpak.h" ||
    bad "diffpak.h and libdiffpak.so differ: $(printf '%s\n%s\n' "$declared" "$exported" | sort | uniq -u | tr '\n' ' ')"

plain=$(echo "$dynamic" | grep -v '@@DIFFPAK_')
[ -z "$plain" ] && ok "every exported symbol has a version" || bad "without a version: $plain"
readelf -d "$build/lib/libdiffpak.so" | grep -q 'SONAME.*\[libdiffpak\.so\.[0-9]*\]' && ok "the library has a soname" ||
    bad "no soname: $(readelf -d "$build/lib/libdiffpak.so" | grep SONAME)"

outside=$(nm -g --defined-only "$build/lib/libdiffpak.a" 2>/dev/null | awk 'NF == 3 {print $3}' | grep -v '^dpk_' | sort -u)
[ -z "$outside" ] && ok "every external symbol of libdiffpak.a is dpk_*" || bad "external in libdiffpak.a: $outside"

cp "$build/bin/diffpak" "$build/diffpak.stripped" && strip "$build/diffpak.stripped"
size=$(wc -c <"$build/diffpak.stripped")
rm -f "$build/diffpak.stripped"
[ "$size" -lt 1048576 ] && ok "stripped diffpak is $size bytes" || bad "stripped diffpak is $size bytes, want under 1048576"

for f in $(git ls-files 2>/dev/null | grep -E '\.(c|h|cu|cuh|py|sh)$' | grep -v '^formats/xxhash.h$'); do
    lines=$(wc -l <"$f")
    [ "$lines" -le 1000 ] || bad "$f has $lines lines, the limit is 1000"
done
[ "$failed" -eq 0 ] && ok "no source file is over 1000 lines"

echo "[  PASSED  ] $passed test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)"; exit 1; }
