"""Starting programs without access to the keys of the user who starts them.

A process inherits its session keyring, and what it may search there it may read (keyrings(7)).
Credentials belong to threads: one joins a new keyring, starts the program, and ends, so that
nothing changes for the rest of this process.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from lazyfs.documents.errors import RuntimeFailed
from lazyfs.sandbox.specs.syscalls import ARCHITECTURES, has_table, numbers

KEYCTL_JOIN_SESSION_KEYRING = 1
# There are no keyrings, or they are closed to us and so to all that we start.
WITHOUT = (errno.ENOSYS, errno.EPERM, errno.EACCES)
Made = TypeVar("Made")


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
    """Call *call*, which starts a program, in a thread that has a new session keyring."""
    results: list[Made] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            join_new_session_keyring()
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=work, name="lazyfs-keyring")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
