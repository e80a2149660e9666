"""Opening a layer's two files, the content and its presence map, so that they belong together."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.guard import guard, unguard
from lazyfs.store.content.holes import make_zeros
from lazyfs.store.content.locks import has_markers, mark_from_now_on, share
from lazyfs.store.content.presence import (
    HEADER_SIZE,
    OLD_VERSION,
    RESIDENT,
    boot_id,
    doubted,
    lock_presence,
    map_size,
    new_header,
    open_content,
    read_header,
    reset,
    retire,
    why_doubtful,
    write_header,
    write_marks,
)


class Pair(msgspec.Struct):
    """The files of a layer, open: ``map_fd`` is locked and ``mapped``, ``fd`` is the content.

    ``reason`` is why the marks are DOUBTFUL, empty if they are believed.  ``was_shown``: a mount
    that is there may have shown what they are of.  ``times`` are those of the map (of access, of
    its change, in ns) before.
    """

    map_fd: int
    fd: int
    mapped: mmap.mmap
    times: tuple[int, int]
    reason: str = ""
    was_shown: bool = True


def open_pair(folder: Path, table: LayerTable) -> Pair:
    """Open a layer's files, made where they are missing; raises OSError.

    Whoever is the only one who marks turns marks that are not sure into doubts.
    """
    while True:
        map_fd, alone = lock_presence(folder)
        fd = -1
        try:
            fd, is_made = open_content(folder)
            if alone:
                pair = _begin(map_fd, fd, table, is_made=is_made)
                mark_from_now_on(map_fd)
                share(map_fd)
                return pair
            found = _join(map_fd, fd, table)
            if found is not None:
                mark_from_now_on(map_fd)
                return found
            retire(folder, map_fd)
        except OSError:
            _close(map_fd, fd)  # a lock that stayed would keep others waiting
            raise
        _close(map_fd, fd)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def _mapped(map_fd: int, table: LayerTable) -> Iterator[mmap.mmap]:
    """Map the marks for good, but where the block fails."""
    mapped = mmap.mmap(map_fd, map_size(table))
    guard(mapped)
    try:
        yield mapped
    except BaseException:
        unguard(mapped)
        mapped.close()
        raise


def _begin(map_fd: int, fd: int, table: LayerTable, *, is_made: bool) -> Pair:
    """Look at the files as the only user."""
    status, times = os.fstat(fd), _times(map_fd)
    header = read_header(map_fd)
    is_known = header is not None and header.fits(table)
    is_known = is_known and os.fstat(map_fd).st_size == map_size(table) and not is_made
    if not is_known:
        reset(map_fd, map_size(table))
    with _mapped(map_fd, table) as mapped, memoryview(mapped)[HEADER_SIZE:] as marks:
        pair = Pair(map_fd, fd, mapped, times)
        if header is not None and is_known:
            pair.reason = why_doubtful(map_fd, header, marks, status)
            # Of this boot and never closed: its server was killed, and the mount may go on.
            is_left = not header.is_clean and header.boot == boot_id()
            pair.was_shown = is_left or not pair.reason
        if pair.reason:
            write_marks(map_fd, doubted(marks))
        if status.st_size != table.device_size:
            os.ftruncate(fd, table.device_size)
        has_changed = _open_holes(map_fd, fd, marks, table)
        if pair.reason:
            write_header(map_fd, new_header(table, os.fstat(fd), is_clean=False))
        elif not is_known:
            write_header(map_fd, new_header(table, os.fstat(fd), is_clean=True), marks)
        elif has_changed and header is not None:
            left = replace(header, changed_at=os.fstat(fd).st_ctime_ns)
            write_header(map_fd, left, marks)
    return pair


def _join(map_fd: int, fd: int, table: LayerTable) -> Pair | None:
    """Look at files that others use; None where the map speaks of another content file."""
    status, times = os.fstat(fd), _times(map_fd)
    header = read_header(map_fd)
    if header is None or not header.fits(table) or os.fstat(map_fd).st_size != map_size(table):
        return None
    if header.version != OLD_VERSION and header.inode != status.st_ino:
        return None
    with _mapped(map_fd, table) as mapped, memoryview(mapped)[HEADER_SIZE:] as marks:
        pair = Pair(map_fd, fd, mapped, times)
        if not has_markers(map_fd):  # its users only read, and nobody has doubted in the map
            pair.reason = why_doubtful(map_fd, header, marks, status)
        elif status.st_size != table.device_size:  # its users have not noticed yet
            pair.reason = "a change of the content file"
        if pair.reason:
            write_header(map_fd, new_header(table, status, is_clean=False))
            write_marks(map_fd, doubted(marks))
            if status.st_size != table.device_size:
                os.ftruncate(fd, table.device_size)
    return pair


def _times(map_fd: int) -> tuple[int, int]:
    status = os.fstat(map_fd)
    return status.st_atime_ns, status.st_mtime_ns


def _open_holes(map_fd: int, fd: int, marks: memoryview, table: LayerTable) -> bool:
    """Mark what is zeros and nowhere in the blob; say whether that changed anything.

    A doubtful hole is looked at now, not when it is read: there is nothing to fetch for it.
    """
    absent = [chunk for chunk in table.holes if marks[chunk] != RESIDENT]
    was_written = False
    for chunk in absent:
        start = table.device_offset(chunk)
        was_written |= make_zeros(fd, start, start + table.size(chunk))
    if was_written:
        os.fdatasync(fd)  # the map may be clean, so its marks are believed after a crash
    if absent:
        opened = bytearray(marks)
        for chunk in absent:
            opened[chunk] = RESIDENT
        write_marks(map_fd, bytes(opened))
    return bool(absent)
