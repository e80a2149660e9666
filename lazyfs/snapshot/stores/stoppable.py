"""A store whose downloads can be stopped when their result is no longer needed."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, cast

from lazyfs.documents.errors import StoreFailed
from lazyfs.snapshot.stores.objects import ObjectStore


class Stoppable:
    """The store *objects*; after ``stop`` its streams raise StoreFailed."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """End all reading."""
        self._is_stopped.set()

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open an object for one reading from its start to its end."""
        return self._opened(key)

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        with self._objects.open(key) as stream:
            yield cast(BinaryIO, _Stream(stream, self._is_stopped))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)


class _Stream:
    def __init__(self, stream: BinaryIO, is_stopped: threading.Event) -> None:
        self._stream = stream
        self._is_stopped = is_stopped

    def read(self, size: int = -1) -> bytes:
        if self._is_stopped.is_set():
            raise StoreFailed("the download was stopped because something else failed")
        return self._stream.read(size)
