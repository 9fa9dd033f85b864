#!/bin/sh
# An install into an empty root, and what people do with one: pkg-config, CMake, static linking, ctypes, completion,
# manual, uninstall. Last: the same sources in another folder give the same bytes.
set -u
build=${BUILD:-build}
make=${MAKE:-make}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/diffpak-install.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "ERROR: $1"; }
works() {
    what=$1; shift
    if "$@" >"$tmp/out" 2>"$tmp/err"; then ok "$what"
    else bad "$what: exit status $?: $(tail -n 3 "$tmp/err" "$tmp/out")"; fi
}
# The variables given to the outer make (CC, OPT, ...) stay, but no sanitizer and no other job server.
again() { env -u MAKELEVEL "$make" --no-print-directory "$@" 2>&1; }

root=$tmp/root prefix=/opt/d
usr=$root$prefix
works "make install" again BUILD="$build" DESTDIR="$root" PREFIX=$prefix install
version=$("$usr/bin/diffpak" --version | cut -d' ' -f2)
so=$usr/lib/libdiffpak.so
[ "$(readlink -f "$so")" = "$(readlink -f "$usr/lib/libdiffpak.so.$version")" ] && ok "libdiffpak.so leads to .so.$version" ||
    bad "libdiffpak.so: $(ls -l "$usr/lib")"
for p in diffpak diffpak-convert diffpak-quantize; do
    [ "$("$usr/bin/$p" --version)" = "$p $version" ] && ok "$p is $version" || bad "$p: $("$usr/bin/$p" --version 2>&1)"
done
grep -rq '@[A-Z]*@' "$usr/lib/pkgconfig" "$usr/lib/cmake" && bad "placeholders are left" || ok "no placeholder is left"
grep -rqF "$root" "$usr/lib/pkgconfig" "$usr/lib/cmake" && bad "DESTDIR is in installed files" || ok "DESTDIR is in no file"

model=$tmp/model.dpk
works "installed diffpak-convert" "$usr/bin/diffpak-convert" models/shapes-xl -o "$model"

# embed.c in every way of linking; the pictures must be the same
export LD_LIBRARY_PATH=$usr/lib
cc=${CC:-cc}
pc() { PKG_CONFIG_SYSROOT_DIR=$root PKG_CONFIG_PATH=$usr/lib/pkgconfig pkg-config "$@" diffpak; }
[ "$(pc --modversion)" = "$version" ] && ok "pkg-config says $version" || bad "pkg-config: $(pc --modversion 2>&1)"
works "embed.c with pkg-config" $cc -std=c11 -Wall -Wextra -Werror tests/examples/embed.c $(pc --cflags --libs) -o "$tmp/embed"
works "embed.c runs" sh -c "'$tmp/embed' '$model' 'a red circle' >'$tmp/a.ppm'"
[ "$(head -c 15 "$tmp/a.ppm" | head -n 1)" = "P6 128 128 255" ] && ok "a picture of 128 x 128" || bad "picture: $(head -c 20 "$tmp/a.ppm" | head -n 1)"
readelf -V "$tmp/embed" | grep -q DIFFPAK_0 && ok "the program asks for a symbol version" || bad "no symbol version in the program"
"$tmp/embed" "$model" 'a red circle' 2 >"$tmp/b.ppm" 2>"$tmp/err"; got=$?
[ $got -eq 6 ] && [ ! -s "$tmp/b.ppm" ] && grep -q 'step 2 of 4' "$tmp/err" && ok "cancelled after two steps" ||
    bad "cancel: exit status $got: $(tail -n 2 "$tmp/err")"
"$tmp/embed" /dev/null x >"$tmp/b.ppm" 2>"$tmp/err"; got=$?
[ $got -ne 0 ] && [ "$(wc -l <"$tmp/err")" -eq 1 ] && ok "$(cat "$tmp/err")" || bad "no model: exit status $got: $(cat "$tmp/err")"
works "embed.c static" $cc -std=c11 tests/examples/embed.c $(pc --cflags) "$usr/lib/libdiffpak.a" -lm -pthread -o "$tmp/static"
works "embed.c static runs" sh -c "'$tmp/static' '$model' 'a red circle' >'$tmp/s.ppm'"
cmp -s "$tmp/a.ppm" "$tmp/s.ppm" && ok "same picture" || bad "the static library paints another picture"
if command -v c++ >/dev/null; then
    printf '#include <diffpak/diffpak.h>\nint main() { return dpk_version()[0] != 48; }\n' >"$tmp/v.cc"
    works "header in C++" c++ -Wall -Wextra -Werror "$tmp/v.cc" $(pc --cflags --libs) -o "$tmp/v"
    works "C++ program runs" "$tmp/v"
