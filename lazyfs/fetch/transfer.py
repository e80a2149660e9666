"""One range request: its body becomes verified, stored chunks while it still arrives."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import BinaryIO

import trio

from lazyfs.fetch.device import Device
from lazyfs.fetch.origins.pace import Pace
from lazyfs.fetch.plan import Run
from lazyfs.formats.decode import Decoded, Piece, RangeDecoder
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tars.gaps import Gaps
from lazyfs.registry.source import Source
from lazyfs.store.content.content import LayerContent, NotStored

FEED_SIZE, FEED_MAX = 256 << 10, 512 << 10
FEED_SECONDS = 0.005
"""Compressed bytes handed to a worker at once: a thread hop costs 0.2 ms, inflating these 1 ms or
2.  More of them where they arrive within a moment, so that nobody waits for them."""

FEED_PLAIN = 16 << 20
"""What a worker makes of that at most, nearly, bytes.  Workers are few and shared by all: what is
compressed a thousandfold is handed over in smaller pieces, and others have their turn between."""
FEED_MIN = 16 << 10

THREAD_CHUNKS = 256
"""Of more chunks than this the pieces are made in a thread: the event loop goes on meanwhile."""

STORE_SIZE = 256 << 10
"""Verified bytes that are stored at once: enough for neighbours to share a call."""

Outcome = tuple[int, bytes | None, str | None]
"""A chunk's number, its bytes if the store did not take them, and why it is bad."""

Landed = Callable[[int, bytes | None], None]
"""Told of each verified chunk: its number, and its bytes if the store did not take them."""


async def transfer(
    source: Source,
    dev: Device,
    run: Run,
    *,
    workers: trio.CapacityLimiter,
    pace: Pace,
    landed: Landed,
) -> dict[int, str]:
    """Fetch *run*, decode and store its chunks in worker threads; return why chunks are bad.

    Whatever the source raises comes through; *landed* has been told of what was complete then.
    """
    if len(run.chunks) > THREAD_CHUNKS:
        pieces = await trio.to_thread.run_sync(pieces_of, dev, tuple(run.chunks))
    else:
        pieces = pieces_of(dev, run.chunks)
    step = _feed_size(pieces)
    catcher = dev.gaps
    caught: list[Gaps] = []
    decoder = RangeDecoder(
        *(pieces, run.start, dev.content.open_spool, dev.points),
        gaps=None if catcher is None else caught,
    )
    bad: dict[int, str] = {}

    async def feed(data: bytes | memoryview, *, is_last: bool = False) -> None:
        def decode() -> list[Outcome]:
            stored = _Storing(dev.content)
            decoder.feed(data, stored)
            if is_last:
                decoder.finish(stored)
            if catcher is not None and caught:
                catcher.add(caught)
                caught.clear()
            return stored.finish()

        for chunk, payload, error in await trio.to_thread.run_sync(decode, limiter=workers):
            if error is not None:
                bad[chunk] = error
            else:
                landed(chunk, payload)

    waiting = _Waiting(step, run.due - run.start)
    started = pace.started()
    is_answered = False
    try:
        async with _open(source, dev, run) as body:
            async for data in body:
                run.progress.heard = trio.current_time()
                if run.early is None:
                    if not is_answered:
                        pace.answered(started)
                        is_answered = True
                    pace.received(len(data))
                if waiting.add(data):
                    for part in waiting.take():
                        await feed(part)
        *parts, last = waiting.take()
        for part in parts:
            await feed(part)
        await feed(last, is_last=True)
    finally:
        pace.ended()
        decoder.close()
    return bad


class _Waiting:
    """Bytes that have come and wait to be handed over, in parts of *step* bytes at most.

    *due* bytes from the start there is the end of what somebody waits for.
    """

    def __init__(self, step: int, due: int) -> None:
        self._step = step
        self._due = due
        self._parts: list[bytes] = []
        self._size = self._received = 0
        self._began = 0.0  # when the first of them came

    def add(self, data: bytes) -> bool:
        """Take *data*; say whether it is time to hand over."""
        if not self._parts:
            self._began = trio.current_time()
        self._parts.append(data)
        self._size += len(data)
        self._received += len(data)
        return (
            self._received - len(data) < self._due <= self._received
            or self._size >= min(FEED_MAX, self._step)
            or (self._size >= FEED_SIZE and trio.current_time() >= self._began + FEED_SECONDS)
        )

    def take(self) -> Sequence[bytes | memoryview]:
        """Return all of them; one part at least."""
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return _cut(data, self._step)


def _feed_size(pieces: Sequence[Piece]) -> int:
    """Return how many compressed bytes a worker may get at once.

    By the chunk that is compressed most: what comes before it in its stream has to be inflated,
    too, so that counts as a part of it.
    """
    most = max(
        (
            (piece.inner_offset + piece.size) / max(1, piece.blob_end - piece.blob_offset)
            for piece in pieces
            if piece.codec != Codec.HOLE
        ),
        default=1.0,
    )
    return int(min(FEED_MAX, max(FEED_MIN, FEED_PLAIN / max(1.0, most))))


def _cut(data: bytes, size: int) -> list[memoryview | bytes]:
    """Return *data* in parts of *size* bytes, one at least."""
    if len(data) <= size + size // 2:
        return [data]
    view = memoryview(data)
    return [view[at : at + size] for at in range(0, len(data), size)]


def _open(
    source: Source, dev: Device, run: Run
) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    if run.early is not None:
        return run.early.open_range(source, run.start, run.end)
    return source.open_range(dev.descriptor, run.start, run.end)


def pieces_of(dev: Device, chunks: Sequence[int]) -> list[Piece]:
    """Return chunks of a layer as a decoder wants them."""
    table = dev.table
    return [
        Piece(
            chunk,
            table.blob_offset(chunk),
            dev.blob_end(chunk),
            table.inner_offset(chunk),
            table.size(chunk),
            table.digest(chunk),
            table.codec(chunk),
        )
        for chunk in chunks
    ]


class _Storing:
    """Stores verified chunks some at a time, so that few are in memory."""

    def __init__(self, content: LayerContent) -> None:
        self._content = content
        self._waiting: list[Decoded] = []
        self._size = 0
        self._outcomes: list[Outcome] = []

    def append(self, item: Decoded) -> None:
        """Take one, or why it is none."""
        if item.parts is not None:
            self._waiting.append(item)
            self._size += sum(map(len, item.parts))
            if self._size >= STORE_SIZE:
                self._store()
        elif item.spool is not None:
            self._outcomes.append((item.key, self._copy(item.key, item.spool), None))
        else:
            self._outcomes.append((item.key, None, item.error))

    def finish(self) -> list[Outcome]:
        """Store what is left; return what became of all of them."""
        self._store()
        return self._outcomes

    def _store(self) -> None:
        waiting, self._waiting, self._size = self._waiting, [], 0
        refused = set(self._content.write_all([(item.key, item.parts or ()) for item in waiting]))
        for item in waiting:
            self._outcomes.append((item.key, item.data if item.key in refused else None, None))

    def _copy(self, chunk: int, spool: BinaryIO) -> bytes | None:
        """Store a large chunk; return its bytes if the store does not take them."""
        with spool:
            try:
                self._content.copy(chunk, spool.fileno(), 0)
            except NotStored:
                spool.seek(0)
                return spool.read()
        return None
