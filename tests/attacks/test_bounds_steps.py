"""One silly file or answer must not keep the event loop, the workers or a slot from the others."""

import gzip
import hashlib
import random
import zlib
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from lazyfs.fetch import fetch as fetch_module
from lazyfs.fetch.ahead.prefetch import _segments, prefetch
from lazyfs.fetch.device import STEP_CHUNKS, STREAM_CHUNKS
from lazyfs.fetch.plan import Run
from lazyfs.fetch.profile import RECORD_CHUNKS
from lazyfs.fetch.refused import ChunkCorrupt
from lazyfs.fetch.transfer import FEED_MAX, FEED_MIN, FEED_PLAIN, _feed_size
from lazyfs.formats.decode import Piece
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.registry.answers.encodings import MEMBER_LIMIT, inflate
from lazyfs.registry.config.errors import BadAnswer
from lazyfs.rootfs.table import LayerTable, build_table
from lazyfs.store.content.presence import RESIDENT
from tests.fetch.test_fetch import Bench, opened
from tests.support.formats.layers import MadeLayer, digest_of
from tests.support.registries import faults
from tests.support.registries.clients import NAME, ONCE, connected
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

COUNT = 5 * STEP_CHUNKS
OTHER = random.Random(1).randbytes(50_000)


def silly_layer(count: int, *, is_shared: bool) -> MadeLayer:
    """Return a layer of a file of one-byte chunks, and of an ordinary one far behind it.

    Each chunk is a gzip member of its own, or all of them are in one.
    """
    data = bytes(number & 0xFF for number in range(count))
    members = [gzip.compress(bytes([value]), mtime=0) for value in range(256)]
    digests = [hashlib.sha256(bytes([value])).digest() for value in range(256)]
    blob = bytearray(b"\x1f" * 64)
    chunks = []
    for number, value in enumerate(data):
        place = (64, number) if is_shared else (len(blob), 0)
        chunks.append(Chunk(number, 1, *place, digests[value]))
        if not is_shared:
            blob += members[value]
    if is_shared:
        blob += gzip.compress(data, mtime=0)
    blob += bytes(1 << 20)
    other = Chunk(0, len(OTHER), len(blob), 0, hashlib.sha256(OTHER).digest())
    blob += gzip.compress(OTHER, mtime=0)
    entries = [
        TocEntry(path, Kind.REGULAR, 0o644, 0, 0, size=len(content), chunks=tuple(parts))
        for path, content, parts in ((b"silly", data, chunks), (b"other", OTHER, [other]))
    ]
    toc = Toc(digest_of(b"silly"), tuple(entries))
    table = LayerTable(build_table(toc, len(blob)))
    return MadeLayer(bytes(blob), toc, table, {b"silly": data, b"other": OTHER})


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """All that is planned in one go."""
    found: list[Run] = []
    plan = fetch_module.plan_runs

    def noted(*words, **options):
        planned = plan(*words, **options)
        found.extend(planned)
        return planned

    monkeypatch.setattr(fetch_module, "plan_runs", noted)
    return found


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_file_of_one_byte_chunks(tmp_path: Path, runs: list[Run], is_shared: bool) -> None:
    """It arrives by steps, and whoever misses another file meanwhile is served before its end."""
    async with opened(silly_layer(COUNT, is_shared=is_shared), tmp_path / "content") as bench:
        states = bench.device.content.states
        present = -1

        async def read_other() -> None:
            nonlocal present
            while not any(state == RESIDENT for state in bytes(states[:COUNT])):
                await trio.lowlevel.checkpoint()
            assert await bench.read(1) == bench.data(1)
            present = bytes(states[:COUNT]).count(RESIDENT)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_other)
            assert await bench.read(0) == bench.data(0)
        assert 0 < present < COUNT
        most = STREAM_CHUNKS + STEP_CHUNKS if is_shared else 4 * STEP_CHUNKS
        assert max(len(run.chunks) for run in runs) <= most


async def test_it_is_filled_in_the_background_by_steps(tmp_path: Path, runs: list[Run]) -> None:
    async with opened(silly_layer(COUNT, is_shared=True), tmp_path / "content") as bench:
        await prefetch(bench.fetcher, [bench.device], "all")
        assert bench.device.is_complete()
        assert max(len(run.chunks) for run in runs) <= STREAM_CHUNKS + STEP_CHUNKS


async def test_what_is_resident_is_looked_through_by_steps(tmp_path: Path) -> None:
    """Nothing is left to fill; whoever finds that out lets go of the event loop meanwhile."""
    layer = silly_layer(3 * STREAM_CHUNKS, is_shared=True)
    async with opened(layer, tmp_path / "content") as bench:
        states = bench.device.content.states
        states[:] = bytes([RESIDENT]) * len(states)
        found = list(_segments(bench.fetcher, bench.device))
        assert len(found) >= 3
        assert not any(chunks for _, chunks in found)
        await prefetch(bench.fetcher, [bench.device], "all")
        assert bench.source.requests == []


