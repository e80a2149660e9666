"""What fetching counts."""

from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.fetch.ahead.prefetch import prefetch
from lazyfs.fetch.counts import BOUNDS, Purpose, Waits
from lazyfs.fetch.fetched import fetch_document, used_sizes
from tests.fetch.test_fetch import opened
from tests.support.formats.layers import make_layer


def test_no_waits() -> None:
    assert Waits().document() == {
        "count": 0,
        "medianSeconds": None,
        "p95Seconds": None,
        "longestSeconds": None,
    }


def test_quantiles_are_those_of_the_classes() -> None:
    waits = Waits()
    for seconds in [0.00005] * 50 + [0.003] * 44 + [0.5] * 6:
        waits.add(seconds)
    assert waits.document() == {
        "count": 100,
        "medianSeconds": 0.0001,
        "p95Seconds": 0.5,
        "longestSeconds": 0.5,
    }
    assert waits.quantile(0.94) == 0.0032


@given(st.lists(st.floats(0, 1e4), min_size=1), st.sampled_from([0.5, 0.95, 1.0]))
def test_a_quantile_is_never_less_than_the_true_one_nor_twice_it(
    values: list[float], share: float
) -> None:
    waits = Waits()
    for value in values:
        waits.add(value)
    values.sort()
    true = next(v for n, v in enumerate(values, start=1) if n >= share * len(values))
    found = waits.quantile(share)
    assert found is not None
    if true <= BOUNDS[-1]:
        assert true <= found <= max(2 * true, BOUNDS[0])
    assert found <= waits.longest == values[-1]


@pytest.mark.anyio
async def test_hits_misses_and_why(tmp_path: Path) -> None:
    layer = make_layer([60_000] * 20)
    async with opened(layer, tmp_path) as bench:
        fetcher, device = bench.fetcher, bench.device
        start, end = bench.span(0)
        assert fetcher.read_nowait(1, start, end - start) is None
        assert fetcher.hits == 0
        await bench.read(0)
        assert (fetcher.hits, fetcher.statistics.misses) == (0, 1)
        for _ in range(3):
            assert fetcher.read_nowait(1, start, end - start) == bench.data(0)
        assert (fetcher.hits, fetcher.statistics.misses) == (3, 1)
        assert fetcher.statistics.reader_waits.count == 1
        assert fetcher.statistics.slot_waits.count == 1
        await fetcher.fetch_background(device, [5, 6], purpose=Purpose.PROFILE)
        await prefetch(fetcher, [device], "all")
        await bench.read(6)
        await bench.read(10)
        await bench.read(11)
        assert (fetcher.statistics.misses, fetcher.statistics.requests) == (
            1,
            len(bench.source.requests),
        )
        document = fetch_document(fetcher.statistics, [device])
        assert document["demand"] == {
            "requests": 1,
            "size": layer.table.blob_end(0) - layer.table.blob_offset(0),
            "contentSize": 60_000,
            "usedSize": 60_000,
        }
        assert document["profile"]["contentSize"] == 120_000
        assert document["profile"]["usedSize"] == 60_000
        assert document["background"]["contentSize"] == 17 * 60_000
        assert document["background"]["usedSize"] == 120_000
        asked = sum(end - start for start, end in bench.source.requests)
        assert sum(document[p.name.lower()]["size"] for p in Purpose) == asked
        assert fetcher.statistics.content_size == 20 * 60_000


@pytest.mark.anyio
async def test_reading_ahead_is_counted_by_itself(tmp_path: Path) -> None:
    layer = make_layer([60_000] * 100)
    async with opened(layer, tmp_path) as bench:
        for number in range(100):
            start, end = bench.span(number)
            if bench.fetcher.read_nowait(1, start, end - start) is None:
                await bench.read(number)
        traffic = bench.fetcher.statistics.traffic
        assert traffic[Purpose.AHEAD].requests > 0
        assert (
            traffic[Purpose.AHEAD].content_size + traffic[Purpose.DEMAND].content_size == 6 * 10**6
        )
        used = used_sizes([bench.device])
        assert used[Purpose.AHEAD] + used[Purpose.DEMAND] == 6 * 10**6
        misses = bench.fetcher.statistics.misses
        assert bench.fetcher.hits + misses == 100
        assert bench.fetcher.statistics.reader_waits.count == misses


@pytest.mark.anyio
async def test_what_was_here_before_was_not_fetched(tmp_path: Path) -> None:
    layer = make_layer([60_000])
    async with opened(layer, tmp_path) as bench:
        await bench.read(0)
    async with opened(layer, tmp_path) as bench:
        start, end = bench.span(0)
        assert bench.fetcher.read_nowait(1, start, end - start) is not None
        assert used_sizes([bench.device]) == dict.fromkeys(Purpose, 0)


@pytest.mark.anyio
async def test_touches_of_a_native_driver_count_as_reads(tmp_path: Path) -> None:
    layer = make_layer([60_000] * 3)
    async with opened(layer, tmp_path) as bench:
        await prefetch(bench.fetcher, [bench.device], "all")
        assert bench.fetcher.touched([(1, 2), (1, 0)])
        bench.fetcher.recorder.is_recording = False
        assert not bench.fetcher.touched([(1, 1), (1, 2)])
        assert used_sizes([bench.device])[Purpose.BACKGROUND] == 180_000


@pytest.mark.anyio
@pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0.05)})]
)
async def test_waits_for_slots_and_of_readers(tmp_path: Path) -> None:
    # Far apart: in whatever order the readers come, none of them goes on where another ended.
    layer = make_layer([60_000] * 60)
    async with opened(layer, tmp_path) as bench:
        bench.source.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(0, 54, 6):  # one more than there are slots
                nursery.start_soon(bench.read, number)
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(3)
            bench.source.gate.set()
        statistics = bench.fetcher.statistics
        assert statistics.reader_waits.count == statistics.slot_waits.count == 9
        assert statistics.reader_waits.quantile(0.5) >= 3
        assert statistics.slot_waits.quantile(0.5) < 1
        assert statistics.slot_waits.longest >= 3
