"""Who runs sandboxes: root, or a user with subordinate ids (subuid(5), subgid(5))."""

import os
import pwd
import shutil
from pathlib import Path

from lazyfs.sandbox.specs.spec import Rootless

SUBUID = Path("/etc/subuid")
SUBGID = Path("/etc/subgid")
HELPERS = ("newuidmap", "newgidmap")  # without them no lent id can be used
FILE_LIMIT = 1 << 20  # bytes


def rootless() -> Rootless | None:
    """Return what this process's user may map, None for root."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return None
    if not all(shutil.which(helper) for helper in HELPERS):
        return Rootless(uid, gid)
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = ""
    names = {str(uid), name} - {""}
    return Rootless(uid, gid, _lent(_text(SUBUID), names), _lent(_text(SUBGID), names))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_LIMIT).decode(errors="replace")
    except OSError:
        return ""


def _lent(text: str, names: set[str]) -> tuple[tuple[int, int], ...]:
    """Return the ranges (first, count) that a file lends to the user of these names."""
    ranges = []
    for line in text.splitlines():
        name, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdecimal() and count.isdecimal() and int(count) > 0:
            ranges.append((int(first), int(count)))
    return tuple(ranges)
