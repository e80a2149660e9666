"""A layer of an open image: its table, its content, and what is on its way."""

from array import array
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from lazyfs.errors import LazyfsError, StoreError
from lazyfs.fetch.gap_store import GapStore
from lazyfs.fetch.origins.flights import Flight
from lazyfs.fetch.plan import Run
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.stream import Points
from lazyfs.oci.descriptor import Descriptor
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT, RESIDENT

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

STEP_CHUNKS = 4096
"""Chunks that the event loop looks at in one go, for one miss and what is fetched with it: 20 ms.
A chunk may be one byte, so bytes alone bound nothing.  A mebibyte of usual chunks is 256."""

STREAM_CHUNKS = 16 << 10
"""Chunks of one compressed stream that are fetched together, as they arrive together: more than a
span of 128 KiB or a merged stream of eStargz holds.  Of a longer one a part comes at a time."""

EXPANSION, STREAM_EXTRA = 64, 64 << 10
"""What does not compress takes a 64th more at most, and headers so many bytes."""

AHEAD_MIN = 64 << 10
AHEAD_MAX = 8 << 20
NOWHERE = -(1 << 63)  # not near any offset: the first demand is never a sequential one


class Unreadable(StoreError):
    """The disk does not give back a chunk that was stored."""

    def __init__(self, chunk: int, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.chunk = chunk


class Device:
    """One layer as the drivers see it: a device whose chunks become resident on demand.

    ``number`` is the EROFS device number, 1 for the bottom layer.  A chunk's *position* is its
    place in blob order; chunks are read, prefetched and requested in that order.  ``used`` has a
    byte per chunk, 1 when it has been read; ``fetched`` the ``Purpose`` that it was fetched for,
    or 0.  ``points`` are the restart points of a plain layer, ``mend_points``
    has them here.  ``is_by_index``: what chunks should be, an index says that somebody has pinned.
    ``gaps`` takes what is decoded beside chunks, where that is wanted; ``agrees`` says whether the
    tar shows the same tree as the TOC, None where that is not known.  ``payload_end`` is where
    the last stream ends in the blob, as far as is known.
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
        self.gaps: GapStore | None = None
        self.agrees: bool | None = None
        self.payload_end = table.payload_end
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

    def blob_end(self, chunk: int) -> int:
        """Return up to where the blob is read for *chunk*."""
        end = self.table.blob_end(chunk)
        return self.payload_end if end == self.table.payload_end else end

    def doubt_end(self, chunk: int) -> None:
        """Look for the end of a stream further behind, if *chunk*, which came bad, is of the last.

        Nothing vouches for that: a footer says it, or that of another blob with the same TOC.
        """
        table = self.table
        if table.blob_end(chunk) == table.payload_end:
            need = table.inner_offset(chunk) + table.size(chunk)
            most = table.blob_offset(chunk) + need + need // EXPANSION + STREAM_EXTRA
            self.payload_end = max(self.payload_end, min(most, self.descriptor.size))

    def position(self, chunk: int) -> int:
        """Return the place of *chunk* in blob order."""
        return chunk if self._positions is None else self._positions[chunk]

    def is_complete(self) -> bool:
        """Say whether all chunks are resident."""
        return bytes(self.content.states).count(RESIDENT) == self.table.count

    def is_wanted(self, chunk: int) -> bool:
        """Say whether *chunk* is neither resident nor on its way."""
        return self.content.states[chunk] != RESIDENT and chunk not in self.flights

    def is_missing(self, chunk: int) -> bool:
        """Say whether nothing of *chunk* is here, and it is not on its way."""
        return self.content.states[chunk] == ABSENT and chunk not in self.flights

    def assemble(self, unstored: Mapping[int, bytes], offset: int, size: int) -> bytes | None:
        """Return bytes that have been made sure of, None where they have been doubted since.

        *unstored* are chunks that the store could not take.  Raises ContentLost, Unreadable.
        """
        content, holes = self.content, self.table.holes
        chunks = self.table.covering(offset, offset + size)
        if content.are_resident(chunks):
            try:
                return content.read(offset, size)
            except OSError:
                pass  # looked into below: one of the chunks, or more
        for chunk in chunks:
            # Where nothing was written a content file has zeros: they must not pass for bytes.
            if chunk not in unstored and content.states[chunk] != RESIDENT:
                return None
        result = bytearray(size)
        for chunk in chunks:
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
            except OSError as exc:
                if chunk not in holes:
                    raise Unreadable(chunk, exc) from exc
        return bytes(result)  # of a hole, which is zeros, nothing need be read

    def within(self, start: int, end: int) -> list[int]:
        """Return the wanted chunks that blob bytes *start* to *end* hold, in blob order.

        At most STREAM_CHUNKS of them.
        """
        table, order = self.table, self.order
        first = bisect_left(order, start, key=table.blob_offset)
        beyond = bisect_left(order, end, lo=first, key=table.blob_offset)
        beyond = min(beyond, first + STREAM_CHUNKS)
        held = (order[position] for position in range(first, beyond))
        return [chunk for chunk in held if table.blob_end(chunk) <= end and self.is_wanted(chunk)]

    def take_off(self, run: Run) -> None:
        """Put the chunks of *run*, which are wanted, on their way."""
        for chunk in run.chunks:
            self.flights[chunk] = run.flights[chunk] = Flight(run.progress)

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

        They arrive and are inflated anyway.  Sorted by position.  Of a stream of more than
        STREAM_CHUNKS, those around each of *chunks*.
        """
        table, order = self.table, self.order
        positions: set[int] = set()
        for chunk in chunks:
            position = self.position(chunk)
            if position in positions:
                continue
            stream = table.blob_offset(chunk)
            first = last = position
            lowest = max(0, position - STREAM_CHUNKS // 2)
            highest = min(len(order) - 1, position + STREAM_CHUNKS // 2)
            while first > lowest and table.blob_offset(order[first - 1]) == stream:
                first -= 1
            while last < highest and table.blob_offset(order[last + 1]) == stream:
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
        least, most = max(0, first - STEP_CHUNKS), min(len(order) - 1, last + STEP_CHUNKS)
        while first > least and table.blob_offset(order[first - 1]) >= lowest:
            first -= 1
            if self.is_wanted(order[first]):
                before.append(order[first])
        after: list[int] = []
        highest = table.blob_end(chunks[-1]) + self._around_size
        while last < most and table.blob_end(order[last + 1]) <= highest:
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
        most = min(len(self.order), self._ahead_position + STEP_CHUNKS)
        for position in range(self._ahead_position, most):
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
