"""Starting programs without access to the keys of the user who starts them.

A process inherits its session keyring, and what it may search there it may read (keyrings(7)).
Credentials belong to threads: one joins a new keyring for each program and starts it, so that
nothing changes for the rest of this process.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lazyfs.documents.errors import RuntimeFailed
from lazyfs.sandbox.specs.syscalls import ARCHITECTURES, has_table, numbers

KEYCTL_JOIN_SESSION_KEYRING = 1
# There are no keyrings, or they are closed to us and so to all that we start.
WITHOUT = (errno.ENOSYS, errno.EPERM, errno.EACCES)
Made = TypeVar("Made")
_starters: dict[int, ThreadPoolExecutor] = {}  # process → the thread that starts its programs


def join_new_session_keyring() -> None:
    """Give this thread a new, empty session keyring.  Raises RuntimeFailed."""
    architecture = ARCHITECTURES.get(os.uname().machine, ("",))[0]
    if not has_table(architecture):
        raise RuntimeFailed(
            f"keyring: lazyfs does not know the number of keyctl(2) on {os.uname().machine}",
            hint="--security-opt keyring=host lets the sandbox use your own session keyring",
        )
    libc = ctypes.CDLL(None, use_errno=True)
    number = numbers(architecture)["keyctl"]
    if libc.syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        code = ctypes.get_errno()
        if code not in WITHOUT:
            raise RuntimeFailed(
                f"keyring: cannot create a new session keyring: {os.strerror(code)}",
                hint="--security-opt keyring=host lets the sandbox use your own session keyring",
            )


def with_own_keyring(call: Callable[[], Made]) -> Made:
    """Call *call*, which starts a program with the keyring of this process."""
    return call()


def with_new_keyring(call: Callable[[], Made]) -> Made:
    """Call *call*, which starts a program, in a thread that has a new session keyring.

    The thread lives as long as this process: a program that is to die with its parent dies with the
    thread that started it (PR_SET_PDEATHSIG in prctl(2)).
    """

    def work() -> Made:
        join_new_session_keyring()
        return call()

    pid = os.getpid()  # a fork has no threads
    if pid not in _starters:
        _starters[pid] = ThreadPoolExecutor(1, "lazyfs-keyring")
    return _starters[pid].submit(work).result()
