"""A layer of an open image: its table, its content, and what is on its way."""

from array import array
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from lazyfs.errors import LazyfsError, StoreError
from lazyfs.formats.codec import Codec
from lazyfs.formats.stream import Points
from lazyfs.image.flights import Flight
from lazyfs.image.plan import Run
from lazyfs.oci.descriptor import Descriptor
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content import RESIDENT, LayerContent

AROUND_SIZE = 16 << 10
"""Blob bytes on either side of a miss.  Of the 33 misses of a first ``python3 -c`` 8 go away for
8 % more bytes; twice as many bytes on either side save one more, and cost as much again."""

AROUND_MAX = 256 << 10
"""The same for one that goes on near where it was: doubled with each miss, as for one that goes on
where it ended.  Whoever copies a folder visits files in the order of their names, not of the blob:
16 KiB at a time it made 30 misses in 600 KiB of small files."""

PART_SIZE = 256 << 10
PART_MAX = 2 << 20
LARGE_SIZE = 64 << 10
"""Where a layer comes in spans, whoever misses a chunk of this size, so a piece of a large file,
gets the aligned part of the blob around it; where half of the parts of a larger one have been
missed, all of that.  A program jumps in its libraries: node missed 115 times in spans where it
missed 22 times in chunks of 4 MiB."""

AHEAD_MIN = 64 << 10
AHEAD_MAX = 8 << 20
NOWHERE = -(1 << 63)  # not near any offset: the first demand is never a sequential one


class Unreadable(StoreError):
    """The disk does not give back a chunk that was stored."""

    def __init__(self, chunk: int, cause: OSError | StoreError) -> None:
        said = cause.strerror if isinstance(cause, OSError) else cause.message
        super().__init__(said or str(cause))
        self.chunk = chunk