fi
if command -v cmake >/dev/null; then
    works "cmake finds it" cmake -S tests/examples/cmake -B "$tmp/cm" -DCMAKE_PREFIX_PATH="$usr" -DCMAKE_C_COMPILER="$cc"
    works "cmake builds it" cmake --build "$tmp/cm"
    for p in embed embed_static; do
        works "cmake's $p runs" sh -c "'$tmp/cm/$p' '$model' 'a red circle' >'$tmp/c.ppm'"
        cmp -s "$tmp/a.ppm" "$tmp/c.ppm" && ok "same picture" || bad "cmake's $p paints another picture"
    done
    printf 'cmake_minimum_required(VERSION 3.13)\nproject(x C)\nfind_package(diffpak 0.2 REQUIRED)\n' >"$tmp/CMakeLists.txt"
    cmake -S "$tmp" -B "$tmp/cm2" -DCMAKE_PREFIX_PATH="$usr" >/dev/null 2>&1 && bad "cmake takes $version for 0.2" || ok "cmake refuses $version for 0.2"
else
    echo "no cmake here: its example was not built"
fi
if python3 tests/examples/embed.py "$so" "$model" "a red circle" >"$tmp/py" 2>"$tmp/err"; then
    ids=$("$usr/bin/diffpak" tokens "$model" "a red circle" --json | tr -d ' \n')
    sed -n 's/^tokens \[\(.*\)\]/\1/p' "$tmp/py" | tr -d ' ' >"$tmp/ids"
    while read -r line; do
        case $ids in *"$line"*) ok "ctypes: tokens $line" ;; *) bad "ctypes: tokens $line, want $ids" ;; esac
    done <"$tmp/ids"
    [ "$(wc -l <"$tmp/ids")" -eq 2 ] && grep -q '^made context' "$tmp/py" && grep -q '^noise 1.5410 -0.2934' "$tmp/py" &&
        grep -q '^error 2 .*no/such/file' "$tmp/py" && ok "ctypes: context, noise, error" || bad "ctypes: $(cat "$tmp/py")"
else
    bad "ctypes: $(tail -n 2 "$tmp/err")"
fi

# Every option of --help is in the manual and is offered by bash
for p in runtime/diffpak convert/diffpak-convert quantize/diffpak-quantize; do
    name=${p##*/}
    "$usr/bin/$name" --help | grep -oE -- '(^|[ [(])--?[a-z][a-z-]*' | tr -d ' [(' | sort -u >"$tmp/options"
    sed 's/\\-/-/g; s/\\f[A-Z]//g' "$usr/share/man/man1/$name.1" >"$tmp/man"
    missing=$(while read -r o; do grep -qF -- "$o" "$tmp/man" || echo "$o"; done <"$tmp/options")
    [ -z "$missing" ] && ok "$name.1 has all $(wc -l <"$tmp/options") options" || bad "$p.1 does not mention" $missing
    if command -v bash >/dev/null; then
        bash -c '. "$1"; COMP_WORDS=("$2" x -); COMP_CWORD=2; _diffpak; printf "%s\n" "${COMPREPLY[@]}"' x \
            "$usr/share/bash-completion/completions/$name" "$usr/bin/$name" | sort -u >"$tmp/offered"
        cmp -s "$tmp/options" "$tmp/offered" && ok "bash offers them" || bad "bash offers $(tr '\n' ' ' <"$tmp/offered")"
    fi
done
if command -v man >/dev/null; then
    for f in "$usr"/share/man/man?/*; do
        warnings=$(LC_ALL=C.UTF-8 MANWIDTH=100 man --warnings -l "$f" 2>&1 >/dev/null)
        [ -z "$warnings" ] && ok "$(basename "$f") is well formed" || bad "$(basename "$f"): $warnings"
    done
fi

touch "$usr/lib/theirs"
works "make uninstall" again BUILD="$build" DESTDIR="$root" PREFIX=$prefix uninstall
left=$(find "$root" ! -type d)
[ "$left" = "$usr/lib/theirs" ] && ok "uninstall leaves nothing but what others put there" || bad "uninstall leaves $left"

# Reproducible: another folder, another build folder, the same bytes
mkdir "$tmp/copy"
tar -cf - --exclude=./.git --exclude='./build*' --exclude='*.dpk' --exclude='./models' --exclude='./tests/data' . | tar -xf - -C "$tmp/copy"
works "a build in another folder" again -j2 -C "$tmp/copy" BUILD="$tmp/elsewhere" all
for f in lib/libdiffpak.a lib/libdiffpak.so bin/diffpak bin/diffpak-convert bin/diffpak-quantize; do
    cmp -s "$build/$f" "$tmp/elsewhere/$f" && ok "$f: same bytes" || bad "$f differs in another folder"
done

echo "[  PASSED  ] $passed test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)"; exit 1; }
