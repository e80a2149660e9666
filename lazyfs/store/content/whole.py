"""Writing all of something: a call may take a part of it, where a disk fills up or fails."""

import errno
import os


def write_whole(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of *data* to the file *fd* from *offset* on (OSError)."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        offset += written
        view = view[written:]
