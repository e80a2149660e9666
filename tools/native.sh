#!/usr/bin/env bash
# Compile the native driver's core with cc alone.
#
#   tools/native.sh build [FLAG…]    lazyfs/_native.abi3.so, for this checkout
#   tools/native.sh test             native/tests and a short run of native/fuzz, with sanitizers
#   tools/native.sh fuzz TARGET [ARGUMENT…]    a libFuzzer run of one target; needs clang and its
#                                    compiler-rt (Debian: clang-14 libclang-rt-14-dev)
#   tools/native.sh fuzz-plain TARGET          the same target without libFuzzer; prints the program
set -euo pipefail
cd "$(dirname "$0")/.."
CC=${CC:-cc}
OUT=build/native
PYTHON=${PYTHON:-.venv/bin/python}
BASE="-std=gnu11 -g -pthread -Inative/include -Inative/src"
WARNINGS="-Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Werror"
SANITIZERS="-O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"

# shellcheck disable=SC2086  # the words of the variables are the command line
build() {
    local include
    include=$($PYTHON -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    $CC $BASE -O2 -fPIC -fvisibility=hidden $WARNINGS -I"$include" "$@" \
        -shared native/src/*/*.c native/module*.c -o lazyfs/_native.abi3.so.new
    mv lazyfs/_native.abi3.so.new lazyfs/_native.abi3.so # who has the old one mapped keeps it
    strip --strip-debug lazyfs/_native.abi3.so
}

# sanitized PROGRAM SOURCE…: one of them and the core
# shellcheck disable=SC2086
sanitized() {
    local program=$1
    shift
    $CC $BASE $WARNINGS -Wconversion $SANITIZERS -Inative/tests \
        native/src/*/*.c native/tests/support_*.c "$@" -o "$program"
}

# parts_of native/fuzz/fuzz_TARGET.c: the rest of it, which is in native/fuzz/TARGET
parts_of() {
    local target=${1##*/fuzz_}
    find "native/fuzz/${target%.c}" -name '*.c' 2>/dev/null | sort
}

# shellcheck disable=SC2046,SC2086
run_tests() {
    local source program rounds
    mkdir -p "$OUT"
    for source in native/tests/test_*.c native/fuzz/fuzz_*.c; do
        program=$OUT/$(basename "$source" .c)
        rounds=
        case $source in
        native/fuzz/*) set -- native/fuzz/main.c $(parts_of "$source") ;;
        *) set -- ;;
        esac
        case $source in
        */fuzz_tree.c) rounds=100 ;; # each is a stack of layers
        esac
        sanitized "$program" "$source" "$@"
        timeout 120 "$program" $rounds || { echo "failed: $program" >&2; exit 1; }
        echo "ok    $(basename "$program")"
    done
}

# shellcheck disable=SC2046,SC2086
fuzz() {
    local target=$1 clang
    shift
    [ -f "native/fuzz/fuzz_$target.c" ] || { echo "no such target: $target" >&2; exit 2; }
    clang=$(command -v "${CLANG:-clang}" || command -v clang-14) ||
        { echo "libFuzzer needs clang (Debian: clang-14 libclang-rt-14-dev)" >&2; exit 2; }
    mkdir -p "$OUT/corpus-$target"
    $clang $BASE -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        -Inative/tests native/src/*/*.c native/tests/support_*.c \
        $(parts_of "native/fuzz/fuzz_$target.c") "native/fuzz/fuzz_$target.c" -o "$OUT/libfuzzer_$target"
    "$OUT/libfuzzer_$target" -artifact_prefix="$OUT/finding-$target-" -timeout=60 \
        "$OUT/corpus-$target" "$@"
}

# shellcheck disable=SC2046
fuzz_plain() {
    mkdir -p "$OUT"
    sanitized "$OUT/fuzz_$1" "native/fuzz/fuzz_$1.c" native/fuzz/main.c \
        $(parts_of "native/fuzz/fuzz_$1.c")
    echo "$OUT/fuzz_$1"
}

case ${1:-} in
build) shift; build "$@" ;;
test) run_tests ;;
fuzz) shift; fuzz "$@" ;;
fuzz-plain) shift; fuzz_plain "$@" ;;
*) sed -n '2,9p' "$0" | cut -c 3-; exit 2 ;;
esac
