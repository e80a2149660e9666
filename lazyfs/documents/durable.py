"""Files that are written as a whole: after a crash the old one is there, or the new one."""

import os
from contextlib import suppress
from pathlib import Path

WRITING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def put_file(
    path: Path, data: bytes, temporary: Path, *, mode: int = 0o600, is_synced: bool = True
) -> None:
    """Write a file by way of *temporary*, in the same folder; OSError leaves neither.

    *is_synced*: it is on the disk when this returns, under its name.
    """
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # of a process that was killed
        with open(os.open(temporary, WRITING, mode), "wb") as file:
            file.write(data)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())  # before it takes the place of another
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if is_synced:
        sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Bring a file, or what a folder says of its files, to the disk; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
