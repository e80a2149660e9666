"""Keeping a server small: its memory is mostly maps of files, and the rest is given back.

Chunks come and go through buffers of megabytes, in threads.  glibc would give each thread an arena
of its own and keep in each what was freed; and where it maps large buffers one by one, touching
fresh pages costs more than decoding into them.  So: one arena, buffers from the heap, and the
heap trimmed when nothing has been fetched for a while.
"""

import ctypes
import gc
from collections.abc import Callable

import trio

QUIET_SECONDS = 5.0
SETTLE_SECONDS = 1.0
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
TRIM_SIZE = 64 << 20
MAP_SIZE = 8 << 20


def set_up_memory() -> None:
    """Tell the C library how to keep memory; before the first thread."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # another C library than glibc
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, MAP_SIZE)
    mallopt(M_TRIM_THRESHOLD, TRIM_SIZE)


def settle_memory() -> None:
    """Give back what starting up needed, and spare the collector what stays for ever.

    Whoever started up may have turned the collector off.  It is not told to look: what it would
    find is no page less, and readers would wait for 25 ms and more meanwhile.
    """
    gc.freeze()
    gc.enable()
    trim_memory()


def trim_memory() -> None:
    """Give free memory back to the kernel."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


async def keep_small(activity: Callable[[], int]) -> None:
    """Settle once whoever waited for the mount has had a look at it, which we must answer.

    From then on trim when *activity*, a count that grows, has grown and stood still for a while.
    """
    await trio.sleep(SETTLE_SECONDS)
    settle_memory()
    seen = trimmed = activity()
    while True:
        await trio.sleep(QUIET_SECONDS)
        now = activity()
        if now == seen != trimmed:
            trim_memory()
            trimmed = now
        seen = now