class Device:
    """One layer as the drivers see it: a device whose chunks become resident on demand.

    ``number`` is the EROFS device number, 1 for the bottom layer.  A chunk's *position* is its
    place in blob order; chunks are read, prefetched and requested in that order.  ``used`` has a
    byte per chunk, 1 when it has been read; ``fetched`` the ``Purpose`` that it was fetched for,
    or 0.  ``points`` are the restart points of a plain layer, ``mend_points``
    has them here.  ``is_by_index``: what chunks should be, an index says that somebody has pinned.
    """

    def __init__(
        self,
        number: int,
        descriptor: Descriptor,
        table: LayerTable,
        content: LayerContent,
        points: Points | None = None,
        mend_points: "Callable[[Device, Iterable[int]], Awaitable[None]] | None" = None,
    ) -> None:
        self.number = number
        self.descriptor = descriptor
        self.table = table
        self.content = content
        self.points = points
        self.mend_points = mend_points
        self.is_by_index = False
        self.flights: dict[int, Flight] = {}
        self.refused: dict[int, tuple[LazyfsError, float]] = {}
        self.order = table.by_blob()
        self._positions = None if isinstance(self.order, range) else _inverse(self.order)
        self._ahead_size = 0
        # Blob offset and position up to which the last demand was served, or read ahead.
        self._ahead_end = NOWHERE
        self._ahead_position = 0
        self.is_sequential = False  # whether the last miss went on where the one before was
        self._around_size = AROUND_SIZE
        self._demanded = (NOWHERE, NOWHERE)  # the blob range of the last demand
        self._parts: set[int] = set()  # in which a piece of a large file was missed
        self.marks: set[int] = set()
        self.used = bytearray(table.count)
        self.fetched = bytearray(table.count)

    def position(self, chunk: int) -> int:
        """Return the place of *chunk* in blob order."""
        return chunk if self._positions is None else self._positions[chunk]

    def is_complete(self) -> bool:
        """Say whether all chunks are resident."""
        return bytes(self.content.states).count(RESIDENT) == self.table.count

    def is_wanted(self, chunk: int) -> bool:
        """Say whether *chunk* is neither resident nor on its way."""
        return self.content.states[chunk] != RESIDENT and chunk not in self.flights

    def within(self, start: int, end: int) -> list[int]:
        """Return the wanted chunks that blob bytes *start* to *end* hold, in blob order."""
        table, order = self.table, self.order
        first = bisect_left(order, start, key=table.blob_offset)
        beyond = bisect_left(order, end, lo=first, key=table.blob_offset)
        held = (order[position] for position in range(first, beyond))
        return [chunk for chunk in held if table.blob_end(chunk) <= end and self.is_wanted(chunk)]

    def take_off(self, run: Run) -> None:
        """Put the chunks of *run*, which are wanted, on their way."""
        for chunk in run.chunks:
            self.flights[chunk] = run.flights[chunk] = Flight(run.progress)

    def assemble(self, unstored: Mapping[int, bytes], offset: int, size: int) -> bytes:
        """Return bytes of the device, of chunks that are resident or *unstored*; or Unreadable."""
        content, holes = self.content, self.table.holes
        result = bytearray(size)
        for chunk in self.table.covering(offset, offset + size):
            start = self.table.device_offset(chunk)
            low = max(offset, start)
            high = min(offset + size, start + self.table.size(chunk))
            data = unstored.get(chunk)
            try:
                result[low - offset : high - offset] = (
                    content.read(low, high - low)
                    if data is None
                    else memoryview(data)[low - start : high - start]
                )
            except (OSError, StoreError) as exc:
                if chunk not in holes:
                    raise Unreadable(chunk, exc) from exc
        return bytes(result)  # of a hole, which is zeros, nothing need be read

    def land_resident(self, run: Run) -> None:
        """Land the flights of *run* whose chunks are resident by now."""
        states = self.content.states
        landed = [chunk for chunk in run.chunks if states[chunk] == RESIDENT]
        if landed:
            run.chunks = [chunk for chunk in run.chunks if states[chunk] != RESIDENT]
        for chunk in landed:
            flight = self.take_down(run, chunk)
            if flight is not None:
                flight.land()

    def raise_if_refused(self, chunk: int, now: float) -> None:
        """Raise why a chunk is not asked for again yet, if that is so."""
        refused = self.refused.get(chunk)
        if refused is None:
            return
        error, until = refused
        if now < until:
            raise error
        del self.refused[chunk]

    def take_down(self, run: Run, chunk: int) -> Flight | None:
        """Return the flight of *run* for *chunk*, off the table, or None if it has ended.

        The table may hold another flight for the same chunk by now, of a reader who came after
        this one had failed: that one stays.
        """
        flight = run.flights.pop(chunk, None)
        if flight is not None and self.flights.get(chunk) is flight:
            del self.flights[chunk]
        return flight

    def with_stream(self, chunks: Iterable[int]) -> list[int]:
        """Return *chunks* and all wanted ones that share a compressed stream with one of them.

        They arrive and are inflated anyway.  Sorted by position.
        """
        table, order = self.table, self.order
        positions: set[int] = set()
        for chunk in chunks:
            position = self.position(chunk)
            if position in positions:
                continue
            stream = table.blob_offset(chunk)
            first = last = position
            while first > 0 and table.blob_offset(order[first - 1]) == stream:
                first -= 1
            while last + 1 < len(order) and table.blob_offset(order[last + 1]) == stream:
                last += 1
            positions.update(range(first, last + 1))
        return [order[p] for p in sorted(positions) if self.is_wanted(order[p])]

    def with_neighbours(self, chunks: list[int]) -> list[int]:
        """Return *chunks*, which a reader misses now, with what to fetch along with them.

        For a reader that goes on where the last demand ended, in blob order and so also across
        files: a window ahead that doubles from 64 KiB to 8 MiB.  For one that jumps: the small
        chunks within 16 KiB, since files that lie together are often used together; within more
        for one that does not jump far.
        """
        start, end = self.table.blob_offset(chunks[0]), self.table.blob_end(chunks[-1])
        goes_on = 0 <= start - self._ahead_end <= AHEAD_MIN
        low, high = self._demanded
        is_near = low - AROUND_MAX <= end and start <= high + AROUND_MAX
        self.is_sequential = goes_on or is_near
        self._around_size = min(2 * self._around_size, AROUND_MAX) if is_near else AROUND_SIZE
        self._demanded = (start, end)
        self._ahead_position = self.position(chunks[-1]) + 1
        self._ahead_end = self.table.blob_end(chunks[-1])
        self.marks.clear()
        if goes_on:
            return chunks + self.go_ahead()
        self._ahead_size = 0
        around = self._around(chunks)
        if not self._is_of_large_file(chunks[0]):
            return around
        part = self.with_stream([*self.within(*self._part(start, end)), *around])
        # Whoever goes on does so where this ends.
        self._ahead_position = self.position(part[-1]) + 1
        self._ahead_end = self.table.blob_end(part[-1])
        self._ahead_size = self._ahead_end - self.table.blob_offset(part[0])
        return part

    def _is_of_large_file(self, chunk: int) -> bool:
        """Say whether *chunk* is of a span, and so large that most of the span is one file."""
        return self.table.codec(chunk) == Codec.DEFLATE and self.table.size(chunk) >= LARGE_SIZE

    def _part(self, start: int, end: int) -> tuple[int, int]:
        """Return the part of the blob to fetch for a miss of blob bytes *start* to *end*."""
        first, last = start // PART_SIZE, (end - 1) // PART_SIZE
        self._parts.update(range(first, last + 1))
        low, high = first, last + 1
        count = 2
        while count * PART_SIZE <= PART_MAX:
            base = first - first % count
            if 2 * sum(part in self._parts for part in range(base, base + count)) >= count:
                low, high = min(low, base), max(high, base + count)
            count *= 2
        return low * PART_SIZE, high * PART_SIZE

    def _around(self, chunks: list[int]) -> list[int]:
        table, order = self.table, self.order
        first, last = self.position(chunks[0]), self.position(chunks[-1])
        before: list[int] = []
        lowest = table.blob_offset(chunks[0]) - self._around_size
        while first > 0 and table.blob_offset(order[first - 1]) >= lowest:
            first -= 1
            if self.is_wanted(order[first]):
                before.append(order[first])
        after: list[int] = []
        highest = table.blob_end(chunks[-1]) + self._around_size
        while last + 1 < len(order) and table.blob_end(order[last + 1]) <= highest:
            last += 1
            if self.is_wanted(order[last]):
                after.append(order[last])
        return before[::-1] + chunks + after

    def go_ahead(self) -> list[int]:
        """Return the chunks of the next, larger window: the reader has reached the mark.

        The mark is the middle of a window, so that the next one is asked for before it is needed.
        """
        self._ahead_size = min(max(AHEAD_MIN, 2 * self._ahead_size), AHEAD_MAX)
        limit = self._ahead_end + self._ahead_size
        ahead: list[int] = []
        for position in range(self._ahead_position, len(self.order)):
            chunk = self.order[position]
            if self.table.blob_end(chunk) > limit and ahead:
                break
            self._ahead_position = position + 1
            self._ahead_end = self.table.blob_end(chunk)
            if self.is_wanted(chunk):
                ahead.append(chunk)
        self.marks.clear()
        if ahead:
            self.marks.add(ahead[len(ahead) // 2])
        return ahead


def _inverse(order: Sequence[int]) -> "array[int]":
    """Return the position of each chunk, by chunk number."""
    positions = array("Q", bytes(8 * len(order)))
    for position, chunk in enumerate(order):
        positions[chunk] = position
    return positions
