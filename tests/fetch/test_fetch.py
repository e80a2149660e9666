"""``ensure``: who waits for what, what is asked for, and what a bad byte costs."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from lazyfs.errors import Unavailable
from lazyfs.fetch.ahead.prefetch import prefetch
from lazyfs.fetch.counts import Purpose
from lazyfs.fetch.device import AROUND_MAX, AROUND_SIZE, Device
from lazyfs.fetch.fetch import FetchBroken, Fetcher
from lazyfs.fetch.origins.early import EarlyRange
from lazyfs.fetch.pressure import Demand
from lazyfs.fetch.refused import ChunkCorrupt
from lazyfs.fetch.transfer import STORE_SIZE
from lazyfs.fetch.twins import Twins
from lazyfs.oci.descriptor import Descriptor
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.rows import Payload
from lazyfs.store.content.unwritten import UnstoredContent
from lazyfs.store.paths import Store
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.registries.sources import MemorySource

pytestmark = pytest.mark.anyio


@dataclass
class Bench:
    """A fetcher over one layer in memory."""

    layer: MadeLayer
    device: Device
    fetcher: Fetcher
    source: MemorySource
    origin: Any
    nursery: trio.Nursery
    reports: list[str] = field(default_factory=list)

    def span(self, number: int) -> tuple[int, int]:
        """Return where file *number* lies on the device."""
        offset = 0
        for index, data in enumerate(self.layer.files.values()):
            if index == number:
                return offset, offset + len(data)
            offset += -(-len(data) // 4096) * 4096
        raise AssertionError(number)

    def data(self, number: int) -> bytes:
        return list(self.layer.files.values())[number]

    async def read(self, number: int) -> bytes:
        start, end = self.span(number)
        return await self.fetcher.read(1, start, end - start)


@asynccontextmanager
async def opened(
    layer: MadeLayer,
    folder: Path,
    content_type: Callable[..., LayerContent] = LayerContent,
    store: Store | None = None,
) -> AsyncIterator[Bench]:
    content = content_type(folder, layer.table)
    source = MemorySource({layer.digest: layer.blob})
    origin: Any = SimpleNamespace(source=source, is_open=True)
    device = Device(1, Descriptor("", layer.digest, len(layer.blob)), layer.table, content)
    reports: list[str] = []
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                twins = Twins(store or Store(folder.parent / "store"), [device])
                fetcher = Fetcher([device], origin, twins, nursery, report=reports.append)
                yield Bench(layer, device, fetcher, source, origin, nursery, reports)
                nursery.cancel_scope.cancel()
    finally:
        content.close()


@pytest.mark.parametrize("content_type", [LayerContent, UnstoredContent])
async def test_what_is_not_resident_is_never_read(
    tmp_path: Path, content_type: Callable[..., LayerContent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong before: zeros of a file in which nothing was written are no bytes."""
    async with opened(make_layer([50_000, 60_000]), tmp_path / "content", content_type) as bench:

        async def ensure(device: int, start: int, end: int) -> dict[int, bytes]:
            return {}

        monkeypatch.setattr(bench.fetcher, "ensure", ensure)
        with pytest.raises(FetchBroken, match="do not stay in the store"):
            await bench.read(0)


async def test_a_miss_is_fetched_and_then_is_a_hit(tmp_path: Path) -> None:
    layer = make_layer([100_000, 7, 200_000])
    async with opened(layer, tmp_path) as bench:
        start, end = bench.span(0)
        assert bench.fetcher.read_nowait(1, start, end - start) is None
        assert await bench.read(0) == bench.data(0)
        assert bench.fetcher.read_nowait(1, start, end - start) == bench.data(0)
        assert len(bench.source.requests) == 1
        assert await bench.read(0) == bench.data(0)
        assert len(bench.source.requests) == 1


async def test_a_read_within_a_chunk_and_across_chunks(tmp_path: Path) -> None:
    layer = make_layer([50_000], chunk_size=16_384)
    async with opened(layer, tmp_path) as bench:
        assert await bench.fetcher.read(1, 16_000, 20_000) == bench.data(0)[16_000:36_000]
        assert await bench.fetcher.read(1, 3, 5) == bench.data(0)[3:8]


