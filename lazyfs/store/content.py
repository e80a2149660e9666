"""The content store of one layer: a sparse file in device layout, and its presence map.

A chunk is verified, written, and only then marked.  The presence map has one *byte* per chunk, so
that processes mark chunks without a lock and lose no mark:

    ABSENT     nothing is known of the chunk's bytes
    DOUBTFUL   it was marked before an unclean stop: it is hashed again on first use
    RESIDENT   verified and written

Rule 1: a byte becomes RESIDENT only after the chunk's verified bytes are in the content file.
Rule 2: before the first mark of a session, ``clean`` in the header goes to 0 on the disk; it goes
back to 1 when the last user closes, after everything is on the disk.  A map that nobody holds and
that is not clean has been left by a crash: every RESIDENT becomes DOUBTFUL.
Rule 3: whoever uses the map holds a shared lock on it, so "nobody holds it" can be known; removal
takes the exclusive one (locks.py).
Rule 4: no bytes are ever written over a RESIDENT chunk but the same verified ones.
Rule 5: a chunk that is a hole is RESIDENT from the start, and a hole of the content file; what
turns out not to be zeros there is made zeros again.
Rule 6: who fetches chunks claims them first, with a lock on their bytes of the map that ends with
its holder, so that two processes do not fetch the same ones.  A claim saves bandwidth; nothing that
is right depends on it.

Format: docs/format.md.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from lazyfs.errors import StoreError
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.locks import lock_bytes, lock_for_use, share
from lazyfs.store.private_map import make_private
from lazyfs.store.rows import Payload, rows_of, write_row
from lazyfs.store.spool import open_spool

HEADER_SIZE = 4096  # a page, so that marks never share one with ``clean``
HEADER = struct.Struct("<8sIIQ")
MAGIC = b"LFSPRES1"
VERSION = 1
ABSENT, DOUBTFUL, RESIDENT = 0, 1, 2
ZEROS = bytes(1 << 20)


class ContentUnusable(StoreError):
    """A layer's content cannot be opened or read."""


class NotStored(StoreError):
    """The store could not take a chunk: most often, its disk is full."""


