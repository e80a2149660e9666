"""The marks of a layer that is in use: which of its chunks are believed, for this process at least.

A mark is set by a write to the presence map's file, never by a store into the map: where the disk
does not take it, a store is a SIGBUS and a write an error.  What the disk refuses to be told is
known to this process alone, in a private map.
"""

import fcntl
import mmap
import os
from pathlib import Path

from msgspec.structs import replace

from lazyfs.errors import StoreError
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.guard import unguard
from lazyfs.store.content.locks import lock_bytes, lock_for_use, mark_from_now_on
from lazyfs.store.content.pair import Pair
from lazyfs.store.content.presence import (
    HEADER_SIZE,
    OLD_VERSION,
    RESIDENT,
    boot_id,
    map_size,
    read_header,
    write_header,
)
from lazyfs.store.content.private_map import make_private

NEVER = 1 << 62  # seconds


class NotStored(StoreError):
    """The store could not take a chunk: most often, its disk is full."""


class Marks:
    """The marks of the chunks of *table*, in the map of *pair*, and its header.

    ``trouble`` is why the last write failed.  ``was_marked`` has a byte per chunk, not 0 for those
    that were marked as resident here; others may have doubted them since.
    """

    _is_marker = True

    def __init__(self, folder: Path, table: LayerTable, pair: Pair) -> None:
        self.folder = folder
        self.table = table
        self.trouble = ""
        self._map_fd, self._map = pair.map_fd, pair.mapped
        self._is_private = False  # the map: what is marked in it may not get to the disk
        self._dirty = False
        self.states = memoryview(self._map)[HEADER_SIZE:]
        self.was_marked = bytearray(len(self.states))
        # Paged in now: a disk that fails when a mark is first looked at would be a SIGBUS.
        bytes(self.states[:: mmap.PAGESIZE])

    def open_pin(self) -> int:
        """Return a new descriptor that keeps the layer in use until its last copy is closed.

        For a process that is to outlive this one: whoever opens the layer then is not alone, and
        believes its marks.  -1 where there is nothing to keep.
        """
        # Not by its name, which may be gone, or another layer's by now.
        access = os.O_RDWR if self._is_marker else os.O_RDONLY
        pin = os.open(f"/proc/self/fd/{self._map_fd}", access | os.O_CLOEXEC)
        lock_for_use(pin)  # we are a user, and so not alone
        if self._is_marker:
            mark_from_now_on(pin)
        return pin

    # What readers ask.

    def are_resident(self, chunks: range) -> bool:
        """Say whether all of *chunks*, consecutive numbers, are resident."""
        return bytes(self.states[chunks.start : chunks.stop]).count(RESIDENT) == len(chunks)

    def resident_size(self) -> int:
        """Bytes of payload that are resident."""
        size = self.table.size
        return sum(size(i) for i, state in enumerate(self.states) if state == RESIDENT)

    # Claims.

    def claim(self, first: int, last: int) -> bool:
        """Claim chunks *first* to *last*; False if another process is fetching some of them."""
        try:
            self._lock_bytes(fcntl.F_WRLCK, first, last)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # a filesystem without such locks: both fetch
        return True

    def release(self, first: int, last: int) -> None:
        """End the claim of chunks *first* to *last*."""
        try:
            self._lock_bytes(fcntl.F_UNLCK, first, last)
        except OSError:
            pass

    def _lock_bytes(self, kind: int, first: int, last: int) -> None:
        lock_bytes(self._map_fd, kind, HEADER_SIZE + first, last - first + 1)

    # Marking.

    def _begin_marking(self) -> None:
        """See to it that the map is unclean before its first mark; raises NotStored."""
        if self._dirty:
            return
        try:
            header = read_header(self._map_fd)
            if header is not None and header.version != OLD_VERSION:
                write_header(self._map_fd, replace(header, is_clean=False))
                os.fdatasync(self._map_fd)
        except OSError as exc:
            raise self._not_stored(exc) from exc
        self._dirty = True

    def _not_stored(self, exc: OSError) -> NotStored:
        self.trouble = exc.strerror or str(exc)
        return NotStored(f"content store {self.folder}: {self.trouble}")

    def _mark(self, first: int, marks: bytes) -> None:
        """Set the marks of neighbours; raises OSError."""
        if RESIDENT in marks:
            self.was_marked[first : first + len(marks)] = marks
        os.pwrite(self._map_fd, marks, HEADER_SIZE + first)
        if not self._is_private and self.states[first : first + len(marks)] != marks:
            self._go_private()  # the file was cut, and a guard has put zeros in its place
        if self._is_private:
            self.states[first : first + len(marks)] = marks

    def _insist(self, first: int, marks: bytes) -> None:
        """Set marks, for ourselves at least: where the disk refuses, in a private map (OSError).

        Others are told what is not to be believed, also where the header does not say so.
        """
        try:
            try:
                self._begin_marking()
            except NotStored:
                if RESIDENT in marks:
                    raise
            self._mark(first, marks)
        except (OSError, NotStored):
            self._go_private()
            self.states[first : first + len(marks)] = marks

    def _go_private(self) -> None:
        if not self._is_private:
            make_private(self._map, self._map_fd)
            self._is_private = True

    # When chunks were hashed.

    @property
    def since(self) -> int:
        """When (in s since 1970) hashing began of the marked chunk that was hashed longest ago."""
        header = read_header(self._map_fd)
        is_known = header is not None and header.version != OLD_VERSION
        return header.since if header is not None and is_known else NEVER

    def note_checked(self, since: float) -> None:
        """Note that each marked chunk has been hashed after *since*, in this run of the machine."""
        try:
            self._begin_marking()
            header = read_header(self._map_fd)
            if header is not None and header.version != OLD_VERSION:
                write_header(self._map_fd, replace(header, since=int(since), boot=boot_id()))
        except (OSError, NotStored):
            pass  # then they are hashed again

    # The end.

    def _leave_clean(self, content_fd: int) -> None:
        """Have everything on the disk, and say so in the header, if it is the one of this map."""
        header = read_header(self._map_fd)
        if header is None or header.is_clean or header.version == OLD_VERSION or self._is_private:
            return
        size = os.fstat(self._map_fd).st_size
        if size != map_size(self.table) or not header.fits(self.table):
            return
        os.fdatasync(content_fd)
        self._map.flush()
        os.fdatasync(self._map_fd)
        status = os.fstat(content_fd)
        if (status.st_ino, status.st_size) == (header.inode, header.size):
            left = replace(header, is_clean=True, changed_at=status.st_ctime_ns)
            write_header(self._map_fd, left, self._map[HEADER_SIZE:])
            os.fdatasync(self._map_fd)

    def _close_map(self) -> None:
        unguard(self._map)
        self._map.close()
        os.close(self._map_fd)
        self._map_fd = -1
