#!/usr/bin/env bash
# Make this checkout ready to run: Debian/Ubuntu packages that are missing (as root; anybody else
# is told the one line to type), a virtual environment in .venv, the locked dependencies, lazyfs.
# Does nothing, quickly, when all of it is there.
#
#   tools/setup.sh             what lazyfs and its tests need
#   tools/setup.sh --interop   also the foreign programs that optional tests and the bench run
set -euo pipefail
cd "$(dirname "$0")/.."

INTEROP_PROGRAMS="docker-registry:docker-registry nginx:nginx skopeo:skopeo umoci:umoci mkfs.erofs:erofs-utils
    rsync:rsync setfacl:acl setfattr:attr setcap:libcap2-bin busybox:busybox-static
    crun:crun runc:runc bwrap:bubblewrap podman:podman buildah:buildah bsdtar:libarchive-tools"
STAMP=.venv/lazyfs.stamp
PIP=.venv/bin/pip

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The system's Python first: a Python below somebody's home cannot be run by other users, which
# rootless tests and mounts need.
choose_python() {
    local candidate
    for candidate in /usr/bin/python3 "$(command -v python3 || true)"; do
        if [ -n "$candidate" ] && is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

# Names of the Debian packages that lack, found by what they bring: it may come from elsewhere.
missing_packages() {
    local python header
    python=$(choose_python)
    command -v fusermount3 >/dev/null || echo fuse3
    command -v cc >/dev/null || echo gcc
    echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1 || echo libc6-dev
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    if [ -z "$python" ]; then
        echo python3 python3-venv python3-dev
        return
    fi
    "$python" -c 'import ensurepip' 2>/dev/null || echo python3-venv
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
    [ -e "$header" ] || echo python3-dev
}

missing_programs() {
    local pair
    for pair in $INTEROP_PROGRAMS; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done
}

# install_packages ESSENTIAL PACKAGE…: 1 for packages that must come, 0 for those that may lack.
install_packages() {
    local essential=$1 log
    shift
    [ $# -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "setup: these packages are missing; as root:" >&2
        echo "    apt-get install --no-install-recommends $*" >&2
        [ "$essential" = 0 ] || exit 1
        return 0
    fi
    say "installing $*"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >"$log" 2>&1 </dev/null || true # one dead list must not stop the others
    if [ "$essential" = 0 ]; then
        # Not every release has them all.
        set -- $(for package in "$@"; do
            apt-cache show "$package" >/dev/null 2>&1 && echo "$package" || true
        done)
        [ $# -gt 0 ] || return 0
    fi
    if ! apt-get -qq -y -o DPkg::Lock::Timeout=120 install --no-install-recommends "$@" \
        >>"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        fail "apt-get could not install: $*"
    fi
    rm -f "$log"
}

# What .venv was made from, a line for the dependencies and one for lazyfs itself.  The path is in
# it because an environment cannot be moved.
fingerprint() {
    {
        pwd
        "$1" -V
        cat requirements.lock tools/build-requirements.lock
    } | sha256sum
    { cat pyproject.toml tools/setup.sh; find native -name '*.[ch]' | LC_ALL=C sort | xargs -r cat; } |
        sha256sum
}

install_dependencies() {
    local python=$1
    say "making .venv with $python ($("$python" -V))"
    if ! { [ "$(.venv/bin/python -c 'import sys; print(sys.prefix)')" = "$(pwd)/.venv" ] &&
        [ "$(.venv/bin/python -V)" = "$("$python" -V)" ] && grep -q "^#!$(pwd)/" .venv/bin/pip; } 2>/dev/null; then
        "$python" -m venv --clear .venv
    fi
    # pyfuse3 comes as source.  Its build tools are locked too, so they are installed here instead
    # of by pip's build isolation, which checks no hashes; all but setuptools go away again.
    $PIP install -q --require-hashes -r tools/build-requirements.lock
    $PIP install -q --no-build-isolation --require-hashes -r requirements.lock
    $PIP uninstall -q -y Cython setuptools-scm vcs-versioning
}

install_lazyfs() {
    say "installing lazyfs, compiling its native driver"
    # "compat" makes a plain .pth file; the default is a finder that costs each start 13 ms.
    $PIP install -q --no-build-isolation --no-deps --config-settings editable_mode=compat -e .
    compgen -G 'lazyfs/_native*.so' >/dev/null || say "the native driver could not be compiled"
}

# shellcheck disable=SC2046  # the words are the packages
install_packages 1 $(missing_packages)
if [ "${1:-}" = --interop ]; then
    # shellcheck disable=SC2046
    install_packages 0 $(missing_programs)
    tools/runscs.sh
    tools/producers.sh
    tools/go_producers.sh
fi
python=$(choose_python)
[ -n "$python" ] || fail "no Python: got $(python3 -V 2>&1 || true), expected 3.11 or newer"
wanted=$(fingerprint "$python")
found=$(cat "$STAMP" 2>/dev/null || true)
.venv/bin/python -c '' 2>/dev/null || found=
[ "$wanted" = "$found" ] && exit 0
started=$SECONDS
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
rm -f "$STAMP"
if [ "$(head -n 1 <<<"$wanted")" != "$(head -n 1 <<<"$found")" ]; then
    install_dependencies "$python"
fi
install_lazyfs
echo "$wanted" >"$STAMP"
say "ready after $((SECONDS - started)) s"
