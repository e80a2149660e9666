#!/usr/bin/env bash
# Write the two locks again, keeping every version that still fits:
#   requirements.lock              lazyfs, its dependencies and the tools of development
#   tools/build-requirements.lock  what builds pyfuse3 and lazyfs; removed after the installation
# tools/lock.sh --upgrade takes the newest versions instead.  Hashes only: no index, no path.
set -euo pipefail
cd "$(dirname "$0")/.."

PIP_TOOLS="pip-tools==7.5.3"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python=/usr/bin/python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=python3
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q "$PIP_TOOLS"

compile() { # OUTPUT INPUT ARGUMENTS…
    local output=$1 input=$2
    shift 2
    "$work/venv/bin/pip-compile" -q --generate-hashes --strip-extras --allow-unsafe \
        --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
        --output-file "$output" "$@" "$input"
}

compile requirements.lock pyproject.toml --extra dev "$@"
compile tools/build-requirements.lock tools/build-requirements.in "$@"
