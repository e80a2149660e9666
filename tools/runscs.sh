#!/usr/bin/env bash
# Get two of Debian 12's gVisors for tests and the bench: that of the release (ptrace, checkpoints of
# one file) and that of its backports (systrap, three files).  They are unpacked below .interop/,
# nothing is installed.  Does nothing where both are there; says why and goes on where it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITES="bookworm bookworm-backports"
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
TARGET=.interop

skip() {
    echo "setup: no runsc for the tests: $*" >&2
    exit 0
}

# Where this machine gets Debian from: a mirror nearby, perhaps the only one that it reaches.
mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' \
        2>/dev/null | head -n 1
}

wanted=
for suite in $SUITES; do
    [ -x "$TARGET/runsc-$suite/usr/bin/runsc" ] || wanted="$wanted $suite"
done
[ -n "$wanted" ] || exit 0
for program in apt-get dpkg-deb; do
    command -v $program >/dev/null || skip "no $program"
done
[ -e $KEYRING ] || skip "no $KEYRING (Debian's, or the package debian-archive-keyring)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
uri=$(mirror)
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
for suite in $SUITES; do
    echo "deb [signed-by=$KEYRING] ${uri:-http://deb.debian.org/debian} $suite main"
done >"$work/sources.list"
# Nothing of the machine's apt is read or written but its configuration; the sandbox user of apt
# could not reach this folder.
apt() {
    timeout 300 apt-get -qq -o APT::Sandbox::User= -o "Dir::Etc::sourcelist=$work/sources.list" \
        -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists" \
        -o "Dir::Cache=$work/cache" -o APT::Get::List-Cleanup=0 "$@" </dev/null
}
echo "setup: fetching runsc of$wanted"
apt update >"$work/log" 2>&1 || skip "apt-get update: $(tail -n 1 "$work/log")"
for suite in $wanted; do
    mkdir "$work/$suite"
    if ! (cd "$work/$suite" && apt download "runsc/$suite" >"$work/log" 2>&1); then
        skip "apt-get download runsc/$suite: $(tail -n 1 "$work/log")"
    fi
    mkdir -p $TARGET
    rm -rf "$TARGET/runsc-$suite"
    dpkg-deb -x "$work/$suite/"*.deb "$work/$suite/tree"
    mv "$work/$suite/tree" "$TARGET/runsc-$suite"
done
