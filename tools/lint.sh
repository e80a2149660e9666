#!/usr/bin/env bash
# All of the linters, each run even when one before it complains.
set -u
cd "$(dirname "$0")/.."
status=0
for check in "ruff check -q ." "ruff format -q --check ." "mypy --no-error-summary" \
    "mypy --no-error-summary --follow-imports=silent tools"; do
    # shellcheck disable=SC2086  # the words of $check are the command line
    .venv/bin/python -m $check || { echo "lint: failed: $check" >&2; status=1; }
done
for script in tools/*.sh .ci/run; do
    bash -n "$script" || status=1
done
exit $status