async def test_many_readers_of_one_chunk_make_one_request(tmp_path: Path) -> None:
    layer = make_layer([100_000])
    async with opened(layer, tmp_path) as bench:
        bench.source.gate = trio.Event()
        results: list[bytes] = []

        async def reader() -> None:
            results.append(await bench.read(0))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked(0.05)
            bench.source.gate.set()
        assert results == [bench.data(0)] * 20
        assert len(bench.source.requests) == 1


async def test_a_reader_that_goes_away_leaves_the_fetch_alive(tmp_path: Path) -> None:
    layer = make_layer([100_000])
    async with opened(layer, tmp_path) as bench:
        bench.source.gate = trio.Event()
        with trio.move_on_after(0.05) as scope:
            await bench.read(0)
        assert scope.cancelled_caught
        bench.source.gate.set()
        assert await bench.read(0) == bench.data(0)
        assert len(bench.source.requests) == 1


async def test_adjacent_chunks_are_one_request(tmp_path: Path) -> None:
    layer = make_layer([400_000], chunk_size=20_000)
    async with opened(layer, tmp_path) as bench:
        assert await bench.read(0) == bench.data(0)
        assert len(bench.source.requests) == 1


async def test_a_large_file_is_several_requests_side_by_side(tmp_path: Path) -> None:
    layer = make_layer([12 << 20], chunk_size=1 << 20)
    async with opened(layer, tmp_path) as bench:
        bench.source.gate = trio.Event()
        bench.source.piece_size = 1 << 20
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.read, 0)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(bench.source.requests) >= 2
            bench.source.gate.set()
        assert await bench.read(0) == bench.data(0)


async def test_sequential_readers_get_ahead_and_jumping_ones_do_not(tmp_path: Path) -> None:
    layer = make_layer([60_000] * 200)
    async with opened(layer, tmp_path / "a") as bench:
        for number in range(200):
            assert await bench.read(number) == bench.data(number)
        assert len(bench.source.requests) < 30
    async with opened(layer, tmp_path / "b") as bench:
        for number in range(0, 200, 50):
            await bench.read(number)
        asked = sum(end - start for start, end in bench.source.requests)
        wanted = sum(
            bench.layer.table.blob_end(n) - bench.layer.table.blob_offset(n)
            for n in range(0, 200, 50)
        )
        assert asked == wanted


async def test_small_neighbours_come_along(tmp_path: Path) -> None:
    layer = make_layer([2000] * 100)
    async with opened(layer, tmp_path) as bench:
        for number in (50, 45, 55):
            assert await bench.read(number) == bench.data(number)
        (asked,) = bench.source.requests
        assert asked[1] - asked[0] < 40_000


async def test_a_flipped_bit_is_fetched_again(tmp_path: Path) -> None:
    layer = make_layer([50_000, 60_000])
    async with opened(layer, tmp_path) as bench:

        def bend(start: int, data: bytes) -> bytes:
            if len(bench.source.requests) == 1:
                return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
            return data

        bench.source.bend = bend
        assert await bench.read(0) == bench.data(0)
        assert len(bench.source.requests) == 2
        assert bench.reports == []


@pytest.mark.parametrize("others", [0, 1, 2, 100])
async def test_a_bad_chunk_is_fetched_from_every_other_endpoint(
    tmp_path: Path, others: int
) -> None:
    """Once at least; and as long as the source has somebody who was not blamed."""
    layer = make_layer([50_000])
    async with opened(layer, tmp_path) as bench:
        bench.source.bend = lambda start, data: data[:1000] + b"wrong" + data[1005:]
        bench.source.others = others
        with pytest.raises(ChunkCorrupt):
            await bench.read(0)
        refetched = min(max(others - 1, 1), 8)
        assert len(bench.source.requests) == 1 + refetched
        assert len(bench.source.blamed) == 1 + refetched
        start, end = layer.table.blob_offset(0), layer.table.blob_end(0)
        assert set(bench.source.blamed) == {(start, end)}


