#!/usr/bin/env bash
# Build the programs that are written in Go, for the interop tests: crane, BuildKit's daemon with its
# OCI worker, and notation.  They come from the Go module proxy, at the versions below, into
# .interop/go/bin; nothing is installed.  Does nothing where they are there; says why and goes on
# where it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."

CRANE=github.com/google/go-containerregistry@v0.20.6
BUILDKIT=github.com/moby/buildkit@v0.25.1
NOTATION=github.com/notaryproject/notation@v1.3.2
TARGET=$PWD/.interop/go/bin

# build MODULE@VERSION PROGRAM…: programs are folders of the module's cmd.
build() {
    local module=$1 program wanted=
    shift
    for program in "$@"; do
        [ -x "$TARGET/$program" ] || wanted="$wanted $program"
    done
    [ -n "$wanted" ] || return 0
    if ! command -v go >/dev/null; then
        echo "setup: no$wanted for the tests: Go is not installed" >&2
        return
    fi
    mkdir -p "$TARGET"
    echo "setup: building$wanted"
    # shellcheck disable=SC2086  # the words are the programs
    compile "$module" $wanted >"$TARGET/log" 2>&1 ||
        echo "setup: no$wanted for the tests: $(tail -n 1 "$TARGET/log")" >&2
}

# As a dependency of a module of our own: `go install` would ask the proxy for the list of versions,
# which not every proxy has.
compile() (
    module=$1
    shift
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work" || exit 1
    printf 'module producers\ngo 1.24\n' >go.mod
    timeout 600 go get "$module" || exit 1
    for program in "$@"; do
        CGO_ENABLED=0 GOFLAGS=-mod=mod timeout 1800 go build -o "$TARGET/$program" \
            "${module%@*}/cmd/$program" || exit 1
    done
)

build "$CRANE" crane
build "$BUILDKIT" buildctl buildkitd
build "$NOTATION" notation
