"""Files with holes: finding them, copying them, making them again.

Spec: lseek(2), SEEK_DATA and SEEK_HOLE.  A filesystem that knows no holes says that all is data.
"""

import errno
import os
from collections.abc import Iterator

BLOCK_SIZE = 4096  # what a hole is at least, and a multiple of
ZERO_BLOCK = bytes(BLOCK_SIZE)
COPY_SIZE = 8 << 20
NO_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}


def segments(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of what is data, no hole, between *start* and *end*; OSError."""
    position = start
    while position < end:
        try:
            first = os.lseek(file, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end of the file
            if error.errno != errno.EINVAL:
                raise
            yield position, end
            return
        if first >= end:
            return
        position = os.lseek(file, first, os.SEEK_HOLE)
        yield first, min(position, end)


def copy_sparse(source: int, target: int) -> int:
    """Copy a file to an empty one, holes as holes; return its size.  OSError."""
    size = os.fstat(source).st_size
    for start, end in segments(source, 0, size):
        while start < end:
            copied = _copy(source, target, start, min(end - start, COPY_SIZE))
            if copied == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += copied
    os.ftruncate(target, size)
    return size


def _copy(source: int, target: int, start: int, size: int) -> int:
    try:
        return os.copy_file_range(source, target, size, start, start)
    except OSError as error:
        if error.errno not in NO_COPY:
            raise
    data = os.pread(source, size, start)
    write_all(target, data, start)
    return len(data)


def write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of *data* at *offset*; OSError."""
    view = memoryview(data)
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def write_sparse(file: int, data: bytes, offset: int) -> None:
    """Write *data* at *offset* of a file that holds nothing there; blocks of zeros stay holes.

    Blocks are counted from *offset*, which should be a multiple of BLOCK_SIZE.  OSError.
    """
    view = memoryview(data)
    begun = None  # where the data lies that is yet to be written
    for position in range(0, len(data), BLOCK_SIZE):
        size = min(BLOCK_SIZE, len(data) - position)
        if data.startswith(ZERO_BLOCK if size == BLOCK_SIZE else bytes(size), position):
            if begun is not None:
                write_all(file, view[begun:position], offset + begun)
                begun = None
        elif begun is None:
            begun = position
    if begun is not None:
        write_all(file, view[begun:], offset + begun)
