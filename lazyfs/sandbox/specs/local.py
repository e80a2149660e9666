"""Errors of the local disk as errors of snapshots."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.documents.errors import NoSpace, SnapshotError, StoreFailed

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def local_error(what: object, error: OSError, action: str) -> SnapshotError:
    """Return our error for *error*, which *action* on *what* met."""
    family = NoSpace if error.errno in NO_SPACE else StoreFailed
    return family(f"cannot {action} {what}: {error.strerror}")


@contextmanager
def local_errors(path: Path, action: str) -> Iterator[None]:
    """Turn an OSError into NoSpace or StoreFailed."""
    try:
        yield
    except OSError as error:
        raise local_error(path, error, action) from error
