"""The content of a layer where nothing can be written: on a read-only disk, or on none at all.

What the store has is read where that is possible, and believed as everywhere; what it lacks is
fetched, verified and served, and not kept.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.content import NEVER, ContentUnusable, LayerContent, NotStored
from lazyfs.store.content.locks import has_markers, lock_for_use, share
from lazyfs.store.content.presence import (
    ABSENT,
    DOUBTFUL,
    HEADER_SIZE,
    OLD_VERSION,
    RESIDENT,
    doubted,
    map_size,
    read_header,
    why_doubtful,
)
from lazyfs.store.content.rows import Payload

READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class ReadOnlyContent(LayerContent):
    """The content of a layer on a read-only disk; its marks are a copy in memory."""

    _is_marker = False

    def __init__(self, folder: Path, table: LayerTable) -> None:
        self.folder = folder
        self.table = table
        self.trouble = os.strerror(errno.EROFS)
        self.unreadable: set[int] = set()
        self.doubted, self.was_shown = "", True
        self.holes_tell, self._vain_fills = True, 0
        self._dirty = self._is_private = True  # nothing is said in the header
        self._since = int(time.time())
        self._map_fd = self.fd = -1
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._map_fd = os.open(folder / "presence", flags)
            is_alone = lock_for_use(self._map_fd)
            self.fd = os.open(folder / "content", flags)
            self.states = memoryview(self._marks(is_alone=is_alone))
            self.was_marked = bytearray(len(self.states))
            share(self._map_fd)
        except OSError as exc:
            self._close()
            raise ContentUnusable(f"content store {folder}: {exc.strerror}") from exc

    def _marks(self, *, is_alone: bool) -> bytearray:
        """Return the marks, doubted where ``open_pair`` would doubt them (OSError)."""
        size, content = map_size(self.table), os.fstat(self.fd)
        stored = os.pread(self._map_fd, size, 0)
        header = read_header(self._map_fd)
        if header is None or len(stored) != size or not header.fits(self.table):
            raise OSError(errno.EIO, "the presence map does not fit the layer table")
        if content.st_size != self.table.device_size:
            raise OSError(errno.EIO, "the content file does not fit the layer table")
        marks = bytearray(stored[HEADER_SIZE:])
        # Others who only read, too, have doubted for themselves.
        if is_alone or not has_markers(self._map_fd):
            self.doubted = why_doubtful(self._map_fd, header, memoryview(marks), content)
        elif header.version != OLD_VERSION and header.inode != content.st_ino:
            self.doubted = "a change of the content file"
        if self.doubted:
            self.was_shown = False
            marks = bytearray(doubted(memoryview(marks)))
        elif header.version != OLD_VERSION:
            self._since = header.since
        for chunk in self.table.holes:  # there is nothing to fetch for them
            if marks[chunk] != RESIDENT:
                is_right = marks[chunk] == DOUBTFUL and self.is_right(chunk)
                marks[chunk] = RESIDENT if is_right else ABSENT
        return marks

    def _mark(self, first: int, marks: bytes) -> None:
        if RESIDENT in marks:
            self.was_marked[first : first + len(marks)] = marks
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

    @property
    def since(self) -> int:
        """When (in s since 1970) hashing began of the marked chunk that was hashed longest ago."""
        return self._since

    def note_checked(self, since: float) -> None:
        """Note that each marked chunk has been hashed after *since*."""
        self._since = int(since)

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
        self.doubted, self.was_shown, self.holes_tell = "", False, True
        self.states = memoryview(bytearray(max(1, table.count)))
        self.was_marked = bytearray(max(1, table.count))
        for chunk in table.holes:
            self.states[chunk] = RESIDENT

    def open_pin(self) -> int:
        """Return -1: there is nothing to keep."""
        return -1

    def read(self, offset: int, size: int) -> bytes:
        """Return zeros: nothing but holes is resident."""
        return bytes(size)

    def check(self, chunk: int) -> bool:
        """Say whether the chunk is zeros, which is all that there is."""
        return chunk in self.table.holes

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

    def check_again(self, chunk: int, keep: Callable[[int], None] | None = None) -> bool:
        """Say whether the chunk is zeros, which is all that there is."""
        return self.check(chunk)

    def forget(self, chunk: int) -> None:
        """Do nothing: nothing is marked."""

    def suspect(self, first: int, last: int) -> None:
        """Do nothing: nothing is marked."""

    def doubt(self) -> None:
        """Do nothing: nothing is marked."""

    def is_apart(self) -> bool:
        """Say no: there are no files."""
        return False

    def note_checked(self, since: float) -> None:
        """Do nothing: there is nothing to check."""

    @property
    def since(self) -> int:
        """Return a time that never comes: nothing is to be checked."""
        return NEVER

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
        content.trouble = _told(cause) if isinstance(cause, OSError) else error.message
        return content


def _told(cause: OSError) -> str:
    if cause.errno == errno.EISDIR and isinstance(cause.filename, str | os.PathLike):
        # Not ours, so it is left: everything else in the store is used as ever.
        return f"{os.fspath(cause.filename)} is a directory in the place of a file: remove it"
    return cause.strerror or str(cause)
