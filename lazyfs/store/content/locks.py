"""Who uses a layer: the locks on its presence map.

    user                    a shared flock, and a read lock on the map's first byte
    user who marks          a read lock on its second byte, too
    who removes or empties  the exclusive flock

A user who finds nobody else has the exclusive flock first, does what only one may do, and shares it
then.  The second lock is there to be looked at: the kernel says who has it without anything being
taken, so whoever looks is never in the way of whoever opens, who would take him for another user
and believe what a crash has left.  Byte locks are of the open file description (Linux), and end
with it.

Who only reads doubts marks for himself, in memory.  So what an unclean map says is believed only
where somebody uses it who marks: he has doubted, in the map, what was to be doubted.
"""

import fcntl
import os
import struct
import time

FLOCK = struct.Struct("hhqqi4x")  # struct flock of Linux, 64-bit offsets
USE_BYTE, MARK_BYTE = 0, 1
LOOK_SECONDS = 0.02


def lock_for_use(fd: int) -> bool:
    """Become a user; return whether there is no other: then with the exclusive lock.

    Waits while somebody removes or empties the layer.  Who is alone calls ``share`` when ready.
    """
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_alone = True
        except BlockingIOError:
            fcntl.flock(fd, fcntl.LOCK_SH)
            is_alone = False
        try:
            if is_alone or has_users(fd):
                lock_bytes(fd, fcntl.F_RDLCK, USE_BYTE, 1)
                return is_alone
        except OSError:
            return is_alone  # a filesystem without such locks: the flock has to do
        fcntl.flock(fd, fcntl.LOCK_UN)  # who was in the way has gone: perhaps we are alone


def share(fd: int) -> None:
    """Let others become users too."""
    fcntl.flock(fd, fcntl.LOCK_SH)


def has_users(fd: int) -> bool:
    """Say whether the layer has users beside *fd*; OSError where that cannot be known."""
    return _is_locked(fd, USE_BYTE)


def has_markers(fd: int) -> bool:
    """Say whether some user beside *fd* marks; True where that cannot be known."""
    try:
        return _is_locked(fd, MARK_BYTE)
    except OSError:
        return True


def mark_from_now_on(fd: int) -> None:
    """Let others believe the marks of a user, who has doubted what is to be doubted."""
    try:
        lock_bytes(fd, fcntl.F_RDLCK, MARK_BYTE, 1)
    except OSError:
        pass  # a filesystem without such locks: see has_markers


def _is_locked(fd: int, byte: int) -> bool:
    wanted = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    return bool(FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def lock_bytes(fd: int, kind: int, start: int, size: int) -> None:
    """Take (F_RDLCK, F_WRLCK) or give up (F_UNLCK) a lock of bytes, without waiting; OSError."""
    lock = FLOCK.pack(kind, os.SEEK_SET, start, size, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)


def lock_within(fd: int, seconds: float) -> bool:
    """Take the exclusive flock; False if somebody else has held it for *seconds*."""
    # Not by waiting in the kernel: whoever holds the lock may have been stopped.
    ends = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= ends:
                return False
            time.sleep(LOOK_SECONDS)
