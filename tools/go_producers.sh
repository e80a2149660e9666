#!/usr/bin/env bash
# Build the producers that are written in Go, for the interop tests: crane, and BuildKit's daemon
# with its OCI worker.  They come from the Go module proxy, at the versions below, into
# .interop/go/bin; nothing is installed.  Does nothing where they are there; says why and goes on
# where it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."

CRANE=github.com/google/go-containerregistry@v0.20.6
BUILDKIT=github.com/moby/buildkit@v0.25.1
TARGET=$PWD/.interop/go/bin

skip() {
    echo "setup: no producers in Go for the tests: $*" >&2
    exit 0
}

# build MODULE@VERSION PROGRAM…: programs are folders of the module's cmd.
build() {
    local module=$1 program work
    shift
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # this folder, now
    trap "rm -rf '$work'" RETURN
    printf 'module producers\ngo 1.24\n' >"$work/go.mod"
    (
        cd "$work"
        timeout 600 go get "$module"
        for program in "$@"; do
            [ -x "$TARGET/$program" ] ||
                CGO_ENABLED=0 GOFLAGS=-mod=mod timeout 1800 go build -o "$TARGET/$program" \
                    "${module%@*}/cmd/$program"
        done
    ) >"$TARGET/log" 2>&1 || skip "${module%@*}: $(tail -n 1 "$TARGET/log")"
}

if [ -x "$TARGET/crane" ] && [ -x "$TARGET/buildkitd" ] && [ -x "$TARGET/buildctl" ]; then
    exit 0
fi
command -v go >/dev/null || skip "Go is not installed"
mkdir -p "$TARGET"
echo "setup: building crane and BuildKit"
build "$CRANE" crane
build "$BUILDKIT" buildctl buildkitd
