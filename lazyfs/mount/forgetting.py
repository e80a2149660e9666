"""Having the kernel forget pages that turned out to be wrong, and nobody wait for ever.

FUSE_NOTIFY_INVAL_INODE (include/uapi/linux/fuse.h) waits for pages that are being read; nothing
interrupts that, and it holds a lock that unmounting wants.  If the server is killed meanwhile, and
only it could answer such a read, everything would hang: the thread that waits holds the connection
open, so that the kernel does not give up the read.  Therefore

- pages of reads that the server has taken and cannot answer yet are spared.  They need not be
  forgotten: they come to be when the read is answered, from what is believed by then;
- the thread has a table of descriptors of its own, which holds nothing but a clone of the
  connection.  When the server is killed its other descriptors are closed, which ends the reads that
  it has taken, also those that came after the thread had looked.

What is left is a read that comes in the microseconds between looking and waiting, and is repeated
when the server has been killed: ``lazyfs umount`` ends such a connection (abort.py).
"""

import ctypes
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterable, Sequence

from lazyfs.mount.connection import FUSE_DEVICE_NUMBER, with_clones

Page = tuple[int, int, int]
"""Pages of a file: nid, offset, size."""

Forget = Callable[[int, int, int, int], list[tuple[int, int]]]
"""Has the kernel forget pages by a descriptor: nid, offset, size; returns what was spared."""

INVALIDATE = struct.Struct("=IiQQqq")  # an out-header with a code, inode, offset, length
INVALIDATE_CODE = 2
PAGE_SIZE = 4096
PIECE_SIZE = 128 << 10
"""So much is forgotten at a time, so that what was looked at is still true."""
CLOSE_RANGE = 436  # on all machines: include/uapi/asm-generic/unistd.h
CLOSE_RANGE_UNSHARE = 2
CLONE_FILES = 0x400
NO_DESCRIPTOR = 0x7FFFFFFF

log = logging.getLogger(__name__)


def forget_apart(descriptor: int, pages: Sequence[Page], forget: Forget) -> list[Page]:
    """Have *forget* do *pages* in a thread that holds nothing else; return what was spared.

    *descriptor* is of /dev/fuse.  Blocks; whoever answers reads must not call it.  What the kernel
    does not have, and a connection that is gone, is no error.
    """
    spared: list[Page] = []
    problems: list[Exception] = []

    def work() -> None:
        try:
            _forget_all(descriptor, pages, forget, spared, problems)
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=work, name="forgetting", daemon=True)
    thread.start()
    thread.join()
    for problem in problems:
        log.debug("forgetting pages: %s", problem)
    return spared


def _forget_all(
    descriptor: int,
    pages: Sequence[Page],
    forget: Forget,
    spared: list[Page],
    problems: list[Exception],
) -> None:
    is_apart = _take_own_table()
    try:
        is_fuse = os.fstat(descriptor).st_rdev == FUSE_DEVICE_NUMBER
    except OSError:
        is_fuse = False
    if not is_fuse:  # the session was closed before we came
        return
    own = with_clones(descriptor, 2)[-1]
    try:
        if is_apart:
            _close_all_but(own)
        for nid, offset, size in pages:
            try:
                spared += [(nid, *each) for each in forget(own, nid, offset, size)]
            except OSError as error:
                problems.append(error)
    finally:
        if own != descriptor or is_apart:
            os.close(own)


def _take_own_table() -> bool:
    """Give this thread a copy of the process's descriptors; False where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Of no descriptor at all: a container may allow this one, and not unshare(2)
    if not libc.syscall(CLOSE_RANGE, NO_DESCRIPTOR, NO_DESCRIPTOR, CLOSE_RANGE_UNSHARE):
        return True
    return not libc.unshare(CLONE_FILES)


def _close_all_but(own: int) -> None:
    """Close what this thread's own table has of others."""
    for name in os.listdir("/proc/thread-self/fd"):
        if int(name) != own:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one that listed the directory


def forget_around(parked: Callable[[], Iterable[Page]]) -> Forget:
    """Return a ``Forget`` that spares pages of *parked* reads, which it asks for again and again.

    The twin of ``lazyfs._native.Server.forget``.
    """

    def forget(descriptor: int, nid: int, offset: int, size: int) -> list[tuple[int, int]]:
        spared, end = [], offset + size
        while offset < end:
            piece = min(end, offset + PIECE_SIZE)
            start, stop = _first_held(parked(), nid, offset, piece)
            if start > offset and not send_invalidate(descriptor, nid, offset, start - offset):
                break
            if stop > start:
                spared.append((start, stop - start))
            offset = stop
        return spared

    return forget


def _first_held(parked: Iterable[Page], nid: int, offset: int, end: int) -> tuple[int, int]:
    """Return the first pages from *offset* to *end* that a read holds; both are *end* for none."""
    found = end, end
    for each, start, size in parked:
        first = start // PAGE_SIZE * PAGE_SIZE
        last = -(-(start + size) // PAGE_SIZE) * PAGE_SIZE
        if each == nid and first < end and last > offset:
            found = min(found, (max(first, offset), min(last, end)))
    return found


def send_invalidate(descriptor: int, nid: int, offset: int, size: int) -> bool:
    """Have the kernel forget pages, and wait for it; False: it has nothing of the file."""
    message = INVALIDATE.pack(INVALIDATE.size, INVALIDATE_CODE, 0, nid, offset, size)
    try:
        os.write(descriptor, message)
    except FileNotFoundError:
        return False
    return True