async def test_the_last_endpoint_may_be_the_one_that_is_right(tmp_path: Path) -> None:
    layer = make_layer([50_000])
    async with opened(layer, tmp_path) as bench:

        def bend(start: int, data: bytes) -> bytes:
            return data if len(bench.source.requests) == 4 else data[:1000] + b"!" + data[1001:]

        bench.source.bend = bend
        bench.source.others = 4
        assert await bench.read(0) == bench.data(0)
        assert bench.reports == []


async def test_a_chunk_that_stays_bad_is_refused_and_others_are_served(tmp_path: Path) -> None:
    layer = make_layer([50_000] * 3)
    bad = layer.table.blob_offset(1) + 2000
    async with opened(layer, tmp_path) as bench:

        def bend(start: int, data: bytes) -> bytes:
            at = bad - start
            if 0 <= at < len(data):
                return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            return data

        bench.source.bend = bend
        _, end = bench.span(2)
        whole = bench.fetcher.ensure(1, 0, end)
        with pytest.raises(ChunkCorrupt, match="expected sha256:"):
            await whole
        assert await bench.read(0) == bench.data(0)
        assert await bench.read(2) == bench.data(2)
        assert bench.reports == [f"corrupt sha256:{layer.table.digest(1).hex()}"]
        asked = len(bench.source.requests)
        with pytest.raises(ChunkCorrupt):
            await bench.read(1)
        assert len(bench.source.requests) == asked, "a refused chunk is not asked for at each read"
        s, e = bench.span(1)
        assert bench.fetcher.read_nowait(1, s, e - s) is None
        stored = (tmp_path / "content").read_bytes()[s:e]
        assert stored == bytes(e - s), "no unverified byte may reach the content file"


async def test_an_unreachable_source_fails_readers_and_is_tried_again(tmp_path: Path) -> None:
    layer = make_layer([50_000])
    async with opened(layer, tmp_path) as bench:

        def fail(start: int, end: int) -> None:
            raise Unavailable("registry: connection refused")

        bench.source.fail = fail
        with pytest.raises(Unavailable):
            await bench.read(0)
        bench.source.fail = None
        assert await bench.read(0) == bench.data(0)


async def test_a_bug_in_the_source_costs_one_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer([50_000])
    async with opened(layer, tmp_path) as bench:

        def fail(start: int, end: int) -> None:
            raise RuntimeError("a bug")

        bench.source.fail = fail
        with pytest.raises(Exception, match="broken off"):
            await bench.read(0)
        assert "a bug" in caplog.text
        bench.source.fail = None
        assert await bench.read(0) == bench.data(0)


async def test_without_room_bytes_are_served_and_kept_for_a_while(tmp_path: Path) -> None:
    layer = make_layer([50_000, 300_000], chunk_size=100_000)
    async with opened(layer, tmp_path, UnstoredContent) as bench:
        assert await bench.read(0) == bench.data(0)
        asked = len(bench.source.requests)
        start, _ = bench.span(0)
        assert await bench.fetcher.read(1, start + 100, 50) == bench.data(0)[100:150]
        assert len(bench.source.requests) == asked
        assert await bench.read(1) == bench.data(1)
        assert bench.fetcher.statistics.unstored_chunks >= 4


async def test_doubtful_chunks_are_hashed_before_they_are_served(tmp_path: Path) -> None:
    layer = make_layer([50_000, 60_000])
    async with opened(layer, tmp_path) as bench:
        await bench.read(0)
        await bench.read(1)
    presence = tmp_path / "presence"
    marked = presence.read_bytes()
    presence.write_bytes(marked[:12] + b"\0\0\0\0" + marked[16:])  # an unclean stop
    with open(tmp_path / "content", "r+b") as content:
        content.write(b"rotten")
    async with opened(layer, tmp_path) as bench:
        s, e = bench.span(0)
        assert bench.fetcher.read_nowait(1, s, e - s) is None
        assert await bench.read(0) == bench.data(0)
        assert len(bench.source.requests) == 1
        assert await bench.read(1) == bench.data(1)
        assert len(bench.source.requests) == 1, "an undamaged chunk is not fetched again"


