"""Holes of files: where a file has zeros because nothing was ever written there."""

import errno
import os
from collections.abc import Iterator

from lazyfs.store.content.whole import write_whole

PAGE_SIZE = 4096
ZEROS = bytes(1 << 20)


def written_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges from *start* to *end* that are no holes of the file (OSError)."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
            after = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing up to the file's end
                return
            raise
        if start < end:
            yield start, min(after, end)
        start = after


def has_hole(fd: int, start: int, end: int) -> bool:
    """Say whether any byte from *start* to *end* is in a hole, or behind the file's end.

    False on a filesystem that cannot tell.
    """
    try:
        return os.lseek(fd, start, os.SEEK_HOLE) < end
    except OSError as exc:
        return exc.errno == errno.ENXIO


def has_zero_page(data: bytes, offset: int) -> bool:
    """Say whether a page of the file, or what *data* has of it, is zeros; *offset* is its place."""
    size = len(data)
    # A look at the first byte of each page is nearly always enough, and one call.
    if data[:1] != b"\0" and 0 not in data[-offset % PAGE_SIZE :: PAGE_SIZE]:
        return False
    start = 0
    while start < size:
        end = min(start + PAGE_SIZE - (offset + start) % PAGE_SIZE, size)
        if not data[start] and data.count(0, start, end) == end - start:
            return True
        start = end
    return False


def fill_holes(fd: int, start: int, end: int) -> bool:
    """Write zeros where the file has holes (OSError); say whether that leaves none."""
    while start < end:
        hole = os.lseek(fd, start, os.SEEK_HOLE)
        if hole >= end:
            return True
        try:
            after = min(end, os.lseek(fd, hole, os.SEEK_DATA))
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            after = end
        start = hole
        while start < after:
            piece = ZEROS[: after - start]
            write_whole(fd, piece, start)
            start += len(piece)
        if has_hole(fd, hole, after):
            return False
    return True


def make_zeros(fd: int, start: int, end: int) -> bool:
    """Make zeros of bytes of a file (OSError); say whether there was anything to do."""
    was_written = False
    for offset, after in written_ranges(fd, start, end):
        place = offset
        while place < after:
            piece = ZEROS[: after - place]
            write_whole(fd, piece, place)
            place += len(piece)
        was_written = True
    return was_written


def is_zero(fd: int, start: int, end: int) -> bool:
    """Say whether bytes of a file are zeros (OSError)."""
    for offset, after in written_ranges(fd, start, end):
        for place in range(offset, after, len(ZEROS)):
            size = min(after - place, len(ZEROS))
            if os.pread(fd, size, place).count(0) != size:
                return False
    return True
