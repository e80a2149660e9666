"""Reading what an administrator has put down: no links, nothing that is not a file, bounded."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.printable import printable
from lazyfs.trust.errors import PolicyFault


def read_plain(path: Path, limit: int) -> bytes | None:
    """Return the regular file at *path*; None if nothing is there.

    Raises PolicyFault for a symlink, for anything that is not a file, for more than *limit* bytes,
    and where it cannot be read.
    """
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # opens nothing yet
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _fault(path, exc) from exc
    try:
        mode = os.fstat(place).st_mode
        if not stat.S_ISREG(mode):
            what = "a symlink" if stat.S_ISLNK(mode) else "not a regular file"
            raise PolicyFault(f"{_shown(path)} is {what}")
        with open(f"/proc/self/fd/{place}", "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as exc:
        raise _fault(path, exc) from exc
    finally:
        os.close(place)
    if len(data) > limit:
        raise PolicyFault(f"{_shown(path)} is longer than {limit} bytes")
    return data


def list_folder(path: Path, limit: int, *, follow: bool = False) -> list[str] | None:
    """Return the names in the directory at *path*, sorted; None if nothing is there.

    Raises PolicyFault for a symlink (unless *follow*), for what is no directory, and for more than
    *limit* names.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        with _opened(path, flags) as folder, os.scandir(folder) as entries:
            names: list[str] = []
            for entry in entries:
                if len(names) == limit:
                    raise PolicyFault(f"{_shown(path)} has more than {limit} files")
                names.append(entry.name)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _fault(path, exc) from exc
    return sorted(names)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fault(path: Path, exc: OSError) -> PolicyFault:
    return PolicyFault(f"{_shown(path)} cannot be read: {(exc.strerror or str(exc)).lower()}")


def _shown(path: Path) -> str:
    return printable(str(path), 300)
