"""Reading files that somebody else may have put there: configuration, credentials, layouts.

A FIFO in the place of a file would make us wait for ever, a device could do anything when it is
opened, and a symlink may lead to what only we can read.  So files are opened without waiting, and
looked at before they are read.
"""

import errno
import os
import stat
from pathlib import Path

NULL = os.makedev(1, 3)
_piped: dict[tuple[int, int], bytes] = {}  # (device, inode) → what a pipe held


class NotRegular(OSError):
    """Something else than a regular file is there, or it is elsewhere than it should be."""

    def __init__(self, path: str | Path, what: str) -> None:
        super().__init__(errno.EINVAL, what, os.fspath(path))


def open_regular(path: str | Path, inside: Path | None = None) -> int:
    """Return a descriptor of the regular file at *path*.

    Symlinks are followed, but not out of the directory *inside*, if it is given.  Raises OSError.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # opens nothing yet
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise NotRegular(path, "it is not a regular file")
        link = f"/proc/self/fd/{place}"
        if inside is not None:
            found = os.readlink(link)
            if not found.startswith(os.path.join(os.path.realpath(inside), "")):
                raise NotRegular(path, f"it is a symlink to {found}, outside {inside}")
        return os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)


def read_regular(path: str | Path, limit: int, inside: Path | None = None) -> bytes:
    """Return up to *limit* bytes of the regular file at *path*; as ``open_regular``."""
    with os.fdopen(open_regular(path, inside), "rb") as stream:
        return stream.read(limit)


def read_named(path: str | Path, limit: int) -> bytes:
    """Return up to *limit* bytes of what the user has named: a file, a pipe, or /dev/null.

    ``<(program)`` is such a pipe.  Whoever writes one is waited for, and what it held is kept: it
    can be read once.  Raises OSError.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = os.fstat(place)
        is_pipe = stat.S_ISFIFO(found.st_mode)
        is_null = stat.S_ISCHR(found.st_mode) and found.st_rdev == NULL
        if not (stat.S_ISREG(found.st_mode) or is_pipe or is_null):
            raise NotRegular(path, "it is not a file, a pipe or /dev/null")
        key = found.st_dev, found.st_ino
        if is_pipe and key in _piped:
            return _piped[key]
        with open(f"/proc/self/fd/{place}", "rb") as stream:
            data = stream.read(limit)
        if is_pipe:
            _piped[key] = data
        return data
    finally:
        os.close(place)


def check_regular(path: str | Path) -> None:
    """Raise OSError unless a regular file is at *path*, for a library that opens it by name."""
    os.close(open_regular(path))


def check_inside(folder: Path, inside: Path) -> None:
    """Raise NotRegular if *folder*, as far as it is there, leads out of the directory *inside*."""
    place = os.path.realpath(folder)
    root = os.path.realpath(inside)
    if place != root and not place.startswith(os.path.join(root, "")):
        raise NotRegular(folder, f"it is a symlink to {place}, outside {inside}")
