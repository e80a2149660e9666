"""A shared map of a file made private, in place: what is stored into it stays with this process."""

import ctypes
import mmap
import os

MAP_FIXED = 0x10  # of Linux


def make_private(mapped: mmap.mmap, fd: int) -> None:
    """Map *fd* again where *mapped* is, so that stores need no disk; raises OSError.

    Whoever has the address, threads of C too, sees the private copy from now on.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_long,
    )
    start = ctypes.c_char.from_buffer(mapped)
    address = ctypes.addressof(start)
    del start  # a buffer that is lent keeps the map from being closed
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_FIXED
    if libc.mmap(address, len(mapped), protection, flags, fd, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