def lock_presence(folder: Path) -> tuple[int, bool]:
    """Return a layer's presence map, locked, and whether the lock is exclusive (nobody else's)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder / "presence", flags, 0o600)
        alone = lock_for_use(fd)
        try:
            # Removal holds the exclusive lock and unlinks: what we locked may be gone.
            if os.path.samestat(os.fstat(fd), os.stat(folder / "presence")):
                return fd, alone
        except FileNotFoundError:
            pass
        os.close(fd)


def is_complete(folder: Path) -> bool:
    """Say whether all chunks of a layer are marked as resident, by a look at its map alone."""
    try:
        states = (folder / "presence").read_bytes()[HEADER_SIZE:]
    except OSError:
        return False
    return bool(states) and not states.strip(bytes([RESIDENT]))


class LayerContent:
    """The content of one layer, opened; made when it is missing.

    Thread-safe: ``write``, ``write_all`` and ``confirm`` are called from decoding threads, the rest
    from the event loop.  ``states`` is the presence map, one byte per chunk; readers may index it
    directly.  Unless *counts_as_use* is false, opening and closing make the layer the last used
    one.
    """

    _pin_flags = os.O_RDWR

    def __init__(self, folder: Path, table: LayerTable, *, counts_as_use: bool = True) -> None:
        self.folder = folder
        self.table = table
        self.trouble = ""  # why the last write failed
        self.unreadable: set[int] = set()
        self._is_private = False  # the map: what is marked in it does not get to the disk
        self._dirty = False
        self._counts_as_use = counts_as_use
        self._map_fd = self.fd = -1
        try:
            self._map_fd, alone = lock_presence(folder)
            self.fd = os.open(
                folder / "content", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            if os.fstat(self.fd).st_size != table.device_size:
                os.ftruncate(self.fd, table.device_size)
            self._map = self._open_map(alone)
        except OSError as exc:
            for fd in (self._map_fd, self.fd):  # a lock that stayed would keep others waiting
                if fd >= 0:
                    os.close(fd)
            raise ContentUnusable(f"content store {folder}: {exc.strerror}") from exc
        self.states = memoryview(self._map)[HEADER_SIZE:]
        # Paged in now: a disk that fails when a mark is first looked at would be a SIGBUS.
        bytes(self.states[:: mmap.PAGESIZE])
        self._note_use()

    def open_pin(self) -> int:
        """Return a new descriptor that keeps the layer in use until its last copy is closed.

        For a process that is to outlive this one: whoever opens the layer then is not alone, and
        believes its marks.  -1 where there is nothing to keep.
        """
        # Not by its name, which may be gone, or another layer's by now.
        pin = os.open(f"/proc/self/fd/{self._map_fd}", self._pin_flags | os.O_CLOEXEC)
        lock_for_use(pin)  # we are a user, and so not alone
        return pin

    def _note_use(self) -> None:
        """Set the map's time, which says when the layer was last used."""
        if self._counts_as_use:
            try:
                os.utime(self._map_fd)
            except OSError:
                pass  # it may go earlier than it should

    def _open_map(self, alone: bool) -> mmap.mmap:
        size = HEADER_SIZE + max(1, self.table.count)
        fd = self._map_fd
        header = os.pread(fd, HEADER.size, 0)
        clean, fits = 0, False
        if len(header) == HEADER.size and os.fstat(fd).st_size == size:
            magic, version, clean, count = HEADER.unpack(header)
            fits = (magic, version, count) == (MAGIC, VERSION, self.table.count)
        if not fits:
            if not alone:
                raise OSError(errno.EIO, "the presence map does not fit the layer table")
            self._reset_map(size)
            clean = 1
        mapped = mmap.mmap(fd, size)
        if alone:
            if not clean:
                marks = mapped[HEADER_SIZE:]
                mapped[HEADER_SIZE:] = marks.replace(bytes([RESIDENT]), bytes([DOUBTFUL]))
            self._open_holes(mapped)
            share(fd)
        return mapped

    def _open_holes(self, mapped: mmap.mmap) -> None:
        """See to rule 5: nobody else has the layer open, and nothing has been marked.

        A doubtful hole is looked at now, not when it is read: there is nothing to fetch for it.
        """
        absent = [chunk for chunk in self.table.holes if mapped[HEADER_SIZE + chunk] != RESIDENT]
        if sum(self._clear(chunk) for chunk in absent):
            os.fdatasync(self.fd)  # the map is clean, so its marks are believed after a crash
        for chunk in absent:
            mapped[HEADER_SIZE + chunk] = RESIDENT

    def _clear(self, chunk: int) -> bool:
        """Make zeros of a chunk's bytes (OSError); say whether there was anything to do."""
        start = self.table.device_offset(chunk)
        was_written = False
        for offset, end in self._written(start, start + self.table.size(chunk)):
            place = offset
            while place < end:
                place += os.pwrite(self.fd, ZEROS[: end - place], place)
            was_written = True
        return was_written

    def _written(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges from *start* to *end* that are no holes of the content file."""
        while start < end:
            try:
                start = os.lseek(self.fd, start, os.SEEK_DATA)
                after = os.lseek(self.fd, start, os.SEEK_HOLE)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # nothing up to the file's end
                    return
                raise
            if start < end:
                yield start, min(after, end)
            start = after

    def _reset_map(self, size: int) -> None:
        """Start with nothing resident; what the content file holds is not believed."""
        os.ftruncate(self._map_fd, 0)
        # Allocated, not sparse: a store into a mapped hole on a full disk would be a SIGBUS.
        os.posix_fallocate(self._map_fd, 0, size)
        os.pwrite(self._map_fd, HEADER.pack(MAGIC, VERSION, 1, self.table.count), 0)

    # What readers ask.

    def is_resident(self, chunks: range) -> bool:
        """Say whether all *chunks* are resident."""
        states = self.states
        return all(states[i] == RESIDENT for i in chunks)

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes of the device; the caller has seen that they are resident."""
        data = os.pread(self.fd, size, offset)
        if len(data) != size:
            raise ContentUnusable(
                f"content store {self.folder}: got {len(data)} bytes at {offset}, expected {size}"
            )
        return data

    def resident_size(self) -> int:
        """Bytes of payload that are resident."""
        size = self.table.size
        return sum(size(i) for i, state in enumerate(self.states) if state == RESIDENT)

    # Claims, rule 6.

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

    # What decoding threads do.

    def write(self, chunk: int, data: bytes) -> None:
        """Store the verified bytes of *chunk* and mark it; NotStored if the disk refuses them."""
        if self.write_all([(chunk, (data,))]):
            raise NotStored(f"content store {self.folder}: {self.trouble}")

    def write_all(self, payloads: Sequence[Payload]) -> list[int]:
        """Store the verified bytes of chunks and mark them; return those that the disk refuses."""
        absent = [payload for payload in payloads if self.states[payload[0]] != RESIDENT]  # rule 4
        refused = [chunk for chunk, _ in absent if chunk in self.unreadable]
        absent = [payload for payload in absent if payload[0] not in self.unreadable]
        try:
            if absent:
                self._begin_marking()
        except NotStored:
            return refused + [chunk for chunk, _ in absent]
        for row in rows_of(self.table, absent):
            try:
                self._write_row(row)
            except NotStored:
                if len(row) == 1:
                    refused.append(row[0][0])
                else:  # there may be room for some of them
                    refused += [chunk for each in row for chunk in self.write_all([each])]
        return refused

    def _write_row(self, row: Sequence[Payload]) -> None:
        try:
            write_row(self.fd, self.table, row)
            self._mark(row[0][0], bytes([RESIDENT]) * len(row))
        except OSError as exc:
            raise self._not_stored(exc) from exc

    def _mark(self, first: int, marks: bytes) -> None:
        """Set the marks of neighbours; raises OSError.

        By a call, since a store into the map of a file that the disk does not take is a SIGBUS.
        """
        os.pwrite(self._map_fd, marks, HEADER_SIZE + first)
        if self._is_private:
            self.states[first : first + len(marks)] = marks

    def _unmark(self, chunk: int) -> None:
        """Mark a chunk absent, for ourselves at least: where the disk refuses, in a private map."""
        try:
            self._mark(chunk, bytes([ABSENT]))
        except OSError:
            if not self._is_private:
                make_private(self._map, self._map_fd)
                self._is_private = True
            self.states[chunk] = ABSENT

    def copy(self, chunk: int, source_fd: int, source_offset: int) -> None:
        """Store *chunk* out of another file, whose bytes there the caller has verified; mark it.

        On a filesystem that can, the two files share the blocks afterwards.
        """
        if self.states[chunk] == RESIDENT:
            return
        if chunk in self.unreadable:
            raise NotStored(f"content store {self.folder}: chunk {chunk} could not be read")
        self._begin_marking()
        offset, left = self.table.device_offset(chunk), self.table.size(chunk)
        try:
            while left:
                copied = os.copy_file_range(source_fd, self.fd, left, source_offset, offset)
                if not copied:
                    raise NotStored(f"content store {self.folder}: the source of a copy ended")
                source_offset += copied
                offset += copied
                left -= copied
            self._mark(chunk, bytes([RESIDENT]))
        except OSError as exc:
            raise self._not_stored(exc) from exc

    def _not_stored(self, exc: OSError) -> NotStored:
        self.trouble = exc.strerror or str(exc)
        return NotStored(f"content store {self.folder}: {self.trouble}")

    def open_spool(self) -> BinaryIO:
        """Open a temporary file, without a name, for a chunk that is too large for memory."""
        return cast(BinaryIO, open_spool(self.folder))

    def _begin_marking(self) -> None:
        """See to rule 2; raises NotStored."""
        if not self._dirty:
            try:
                self._set_clean(0)
            except OSError as exc:
                raise self._not_stored(exc) from exc
            self._dirty = True

    def confirm(self, chunk: int) -> bool:
        """Hash a doubtful chunk again; mark it resident, or absent and return False."""
        if self.states[chunk] != DOUBTFUL:
            return self.states[chunk] == RESIDENT
        try:
            if self.check(chunk):
                self._mark(chunk, bytes([RESIDENT]))
                return True
        except OSError as exc:
            self._not_stored(exc)
            self.distrust(chunk)
            return False
        self.forget(chunk)
        return self.states[chunk] == RESIDENT

    def distrust(self, chunk: int) -> None:
        """Mark a chunk absent that the disk does not give back, and store it no more."""
        self.trouble = self.trouble or os.strerror(errno.EIO)
        if chunk not in self.table.holes:
            self.unreadable.add(chunk)
        self.forget(chunk)

    def check(self, chunk: int) -> bool:
        """Say whether the stored bytes of *chunk* have its digest, or of a hole are zeros."""
        hasher = hashlib.sha256()
        offset = self.table.device_offset(chunk)
        end = offset + self.table.size(chunk)
        if chunk in self.table.holes:
            return self._is_zero(offset, end)
        while offset < end:
            data = os.pread(self.fd, min(end - offset, 1 << 20), offset)
            if not data:
                return False
            hasher.update(data)
            offset += len(data)
        return hasher.digest() == self.table.digest(chunk)

    def _is_zero(self, start: int, end: int) -> bool:
        for offset, after in self._written(start, end):
            for place in range(offset, after, len(ZEROS)):
                data = os.pread(self.fd, min(after - place, len(ZEROS)), place)
                if data.count(0) != min(after - place, len(ZEROS)):
                    return False
        return True

    def forget(self, chunk: int) -> None:
        """Mark a chunk absent: its stored bytes turned out to be wrong.  Of a hole, mend them."""
        try:
            if chunk not in self.table.holes:
                self._unmark(chunk)
                return
            self._begin_marking()
            try:
                self._clear(chunk)
            except OSError:
                self._unmark(chunk)
                raise
            self._mark(chunk, bytes([RESIDENT]))
        except OSError as exc:
            raise ContentUnusable(f"content store {self.folder}: {exc.strerror}") from exc

    def _set_clean(self, clean: int) -> None:
        os.pwrite(self._map_fd, HEADER.pack(MAGIC, VERSION, clean, self.table.count), 0)
        os.fdatasync(self._map_fd)

    def close(self) -> None:
        """Close; the last user leaves a map that the next one believes.  Idempotent."""
        if self._map_fd < 0:
            return
        self.states.release()
        try:
            self._note_use()
            fcntl.flock(self._map_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _, _, clean, _ = HEADER.unpack(os.pread(self._map_fd, HEADER.size, 0))
            if not clean and not self._is_private:
                os.fdatasync(self.fd)
                self._map.flush()
                os.fdatasync(self._map_fd)
                self._set_clean(1)
        except OSError:
            pass  # others use it still, or the disk fails: then it stays unclean, and is re-hashed
        finally:
            self._map.close()
            os.close(self.fd)
            os.close(self._map_fd)
            self._map_fd = -1
