"""Opening what is kept: a regular file, and nothing that would keep its reader waiting."""

import errno
import os
import stat
from io import FileIO
from os import PathLike


def open_regular(path: str | PathLike[str]) -> FileIO:
    """Open a file to read it; OSError, also for a link, a folder, a pipe or a device."""
    file = FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: str | PathLike[str]) -> bytes:
    """Return a whole regular file (OSError)."""
    with open_regular(path) as file:
        return file.readall()
