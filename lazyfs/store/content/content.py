"""The content store of one layer: a sparse file in device layout, and its presence map.

A chunk is verified, written, and only then marked.  The presence map (presence.py) has one *byte*
per chunk, so that processes mark chunks without a lock and lose no mark.

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
Rule 7: a map speaks of one content file.  Another file in its place is never believed by it: who is
alone doubts the marks, who is not starts another pair of files.
Rule 8: a file that changes under its users is noticed by its size and by holes where a chunk should
be; then every mark is doubted.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from lazyfs.errors import StoreError
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.holes import fill_holes, has_hole, has_zero_page, is_zero, make_zeros
from lazyfs.store.content.marks import NEVER as NEVER
from lazyfs.store.content.marks import Marks
from lazyfs.store.content.marks import NotStored as NotStored
from lazyfs.store.content.pair import open_pair
from lazyfs.store.content.presence import ABSENT, DOUBTFUL, RESIDENT, doubted, is_mine
from lazyfs.store.content.rows import Payload, rows_of, write_row
from lazyfs.store.content.spool import open_spool

VAIN_FILLS = 4
"""So many chunks of zeros that stay holes when they are written: then holes tell nothing."""


class ContentUnusable(StoreError):
    """A layer's content cannot be opened or read."""


class ContentLost(ContentUnusable):
    """The content file has not the bytes that were marked; all of them are doubted now."""