@pytest.mark.parametrize("mode", ["all", "none", "landmark"])
async def test_background_fill(tmp_path: Path, mode: str) -> None:
    layer = make_layer([9000] * 300 + [6 << 20])
    async with opened(layer, tmp_path) as bench:
        await prefetch(bench.fetcher, [bench.device], mode)
        resident = bench.device.content.resident_size()
        assert resident == (sum(map(len, layer.files.values())) if mode == "all" else 0)
        if mode == "all":
            assert len(bench.source.requests) < 12
            for number in (0, 150, 300):
                s, e = bench.span(number)
                assert bench.fetcher.read_nowait(1, s, e - s) == bench.data(number)


async def test_demand_during_the_fill_is_not_asked_for_twice(tmp_path: Path) -> None:
    layer = make_layer([100_000] * 60)
    async with opened(layer, tmp_path) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, bench.fetcher, [bench.device], "all")
            for number in reversed(range(60)):
                assert await bench.read(number) == bench.data(number)
        covered = sorted(bench.source.requests)
        asked = sum(end - start for start, end in covered)
        assert asked <= len(layer.blob) * 1.1


async def test_two_processes_fetch_a_chunk_once(tmp_path: Path) -> None:
    layer = make_layer([50_000] * 20)
    # Two openings of one store are what two processes have.
    async with opened(layer, tmp_path) as one, opened(layer, tmp_path) as two:
        one.source.gate = two.source.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.read, 3)
            await trio.testing.wait_all_tasks_blocked(0.02)
            nursery.start_soon(two.read, 3)
            nursery.start_soon(two.read, 9)
            await trio.sleep(0.1)
            one.source.gate.set()
        assert await two.read(3) == two.data(3)
        asked = one.source.requests + two.source.requests
        assert sorted(asked) == sorted(set(asked))


async def test_a_claim_ends_with_its_holder(tmp_path: Path) -> None:
    layer = make_layer([50_000])
    async with opened(layer, tmp_path) as one:
        one.source.gate = trio.Event()
        with trio.move_on_after(0.02):
            await one.read(0)
        async with opened(layer, tmp_path) as two:
            with trio.move_on_after(0.05) as scope:
                await two.read(0)
            assert scope.cancelled_caught
            one.nursery.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await two.read(0) == two.data(0)


async def test_a_chunk_larger_than_memory_should_hold_goes_through_a_file(tmp_path: Path) -> None:
    layer = make_layer([20 << 20, 100], chunk_size=20 << 20)
    async with opened(layer, tmp_path) as bench:
        bench.source.piece_size = 1 << 20
        assert await bench.read(0) == bench.data(0)
        assert await bench.read(1) == bench.data(1)


