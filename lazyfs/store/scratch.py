"""Folders under ``tmp/`` for what takes long to write: held by a lock while their process lives.

A lock ends with its holder, however that ends.  So whoever finds such a folder without one may
remove it at once, and does; nobody has to guess from a process number or an age.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.store.paths import Store, store_error

PREFIX = "scratch-"
BLOCK = 512  # unit of st_blocks


@contextmanager
def open_scratch(store: Store) -> Iterator[Path]:
    """Yield a fresh folder that is removed in the end; what a sweep finds of it later it removes.

    Raises StoreError.
    """
    try:
        folder, fd = _create(store)
    except OSError as exc:
        raise store_error(store.tmp, exc) from exc
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def _create(store: Store) -> tuple[Path, int]:
    while True:
        folder = store.tmp / f"{PREFIX}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        fd = -1
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A sweep may have come before the lock.
            if os.path.samestat(os.fstat(fd), os.stat(folder)):
                return folder, fd
        except (BlockingIOError, FileNotFoundError):
            pass
        if fd >= 0:
            os.close(fd)


def sweep(store: Store) -> int:
    """Remove the folders that nobody holds; return the bytes given back.  Never fails."""
    freed = 0
    try:
        names = [name for name in os.listdir(store.tmp) if name.startswith(PREFIX)]
    except OSError:
        return 0
    for name in names:
        folder = store.tmp / name
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.scandir(fd) as entries:
                freed += sum(entry.stat(follow_symlinks=False).st_blocks for entry in entries)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # somebody has it, or was faster
            continue
        finally:
            os.close(fd)
    return freed * BLOCK