class LayerContent(Marks):
    """The content of one layer, opened; made when it is missing.

    Thread-safe: ``write``, ``write_all`` and ``confirm`` are called from decoding threads, the rest
    from the event loop.  ``states`` is the presence map, one byte per chunk; readers may index it
    directly.  Unless *counts_as_use* is false, opening and closing make the layer the last used
    one.  Marks that may have gone bad are doubted; ``doubted`` says why, empty if they are
    believed.  ``was_shown``: a live mount
    may have shown bytes that are doubted now.  ``holes_tell``: what was written is no hole here.
    ``unreadable`` are the chunks that the disk did not give back: they are stored no more.
    """

    def __init__(
        self,
        folder: Path,
        table: LayerTable,
        *,
        counts_as_use: bool = True,
    ) -> None:
        self._counts_as_use = counts_as_use
        try:
            pair = open_pair(folder, table)
        except OSError as exc:
            raise ContentUnusable(f"content store {folder}: {exc.strerror}") from exc
        super().__init__(folder, table, pair)
        self.fd = pair.fd
        self.unreadable: set[int] = set()
        self.doubted = pair.reason
        self.was_shown = pair.was_shown
        self.holes_tell, self._vain_fills = True, 0
        self._times = pair.times
        self._note_use()

    def _note_use(self) -> None:
        """Set the map's time, which says when the layer was last used."""
        if self._counts_as_use:
            os.utime(self._map_fd)

    # What readers ask.

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes of the device; the caller has seen that they are resident.

        Raises ContentLost where the file does not have them any more, OSError where the disk does
        not give them back.
        """
        data = os.pread(self.fd, size, offset)
        is_lost = len(data) != size
        if not is_lost and self.holes_tell and has_zero_page(data, offset):
            is_lost = self.has_lost(offset, size)
        if is_lost:
            self.doubt()
            raise ContentLost(
                f"content store {self.folder}: bytes {offset} to {offset + size} are gone from"
                " the content file, which something else has changed"
            )
        return data

    def has_lost(self, offset: int, size: int) -> bool:
        """Say whether part of a chunk that was written is a hole of the file, or behind its end."""
        table = self.table
        for chunk in table.covering(offset, offset + size):
            start = table.device_offset(chunk)
            low, high = max(offset, start), min(offset + size, start + table.size(chunk))
            if chunk not in table.holes and has_hole(self.fd, low, high):
                return True
        return False

    def doubt(self) -> None:
        """Doubt all that is marked: the content file is not as its users left it.

        What others mark meanwhile may be doubted, too, or forgotten.
        """
        self.doubted, self.was_shown = "a change under a live mount", True
        try:
            self._insist(0, doubted(self.states))
            if os.fstat(self.fd).st_size != self.table.device_size:
                os.ftruncate(self.fd, self.table.device_size)
        except OSError:
            pass  # a short file is noticed by whoever reads it

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
            self._mark(row[0][0], bytes([self._mark_of_written()]) * len(row))
        except OSError as exc:
            raise self._not_stored(exc) from exc

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
            self._mark(chunk, bytes([self._mark_of_written()]))
        except OSError as exc:
            raise self._not_stored(exc) from exc

    def _mark_of_written(self) -> int:
        """Return how to mark what was just written: a file that was cut may have lost that, too."""
        if os.fstat(self.fd).st_size == self.table.device_size:
            return RESIDENT
        self.doubt()  # rule 8: behind what was written it has zeros now
        return DOUBTFUL

    def open_spool(self) -> BinaryIO:
        """Open a temporary file, without a name, for a chunk that is too large for memory."""
        return cast(BinaryIO, open_spool(self.folder))

    def confirm(self, chunk: int) -> bool:
        """Hash a doubtful chunk again; mark it resident, or absent and return False."""
        if self.states[chunk] != DOUBTFUL:
            return self.states[chunk] == RESIDENT
        return self.check_again(chunk)

    def check_again(self, chunk: int, keep: Callable[[int], None] | None = None) -> bool:
        """Hash a marked chunk; mark it resident, or absent and return False.

        *keep* is told before the mark of one that is wrong goes.
        """
        state = self.states[chunk]
        if state == ABSENT:
            return False
        try:
            is_right = self.hash_again(chunk)
        except OSError as exc:
            self._not_stored(exc)
            if self.states[chunk] == state:  # else somebody has written it meanwhile
                self.distrust(chunk)
            return self.states[chunk] == RESIDENT
        if is_right:
            return True
        if self.states[chunk] == state:
            if keep is not None:
                keep(chunk)
            self.forget(chunk)
        return self.states[chunk] == RESIDENT

    def hash_again(self, chunk: int) -> bool:
        """Hash a marked chunk; mark it resident, or change nothing and return False (OSError)."""
        state = self.states[chunk]
        is_right, has_zeros = self._hash(chunk)
        if not is_right or (has_zeros and not self._keep_whole(chunk)):
            return False
        if state == DOUBTFUL:
            self._insist(chunk, bytes([RESIDENT]))
        return True

    def _keep_whole(self, chunk: int) -> bool:
        """Have no holes in a chunk that was written, where zeros are right; False: the disk fails.

        Where that cannot be had (ZFS keeps no zeros) holes tell nothing.
        """
        start = self.table.device_offset(chunk)
        end = start + self.table.size(chunk)
        if not self.holes_tell or not has_hole(self.fd, start, end):
            return True
        try:
            self._vain_fills += not fill_holes(self.fd, start, end)
        except OSError:
            return False
        self.holes_tell = self._vain_fills < VAIN_FILLS
        return True

    def is_right(self, chunk: int) -> bool:
        """Say the same as ``check``; what cannot be read is not right."""
        try:
            return self.check(chunk)
        except OSError:
            return False

    def distrust(self, chunk: int) -> None:
        """Mark a chunk absent that the disk does not give back, and store it no more."""
        self.trouble = self.trouble or os.strerror(errno.EIO)
        if chunk not in self.table.holes:
            self.unreadable.add(chunk)
        self.forget(chunk)

    def check(self, chunk: int) -> bool:
        """Say whether the stored bytes of *chunk* have its digest, or of a hole are zeros."""
        return self._hash(chunk)[0]

    def _hash(self, chunk: int) -> tuple[bool, bool]:
        """Return whether a chunk is right, and whether it has pages of zeros (OSError)."""
        hasher = hashlib.sha256()
        offset = self.table.device_offset(chunk)
        end = offset + self.table.size(chunk)
        if chunk in self.table.holes:
            return is_zero(self.fd, offset, end), False
        has_zeros = False
        while offset < end:
            data = os.pread(self.fd, min(end - offset, 1 << 20), offset)
            if not data:
                return False, has_zeros
            hasher.update(data)
            has_zeros = has_zeros or has_zero_page(data, offset)
            offset += len(data)
        return hasher.digest() == self.table.digest(chunk), has_zeros

    def forget(self, chunk: int) -> None:
        """Mark a chunk absent: its stored bytes turned out to be wrong.  Of a hole, mend them."""
        try:
            if chunk not in self.table.holes:
                self._insist(chunk, bytes([ABSENT]))
                return
            try:
                start = self.table.device_offset(chunk)
                make_zeros(self.fd, start, start + self.table.size(chunk))
            except OSError:
                self._insist(chunk, bytes([ABSENT]))
                raise
            self._insist(chunk, bytes([RESIDENT]))
        except OSError as exc:
            raise ContentUnusable(f"content store {self.folder}: {exc.strerror}") from exc

    def is_apart(self) -> bool:
        """Say whether other files than those that are open here have their names by now.

        Then whoever checks the store looks at those, and sees nothing of these.
        """
        try:
            return not (
                os.path.samestat(os.fstat(self._map_fd), os.stat(self.folder / "presence"))
                and os.path.samestat(os.fstat(self.fd), os.stat(self.folder / "content"))
            )
        except OSError:
            return True

    def suspect(self, first: int, last: int) -> None:
        """Doubt those of chunks *first* to *last* that are believed: some are said to be wrong."""
        try:
            self._insist(first, doubted(self.states[first : last + 1]))
        except OSError as exc:
            raise ContentUnusable(f"content store {self.folder}: {exc.strerror}") from exc

    def close(self) -> None:
        """Close; the last user leaves a map that the next one believes.  Idempotent."""
        if self._map_fd < 0:
            return
        self.states.release()
        try:
            self._note_use()
            if is_mine(self._map_fd):
                self._leave_clean(self.fd)
                if not self._counts_as_use:
                    os.utime(self._map_fd, ns=self._times)
        except OSError:
            pass  # the disk fails: then it stays unclean, and is re-hashed
        finally:
            self._close_map()
            os.close(self.fd)
