"""The background limit: exact to the byte, by the clock, and for nobody who waits."""

from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.fetch.ahead.prefetch import Limits, prefetch
from lazyfs.fetch.counts import Purpose
from lazyfs.fetch.throttle import REQUEST_MAX, REQUEST_MIN, Throttle
from tests.fetch.test_fetch import opened
from tests.support.formats.layers import make_layer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


async def test_what_was_spent_is_waited_for() -> None:
    throttle = Throttle(1000)
    start = trio.current_time()
    spent = []
    for size in (500, 2000, 1, 1000):
        await throttle.wait()
        throttle.spend(size)
        spent.append(trio.current_time() - start)
    assert spent == pytest.approx([0, 0.5, 2.5, 2.501])


async def test_nothing_is_saved_up() -> None:
    throttle = Throttle(1000)
    await trio.sleep(60)
    start = trio.current_time()
    for _ in range(3):
        await throttle.wait()
        throttle.spend(1000)
    assert trio.current_time() - start == pytest.approx(2)


async def test_several_that_wait_are_limited_together() -> None:
    """Never more than the time since the start pays for, and what was spent last."""
    throttle = Throttle(1000)
    start = trio.current_time()
    spent: list[tuple[float, int]] = []

    async def spender(size: int) -> None:
        for _ in range(20):
            await throttle.wait()
            throttle.spend(size)
            spent.append((trio.current_time() - start, size))

    async with trio.open_nursery() as nursery:
        for size in (10, 100, 1000, 3000):
            nursery.start_soon(spender, size)
    total = 0
    for when, size in spent:
        assert total <= when * 1000 + 1e-6
        total += size
    assert total == 20 * 4110
    assert spent[-1][0] == pytest.approx((total - spent[-1][1]) / 1000)


async def test_requests_are_a_quarter_of_a_second() -> None:
    assert Throttle(1 << 20).request_size == 1 << 18
    assert Throttle(1).request_size == REQUEST_MIN
    assert Throttle(1 << 40).request_size == REQUEST_MAX


# Threads are no part of the clock: it waits a moment before it jumps over what they do.
PATIENT = pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0.03)})]
)


@PATIENT
@pytest.mark.parametrize("mode", ["all", "landmark", "profile"])
async def test_filling_spends_no_more_than_its_limit(tmp_path: Path, mode: str) -> None:
    rate = 200_000
    layer = make_layer([60_000] * 40)
    async with opened(layer, tmp_path) as bench:
        start = trio.current_time()
        asked: list[tuple[float, int]] = []
        bench.source.fail = lambda begin, end: asked.append((trio.current_time(), end - begin))
        profiled = None if mode == "all" else iter([(bench.device, list(range(layer.table.count)))])
        limits = Limits(Throttle(rate))
        if mode == "landmark":
            layer.table.prefetch_end = layer.table.payload_end
        await prefetch(bench.fetcher, [bench.device], mode, profiled, limits)
        assert bench.device.content.are_resident(range(layer.table.count))
        total = 0
        for when, size in asked:
            assert total <= (when - start) * rate + 1
            assert size <= REQUEST_MIN or size < 80_000, "one chunk, or a quarter of a second's"
            total += size
        assert total == sum(end - begin for begin, end in bench.source.requests)
        purpose = Purpose.BACKGROUND if mode == "all" else Purpose.PROFILE
        traffic = bench.fetcher.statistics.traffic[purpose]
        assert (traffic.requests, traffic.size) == (len(asked), total)


@PATIENT
async def test_readers_do_not_wait_for_the_limit(tmp_path: Path) -> None:
    layer = make_layer([60_000] * 40)
    async with opened(layer, tmp_path) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(
            prefetch, bench.fetcher, [bench.device], "all", None, Limits(Throttle(1000))
        )
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        for number in range(5, 40):
            assert await bench.read(number) == bench.data(number)
        assert trio.current_time() - start < 10, "one chunk takes the limit half a minute"
        nursery.cancel_scope.cancel()


@PATIENT
async def test_filling_ends_where_there_is_no_room(tmp_path: Path) -> None:
    layer = make_layer([60_000] * 40)
    left = 1_000_000

    async def make_room(size: int) -> bool:
        nonlocal left
        if size > left:
            return False
        left -= size
        return True

    async with opened(layer, tmp_path) as bench:
        await prefetch(bench.fetcher, [bench.device], "all", limits=Limits(make_room=make_room))
        assert bench.device.content.resident_size() == 1_000_000 - left
        assert await bench.read(39) == bench.data(39), "readers are served all the same"
