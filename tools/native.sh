#!/usr/bin/env bash
# Compile the native driver's core with cc alone.
#
#   tools/native.sh build [FLAG…]    lazyfs/_native.abi3.so, for this checkout
#   tools/native.sh test             native/tests and a short run of native/fuzz, with sanitizers
#   tools/native.sh fuzz TARGET [ARGUMENT…]    a libFuzzer run of one target; needs clang
set -euo pipefail
cd "$(dirname "$0")/.."
CC=${CC:-cc}
OUT=build/native
PYTHON=${PYTHON:-.venv/bin/python}
BASE="-std=gnu11 -g -pthread -Inative/include"
WARNINGS="-Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Werror"
SANITIZERS="-O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"

# shellcheck disable=SC2086  # the words of the variables are the command line
build() {
    local include
    include=$($PYTHON -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    $CC $BASE -O2 -fPIC -fvisibility=hidden $WARNINGS -I"$include" "$@" \
        -shared native/src/*.c native/module*.c -o lazyfs/_native.abi3.so.new
    mv lazyfs/_native.abi3.so.new lazyfs/_native.abi3.so # who has the old one mapped keeps it
    strip --strip-debug lazyfs/_native.abi3.so
}

# shellcheck disable=SC2086
run_tests() {
    local source program
    mkdir -p "$OUT"
    for source in native/tests/test_*.c native/fuzz/fuzz_*.c; do
        program=$OUT/$(basename "$source" .c)
        case $source in
        native/fuzz/*) set -- native/fuzz/main.c ;;
        *) set -- ;;
        esac
        $CC $BASE $WARNINGS -Wconversion $SANITIZERS -Inative/src -Inative/tests \
            native/src/*.c native/tests/support_*.c "$source" "$@" -o "$program"
        timeout 120 "$program" || { echo "failed: $program" >&2; exit 1; }
        echo "ok    $(basename "$program")"
    done
}

# shellcheck disable=SC2086
fuzz() {
    local target=$1
    shift
    mkdir -p "$OUT/corpus-$target"
    clang $BASE -O1 -fsanitize=fuzzer,address,undefined -Inative/src -Inative/tests \
        native/src/*.c native/tests/support_*.c "native/fuzz/fuzz_$target.c" -o "$OUT/fuzz_$target"
    "$OUT/fuzz_$target" "$OUT/corpus-$target" "$@"
}

case ${1:-} in
build) shift; build "$@" ;;
test) run_tests ;;
fuzz) shift; fuzz "$@" ;;
*) sed -n '2,7p' "$0" | cut -c 3-; exit 2 ;;
esac
