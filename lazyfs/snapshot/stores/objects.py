"""Where snapshots are kept: what a directory and S3 have in common."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from lazyfs.documents.errors import SnapshotError

# Set to have the uploads of a context given up: what they left in the store is taken away.
stopping: ContextVar[threading.Event | None] = ContextVar("stopping", default=None)


class ObjectMissing(SnapshotError):
    """There is no object of that key; whoever asked knows which error that is."""

    code = "E_NOT_FOUND"
    exit_code = 3


class Stored(msgspec.Struct, frozen=True):
    """An object: *key* below the store's prefix, size in bytes, when written (Unix seconds)."""

    key: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """Keys are relative, with "/" between words.  Errors: StoreFailed, ObjectMissing, NoSpace.

    All methods may be called from several threads at once.
    """

    url: str

    def put_file(self, key: str, path: Path) -> None:
        """Store a file; readers see all of it or nothing."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store *data* unless there is something; say whether it was stored."""
        ...

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Store *data* if what is there is *expected* (None: nothing); say whether it was."""
        ...

    def get(self, key: str, limit: int) -> bytes:
        """Return an object; one that is longer than *limit* bytes is cut after ``limit + 1``."""
        ...

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open an object for one reading from its start to its end."""
        ...

    def size(self, key: str) -> int | None:
        """Return an object's size, None if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield all objects whose keys begin with *prefix*, in the order of keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing to do where there is none."""
        ...

    def abort_uploads(self, older_than: float) -> int:
        """Give up unfinished uploads that began before then (Unix seconds); return how many."""
        ...

    def is_conditional(self) -> bool:
        """Say whether the store itself keeps "if absent"; probed once, the probe removed."""
        ...
