#!/usr/bin/env bash
# Get the producers of Debian 13 for the interop tests: skopeo 1.18 (zstd:chunked with tar-split) and
# ctr-remote (eStargz, zstd:chunked), which needs containerd; and podman 5, which pulls zstd:chunked
# in parts.  They and their libraries are unpacked below .interop/producers, nothing is installed;
# they run through that folder's own loader.  Does nothing where they are there; says why and goes
# on where it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES="skopeo stargz-snapshotter containerd podman"
LIBRARIES="libc6 libgpgme11t64 libassuan9 libgpg-error0 libsqlite3-0 libsubid5 libdevmapper1.02.1
libselinux1 libpcre2-8-0 libudev1 libcap2 libbtrfs0t64 libaudit1 libcap-ng0 libcrypt1 libseccomp2"
SUITE=trixie
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
TARGET=.interop/producers

skip() {
    echo "setup: no newer producers for the tests: $*" >&2
    exit 0
}

if [ -x $TARGET/usr/bin/containerd ] && [ -x $TARGET/usr/bin/ctr-remote ] &&
    [ -x $TARGET/usr/bin/podman ]; then
    exit 0
fi
for program in apt-get dpkg-deb; do
    command -v $program >/dev/null || skip "no $program"
done
[ -e $KEYRING ] || skip "no $KEYRING (Debian's, or the package debian-archive-keyring)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Where this machine gets Debian from: a mirror nearby, perhaps the only one that it reaches.
uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    grep -v security | head -n 1 || true)
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/tree"
echo "deb [signed-by=$KEYRING] ${uri:-http://deb.debian.org/debian} $SUITE main" \
    >"$work/sources.list"
# The machine's apt is not touched; its sandbox user could not reach this folder.
apt() {
    timeout 300 apt-get -qq -o APT::Sandbox::User= -o "Dir::Etc::sourcelist=$work/sources.list" \
        -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists" \
        -o "Dir::Cache=$work/cache" -o APT::Get::List-Cleanup=0 "$@" </dev/null
}
echo "setup: fetching $PACKAGES of $SUITE"
apt update >"$work/log" 2>&1 || skip "apt-get update: $(tail -n 1 "$work/log")"
mkdir "$work/debs"
# shellcheck disable=SC2046,SC2086  # the words are the packages
(cd "$work/debs" && apt download $(printf "%s/$SUITE " $PACKAGES $LIBRARIES) >"$work/log" 2>&1) ||
    skip "apt-get download: $(tail -n 1 "$work/log")"
for package in "$work"/debs/*.deb; do
    dpkg-deb -x "$package" "$work/tree"
done
mkdir -p .interop
rm -rf $TARGET
mv "$work/tree" $TARGET
