"""Ending a FUSE connection from outside, when nobody is left who would.

A request that nobody answers keeps whoever waits for it, and the kernel may wait while it holds a
lock: unmounting and ``sync`` then wait, too.  Each connection has a file ``abort`` in fusectl
(Documentation/filesystems/fuse/fuse.rst, "Control filesystem").
"""

import ctypes
import logging
import os

CONNECTIONS = "/sys/fs/fuse/connections"
# The same numbers on all machines: include/uapi/asm-generic/unistd.h, linux/mount.h.
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
FSCONFIG_CMD_CREATE = 6
CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC

log = logging.getLogger(__name__)


def abort_connection(device: str) -> bool:
    """End the connection of the FUSE mount *device*, "major:minor"; say whether that was done.

    All its requests fail with ECONNABORTED from now on.  Where fusectl is not mounted, root uses
    one that is in no tree.  A connection belongs to its user, and to root.
    """
    name = device.rpartition(":")[2]
    if not name.isdecimal():
        return False
    path = f"{name}/abort"
    try:
        folder = os.open(CONNECTIONS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.debug("%s: %s", CONNECTIONS, error.strerror)
        folder = -1
    try:
        if folder >= 0 and _write(folder, path):
            return True
    finally:
        if folder >= 0:
            os.close(folder)
    try:
        folder = _detached_fusectl()
    except OSError as error:
        log.debug("fusectl: %s", error.strerror)
        return False
    try:
        return _write(folder, path)
    finally:
        os.close(folder)


def _write(folder: int, path: str) -> bool:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        log.debug("%s: %s", path, error.strerror)
        return False
    try:
        os.write(file, b"1")
        return True
    except OSError as error:
        log.debug("%s: %s", path, error.strerror)
        return False
    finally:
        os.close(file)


def _detached_fusectl() -> int:
    """Return a descriptor of a fusectl that is mounted nowhere; raises OSError."""
    context = _call(FSOPEN, b"fusectl", CLOEXEC)
    try:
        _call(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(FSMOUNT, context, CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, *words: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
