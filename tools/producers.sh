#!/usr/bin/env bash
# Get what newer Debians have for the interop tests: of Debian 13 skopeo 1.18 (zstd:chunked with
# tar-split; signatures of cosign), ctr-remote (eStargz, zstd:chunked), which needs containerd, podman
# 5, which pulls zstd:chunked in parts, and cosign 2; of unstable cosign 3.  They and their libraries
# are unpacked below .interop, nothing is installed; they run through the loader that lies there.
# Does nothing where they are there; says why and goes on where it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES="skopeo stargz-snapshotter containerd podman"
LIBRARIES="libc6 libgpgme11t64 libassuan9 libgpg-error0 libsqlite3-0 libsubid5 libdevmapper1.02.1
libselinux1 libpcre2-8-0 libudev1 libcap2 libbtrfs0t64 libaudit1 libcap-ng0 libcrypt1 libseccomp2"
COSIGN_LIBRARIES="libc6 libpcsclite1"
SUITE=trixie
NEWEST=sid
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
TARGET=.interop

skip() {
    echo "setup: no newer producers for the tests: $*" >&2
    exit 0
}

has() {
    local folder=$1 program
    shift
    for program in "$@"; do
        [ -x "$TARGET/$folder/usr/bin/$program" ] || return 1
    done
}

# Where this machine gets Debian from: a mirror nearby, perhaps the only one that it reaches.
mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        grep -v security | head -n 1 || true
}

# The machine's apt is not touched; its sandbox user could not reach this folder.
apt() {
    timeout 300 apt-get -qq -o APT::Sandbox::User= -o "Dir::Etc::sourcelist=$work/sources.list" \
        -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists" \
        -o "Dir::Cache=$work/cache" -o APT::Get::List-Cleanup=0 "$@" </dev/null
}

# unpack SUITE FOLDER PACKAGE…: packages of a suite, below .interop/FOLDER.
unpack() {
    local suite=$1 folder=$2 debs package
    shift 2
    echo "setup: fetching $1 of $suite"
    debs=$work/$folder
    mkdir -p "$debs/tree"
    if ! (cd "$debs" && apt download $(printf "%s/$suite " "$@") >"$work/log" 2>&1); then
        echo "setup: no $1 of $suite for the tests: $(tail -n 1 "$work/log")" >&2
        return
    fi
    for package in "$debs"/*.deb; do
        dpkg-deb -x "$package" "$debs/tree"
    done
    mkdir -p $TARGET
    rm -rf "${TARGET:?}/$folder"
    mv "$debs/tree" "$TARGET/$folder"
}

has producers containerd ctr-remote podman skopeo && has cosign-$SUITE cosign &&
    has cosign-$NEWEST cosign && exit 0
for program in apt-get dpkg-deb; do
    command -v $program >/dev/null || skip "no $program"
done
[ -e $KEYRING ] || skip "no $KEYRING (Debian's, or the package debian-archive-keyring)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
uri=$(mirror)
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
for suite in $SUITE $NEWEST; do
    echo "deb [signed-by=$KEYRING] ${uri:-http://deb.debian.org/debian} $suite main"
done >"$work/sources.list"
# One suite that cannot be had must not stop the other.
apt update >"$work/log" 2>&1 || echo "setup: apt-get update: $(tail -n 1 "$work/log")" >&2
# shellcheck disable=SC2086  # the words are the packages
has producers containerd ctr-remote podman skopeo || unpack $SUITE producers $PACKAGES $LIBRARIES
for suite in $SUITE $NEWEST; do
    # shellcheck disable=SC2086
    has cosign-$suite cosign || unpack $suite cosign-$suite cosign $COSIGN_LIBRARIES
done
