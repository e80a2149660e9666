"""Opening what is kept: a regular file, and nothing that would keep its reader waiting."""

import errno
import os
import stat
from io import FileIO
from os import PathLike


def open_regular(path: str | PathLike[str]) -> FileIO:
    """Open a file to read it; OSError, also for a link, a folder, a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):  # by its name: what opens a descriptor does not know it
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return FileIO(descriptor)
    except OSError:
        os.close(descriptor)
        raise


def read_regular(path: str | PathLike[str]) -> bytes:
    """Return a whole regular file (OSError)."""
    with open_regular(path) as file:
        return file.readall()