async def test_all_of_it_is_wrong(tmp_path: Path) -> None:
    """Bad chunks that lie together are fetched again together, and share a line of the log."""
    async with opened(silly_layer(COUNT, is_shared=False), tmp_path / "content") as bench:
        bench.source.bend = lambda start, data: bytes(len(data)) if start < 1 << 20 else data
        with pytest.raises(ChunkCorrupt, match=r"and [0-9]+ more: wrong bytes"):
            await bench.read(0)
        assert len(bench.source.requests) <= 16
        assert len(bench.reports) <= 16
        assert await bench.read(1) == bench.data(1)
        refused, _ = bench.device.refused[0]
        assert bench.device.refused[1][0] is refused


async def test_first_reads_are_recorded_up_to_a_number(tmp_path: Path) -> None:
    count = RECORD_CHUNKS + 10
    async with opened(silly_layer(count, is_shared=True), tmp_path / "content") as bench:
        bench.device.content.states[:count] = bytes([RESIDENT]) * count
        bench.device.content.holes_tell = False  # nothing was written
        assert bench.fetcher.read_nowait(1, 0, count) == bytes(count)
        assert not bench.fetcher.recorder.is_recording
        assert bench.device.used[:count].count(1) == count


@pytest.mark.parametrize(
    ("blob_size", "inner", "size", "step"),
    [
        (1000, 0, 4000, FEED_MAX),
        (100_000, 0, 100_000, FEED_MAX),
        (1 << 20, 0, 256 << 20, FEED_PLAIN >> 8),
        (1 << 20, 255 << 20, 1 << 20, FEED_PLAIN >> 8),  # what comes before is inflated as well
        (1000, 0, 1 << 30, FEED_MIN),
    ],
)
def test_workers_get_what_they_make_little_of(
    blob_size: int, inner: int, size: int, step: int
) -> None:
    pieces = [Piece(0, 5, 5 + 1000, 0, 1000, b""), Piece(1, 9, 9 + blob_size, inner, size, b"")]
    assert _feed_size(pieces) == step
    assert _feed_size([piece._replace(codec=Codec.HOLE) for piece in pieces]) == FEED_MAX


async def test_a_file_of_zeros_goes_through_the_workers_by_steps(tmp_path: Path) -> None:
    data = bytes(200 << 20)
    blob = b"\x1f" * 64 + gzip.compress(data, 9, mtime=0)
    chunk = Chunk(0, len(data), 64, 0, hashlib.sha256(data).digest())
    entry = TocEntry(b"zeros", Kind.REGULAR, 0o644, 0, 0, size=len(data), chunks=(chunk,))
    toc = Toc(digest_of(b"zeros"), (entry,))
    table = LayerTable(build_table(toc, len(blob)))
    async with opened(MadeLayer(blob, toc, table, {b"zeros": data}), tmp_path / "c") as bench:
        bench.source.piece_size = len(blob)  # all of it comes at once
        fed = _count_hops(bench)
        await bench.fetcher.ensure(1, 0, len(data))
        assert bench.device.is_complete()
        assert fed() >= len(blob) // FEED_MIN // 2


def _count_hops(bench: Bench):
    """Return what tells how often a worker was taken."""
    taken = 0
    workers = bench.fetcher._workers
    acquire = workers.acquire_on_behalf_of

    async def counted(borrower: object) -> None:
        nonlocal taken
        taken += 1
        await acquire(borrower)

    bench.fetcher._workers = CountedLimiter(workers, counted)  # type: ignore[assignment]
    return lambda: taken


class CountedLimiter:
    def __init__(self, limiter: trio.CapacityLimiter, acquire) -> None:
        self.release_on_behalf_of = limiter.release_on_behalf_of
        self.acquire_on_behalf_of = acquire


# Documents that were compressed unasked.

EMPTY = gzip.compress(b"", mtime=0)


@pytest.mark.parametrize("count", [MEMBER_LIMIT + 1, 1000, 100_000])
def test_empty_members_without_an_end(count: int) -> None:
    with pytest.raises(BadAnswer, match=f"more than {MEMBER_LIMIT} members"):
        inflate(EMPTY * count, 1000, "GET x")


def test_members_that_are_few() -> None:
    assert inflate(EMPTY * (MEMBER_LIMIT - 1) + gzip.compress(b"x"), 1000, "GET x") == b"x"
    assert inflate(gzip.compress(b"ab") + gzip.compress(b"cd"), 3, "GET x") == b"abc"


def test_blocks_that_hold_nothing() -> None:
    """A member may be of empty blocks; it ends early, or is read to its end."""
    head = zlib.compressobj(1, zlib.DEFLATED, 31)
    start = head.compress(b"") + head.flush(zlib.Z_FULL_FLUSH)
    with pytest.raises(BadAnswer, match="ends early"):
        inflate(start + b"\0\0\0\xff\xff" * 100_000, 1000, "GET x")


async def test_a_registry_that_answers_so() -> None:
    bombs = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    with FakeRegistry() as registry:
        registry.put_manifest(NAME, b"{}", "application/x", "v1")
        answer = faults.Answer(200, bombs, EMPTY * 200_000)
        registry.faults.add(lambda request, right: answer, path="/manifests/", times=None)
        async with connected(registry, policy=ONCE) as client:
            with pytest.raises(BadAnswer, match="members"):
                await client.fetch_manifest("v1")