async def test_what_few_bytes_inflate_to_is_stored_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the file is zeros, which arrive all at once: they must not lie in memory so."""
    layer = make_layer([24 << 20], chunk_size=1 << 20)
    async with opened(layer, tmp_path) as bench:
        content = bench.device.content
        write_all = content.write_all
        sizes: list[int] = []

        def note(payloads: Sequence[Payload]) -> list[int]:
            sizes.append(sum(len(part) for _, parts in payloads for part in parts))
            return write_all(payloads)

        monkeypatch.setattr(content, "write_all", note)
        assert await bench.read(0) == bench.data(0)
        assert sum(sizes) == 24 << 20
        assert max(sizes) < (1 << 20) + STORE_SIZE


async def test_a_large_chunk_that_is_bad_is_refused(tmp_path: Path) -> None:
    layer = make_layer([12 << 20], chunk_size=12 << 20)
    async with opened(layer, tmp_path) as bench:
        bench.source.piece_size = 1 << 20
        bench.source.bend = lambda start, data: data[:9000] + b"xx" + data[9002:]
        with pytest.raises(ChunkCorrupt):
            await bench.read(0)
        assert (tmp_path / "content").read_bytes().strip(b"\0") == b""


async def test_chunks_of_another_layer_are_copied(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    sizes = [50_000, 60_000, 70_000, 9 << 20]
    old, new = make_layer(sizes), make_layer([*sizes, 5000])
    async with opened(old, store.layers / ("a" * 64)) as bench:
        for number in range(3):
            await bench.read(number)
        await bench.read(3)
    (store.layers / ("a" * 64) / "table").write_bytes(old.table.buffer)
    async with opened(new, store.layers / ("b" * 64), store=store) as bench:
        bench.fetcher.twins.search()
        for number in range(5):
            assert await bench.read(number) == bench.data(number)
        fetched = sum(end - start for start, end in bench.source.requests)
        assert fetched < 20_000, "only what the old layer did not have"
        assert bench.fetcher.statistics.copied_size == sum(sizes)
        bench.fetcher.twins.close()


async def test_a_twin_that_has_rotted_is_not_copied(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    layer = make_layer([50_000])
    async with opened(layer, store.layers / ("a" * 64)) as bench:
        await bench.read(0)
    (store.layers / ("a" * 64) / "table").write_bytes(layer.table.buffer)
    with open(store.layers / ("a" * 64) / "content", "r+b") as content:
        content.write(b"rotten")
    async with opened(layer, store.layers / ("b" * 64), store=store) as bench:
        bench.fetcher.twins.search()
        assert await bench.read(0) == bench.data(0)
        assert len(bench.source.requests) == 1
        bench.fetcher.twins.close()


async def test_who_stays_near_gets_more_at_once(tmp_path: Path) -> None:
    """A folder that is read in another order than the blob's; whoever jumps gets little."""
    count = 300
    layer = make_layer([4_000] * count)
    async with opened(layer, tmp_path / "near") as bench:
        for number in reversed(range(count)):
            assert await bench.read(number) == bench.data(number)
        near = bench.source.requests
    # What is waited for may come by itself, beside what is before it.
    sizes = [end - start for start, end in near if end - start > 4_000]
    assert sizes[:4] == sorted(sizes[:4])
    assert max(sizes) <= 2 * AROUND_MAX + 4_000
    assert len(near) < len(layer.blob) / (4 * AROUND_SIZE)

    apart = make_layer([4_000, 4_000, 700_000] * 6)
    async with opened(apart, tmp_path / "apart") as bench:
        for number in (15, 0, 9, 3, 12, 6):
            assert await bench.read(number) == bench.data(number)
        assert max(end - start for start, end in bench.source.requests) <= 2 * AROUND_SIZE


async def test_what_is_waited_for_is_there_before_what_comes_with_it(tmp_path: Path) -> None:
    layer = make_layer([7_000] * 30)
    async with opened(layer, tmp_path) as bench:
        rest = trio.Event()

        async def body(data: bytes) -> AsyncIterator[bytes]:
            ((start, _),) = bench.source.requests
            due = layer.table.blob_end(10) - start
            assert 0 < due < len(data)
            yield data[:due]
            await rest.wait()
            yield data[due:]

        bench.source._body = body  # type: ignore[method-assign]
        assert await bench.read(10) == bench.data(10)
        rest.set()
        assert await bench.read(11) == bench.data(11)
        assert len(bench.source.requests) == 1


async def test_filling_waits_for_what_came_early(tmp_path: Path) -> None:
    layer = make_layer([100_000, 100_000, 100_000])
    async with opened(layer, tmp_path) as bench:
        table = bench.device.table
        early = EarlyRange(bench.device.descriptor, table.blob_offset(1), table.blob_end(1))
        bench.fetcher.adopt([early])
        bench.fetcher.demand = Demand(lambda: 1e9, bench.fetcher.pace)
        bench.fetcher.demand._ended = 0.0  # nobody has read for long
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, bench.fetcher, [bench.device], "all")
            await trio.testing.wait_all_tasks_blocked()
            assert bench.source.requests == []
            await early.fetch(bench.source, bench.fetcher.pace)
        assert bench.source.requests[0] == (early.start, early.end)
        assert [await bench.read(number) for number in range(3)] == [*layer.files.values()]
        assert bench.fetcher.statistics.traffic[Purpose.DEMAND].requests == 0
        assert bench.fetcher.statistics.traffic[Purpose.PROFILE].requests == 1
