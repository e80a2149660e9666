"""Files that are trusted as the user's own: a sandbox's records, a policy.

Whoever can write such a file can make its reader run commands and mount folders.  So
it must be a regular file that belongs to the reader or to root, and that nobody else can write.
"""

import os
import stat
from pathlib import Path

from lazyfs.documents.journal import SandboxBroken

OTHERS = stat.S_IWGRP | stat.S_IWOTH
READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def read_own(path: Path, limit: int, *, follows: bool = False) -> bytes:
    """Return the first *limit* bytes of a file that is this user's, or root's, alone.

    Raises SandboxBroken where it is not, OSError.  *follows*: whether it may be a symbolic link.
    """
    descriptor = os.open(path, READING if follows else READING | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SandboxBroken(f"{path} is not a regular file")
        check_owner(path, found)
        return file.read(limit)


def check_own_folder(path: Path) -> None:
    """Raise SandboxBroken unless a folder is this user's, or root's, alone; OSError."""
    found = os.stat(path, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        raise SandboxBroken(f"{path} is not a directory")
    check_owner(path, found)


def check_owner(path: Path, found: os.stat_result) -> None:
    """Raise SandboxBroken unless what was *found* is this user's, or root's, alone."""
    if found.st_uid not in (os.geteuid(), 0):
        raise SandboxBroken(
            f"{path} belongs to user {found.st_uid}, not to user {os.geteuid()}",
            hint="lazyfs would act on its content in your name; check it before you chown it",
        )
    if found.st_mode & OTHERS:
        raise SandboxBroken(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: other users can write to it",
            hint=f"if you trust its content: chmod go-w {path}",
        )


def is_lost(data: bytes) -> bool:
    """Say whether JSON that was not synced was lost: the file is empty, or zeros are in it."""
    return not data or b"\0" in data
