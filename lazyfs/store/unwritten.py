"""The content of a layer where nothing can be written: on a read-only disk, or on none at all.

What the store has is read where that is possible, and believed as everywhere; what it lacks is
fetched, verified and served, and not kept.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content import (
    ABSENT,
    DOUBTFUL,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    RESIDENT,
    VERSION,
    ContentUnusable,
    LayerContent,
    NotStored,
)
from lazyfs.store.locks import lock_for_use, share
from lazyfs.store.rows import Payload

READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class ReadOnlyContent(LayerContent):
    """The content of a layer on a read-only disk; its marks are a copy in memory."""

    _pin_flags = os.O_RDONLY

    def __init__(self, folder: Path, table: LayerTable) -> None:
        self.folder = folder
        self.table = table
        self.trouble = os.strerror(errno.EROFS)
        self.unreadable: set[int] = set()
        self._map_fd = self.fd = -1
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._map_fd = os.open(folder / "presence", flags)
            is_alone = lock_for_use(self._map_fd)
            self.fd = os.open(folder / "content", flags)
            if os.fstat(self.fd).st_size != table.device_size:
                raise OSError(errno.EIO, "the content file does not fit the layer table")
            self.states = memoryview(self._marks(is_alone=is_alone))
            share(self._map_fd)
        except OSError as exc:
            self._close()
            raise ContentUnusable(f"content store {folder}: {exc.strerror}") from exc

    def _marks(self, *, is_alone: bool) -> bytearray:
        count = max(1, self.table.count)
        stored = os.pread(self._map_fd, HEADER_SIZE + count, 0)
        if len(stored) != HEADER_SIZE + count:
            raise OSError(errno.EIO, "the presence map is too short")
        magic, version, clean, chunks = HEADER.unpack(stored[: HEADER.size])
        if (magic, version, chunks) != (MAGIC, VERSION, self.table.count):
            raise OSError(errno.EIO, "the presence map does not fit the layer table")
        marks = bytearray(stored[HEADER_SIZE:])
        if is_alone and not clean:
            marks = marks.replace(bytes([RESIDENT]), bytes([DOUBTFUL]))
            for chunk in self.table.holes:  # there is nothing to fetch for them
                is_right = marks[chunk] == DOUBTFUL and self.check(chunk)
                marks[chunk] = RESIDENT if is_right else ABSENT
        return marks

    def _mark(self, first: int, marks: bytes) -> None:
        self.states[first : first + len(marks)] = marks

    def claim(self, first: int, last: int) -> bool:
        """Say yes: what is not stored is not shared."""
        return True

    def release(self, first: int, last: int) -> None:
        """Do nothing."""

    def write_all(self, payloads: Sequence[Payload]) -> list[int]:
        """Return those that are not here."""
        return [chunk for chunk, _ in payloads if self.states[chunk] != RESIDENT]

    def copy(self, chunk: int, source_fd: int, source_offset: int) -> None:
        """Raise NotStored."""
        raise NotStored(f"content store {self.folder}: {self.trouble}")

    def forget(self, chunk: int) -> None:
        """Mark a chunk absent."""
        self._mark(chunk, bytes([ABSENT]))

    def close(self) -> None:
        """Close.  Idempotent."""
        if self._map_fd >= 0:
            self.states.release()
            self._close()

    def _close(self) -> None:
        for fd in (self.fd, self._map_fd):
            if fd >= 0:
                os.close(fd)
        self._map_fd = self.fd = -1


class UnstoredContent(LayerContent):
    """The content of a layer where there is no room for any: nothing ever becomes resident."""

    def __init__(self, folder: Path, table: LayerTable) -> None:
        self.folder = folder
        self.table = table
        self.trouble = "no room for any content"
        self.unreadable: set[int] = set()
        self.fd = -1
        self.states = memoryview(bytearray(max(1, table.count)))
        for chunk in table.holes:
            self.states[chunk] = RESIDENT

    def open_pin(self) -> int:
        """Return -1: there is nothing to keep."""
        return -1

    def read(self, offset: int, size: int) -> bytes:
        """Return zeros: nothing but holes is resident."""
        return bytes(size)

    def claim(self, first: int, last: int) -> bool:
        """Say yes: what is not stored is not shared."""
        return True

    def release(self, first: int, last: int) -> None:
        """Do nothing."""

    def write(self, chunk: int, data: bytes) -> None:
        """Raise NotStored."""
        raise NotStored(f"content store {self.folder}: no room for any content")

    def write_all(self, payloads: Sequence[Payload]) -> list[int]:
        """Return all of them."""
        return [chunk for chunk, _ in payloads]

    def copy(self, chunk: int, source_fd: int, source_offset: int) -> None:
        """Raise NotStored."""
        raise NotStored(f"content store {self.folder}: no room for any content")

    def close(self) -> None:
        """Do nothing."""


def open_content(folder: Path, table: LayerTable) -> LayerContent:
    """Open the content of a layer: to write, else to read, else without any of it.

    ``trouble`` of what is returned says why nothing is written, and is empty where it can be.
    """
    try:
        return LayerContent(folder, table)
    except ContentUnusable as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in READ_ONLY:
            try:
                return ReadOnlyContent(folder, table)
            except ContentUnusable:
                pass
        content = UnstoredContent(folder, table)
        content.trouble = (cause.strerror if isinstance(cause, OSError) else None) or error.message
        return content
