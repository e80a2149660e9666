"""What is asked for, how much at once, and when background work steps back."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.fetch.ahead.prefetch import EAGER_WORKERS, prefetch, warm_up
from lazyfs.fetch.origins.pace import GAP_MAX, GAP_MIN, SEGMENT_MAX, SEGMENT_MIN, Pace
from lazyfs.fetch.plan import BEFORE_SIZE, plan_runs
from lazyfs.fetch.pressure import (
    BURST_LONGEST_SECONDS,
    BURST_MAX_SECONDS,
    BURST_MIN_SECONDS,
    BURST_SEQUENTIAL,
    BURST_SIZE,
    REST_SECONDS,
    Demand,
    Pressure,
)
from tests.fetch.test_fetch import opened
from tests.support.formats.layers import make_layer


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


# Pace


def test_nothing_measured_means_small_sizes() -> None:
    pace = Pace(Clock())
    assert (pace.round_trip, pace.bandwidth) == (None, None)
    assert pace.segment_size == SEGMENT_MIN
    assert pace.gap_size == GAP_MIN


def measured(round_trip: float, bandwidth: float) -> Pace:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(5):
        started = pace.started()
        clock.now += round_trip
        pace.answered(started)
        for _ in range(20):
            clock.now += 0.01
            pace.received(int(bandwidth / 100))
        pace.ended()
    return pace


def test_a_link_is_measured() -> None:
    pace = measured(0.02, 12.5e6)
    assert pace.round_trip == pytest.approx(0.02)
    assert pace.bandwidth == pytest.approx(12.5e6, rel=0.1)
    assert pace.segment_size == pytest.approx(12.5e6 * 0.04, rel=0.1)
    assert pace.gap_size == pytest.approx(12.5e6 * 0.02 / 4, rel=0.1)


def test_sizes_stay_within_bounds() -> None:
    fast, slow = measured(0.5, 1e9), measured(0.0001, 1e5)
    assert (fast.segment_size, fast.gap_size) == (SEGMENT_MAX, GAP_MAX)
    assert (slow.segment_size, slow.gap_size) == (SEGMENT_MIN, GAP_MIN)


def test_a_link_that_became_slower_is_believed_in_time() -> None:
    clock = Clock()
    pace = Pace(clock)
    for latency in [0.01] + [0.2] * 200:
        started = pace.started()
        clock.now += latency
        pace.answered(started)
        pace.ended()
    assert pace.round_trip == pytest.approx(0.2, rel=0.1)


# Pressure


def test_a_burst_begins_after_a_rest_and_ends_by_time() -> None:
    clock = Clock()
    demand = Demand(clock, Pace(clock))
    assert demand.pressure is Pressure.BURST, "who opens an image is about to use it"
    clock.now += 2 * REST_SECONDS
    assert demand.pressure is Pressure.NONE
    with demand.request(1000):
        assert demand.pressure is Pressure.BURST
    clock.now += 0.1
    assert demand.pressure is Pressure.BURST, "the next read of a program follows at once"
    clock.now += 0.5
    assert demand.pressure is Pressure.NONE
    with demand.request(1000):
        clock.now += BURST_MIN_SECONDS
        assert demand.pressure is Pressure.STEADY
    with demand.request(1000):
        assert demand.pressure is Pressure.STEADY, "no new burst without a rest"
    clock.now += REST_SECONDS + 0.1
    with demand.request(1000):
        assert demand.pressure is Pressure.BURST


@pytest.mark.parametrize(
    ("round_trip", "bandwidth", "seconds"),
    [
        (0.001, 1e9, BURST_MIN_SECONDS),
        (0.02, 1e9, 2.0),
        (0.1, 1e9, BURST_MAX_SECONDS),
        (0.02, BURST_SIZE / 10, 10.0),
        (0.02, BURST_SIZE / 100, BURST_LONGEST_SECONDS),
    ],
)
def test_a_burst_lasts_as_round_trips_and_bytes_do(
    round_trip: float, bandwidth: float, seconds: float
) -> None:
    clock = Clock()
    pace = measured(round_trip, bandwidth)
    pace.bandwidth = bandwidth  # exactly
    demand = Demand(clock, pace)
    clock.now += 2 * REST_SECONDS
    with demand.request(1000):
        clock.now += seconds - 0.1
        assert demand.pressure is Pressure.BURST
        clock.now += 0.2
        assert demand.pressure is Pressure.STEADY


def test_a_burst_ends_when_somebody_reads_on_and_on() -> None:
    demand = Demand(Clock(), Pace(Clock()))
    with demand.request(1000):
        for _ in range(BURST_SEQUENTIAL):
            assert demand.pressure is Pressure.BURST
            demand.note_miss(is_sequential=True)
        assert demand.pressure is Pressure.STEADY
        for _ in range(2 * BURST_SEQUENTIAL):
            demand.note_miss(is_sequential=False)
        assert demand.pressure is Pressure.STEADY, "it does not begin again before a rest"


def test_a_program_goes_on_by_chance() -> None:
    demand = Demand(Clock(), Pace(Clock()))
    with demand.request(1000):
        for _ in range(100):
            for is_sequential in (True, True, False, False, True, False):
                demand.note_miss(is_sequential=is_sequential)
                assert demand.pressure is Pressure.BURST
        for _ in range(2 * BURST_SEQUENTIAL):  # whoever copies goes on three times of four
            for is_sequential in (True, True, False, True):
                demand.note_miss(is_sequential=is_sequential)
        assert demand.pressure is Pressure.STEADY


def test_a_burst_ends_by_size() -> None:
    demand = Demand(Clock(), Pace(Clock()))
    with demand.request(BURST_SIZE - 1):
        assert demand.pressure is Pressure.BURST
    with demand.request(1):
        assert demand.pressure is Pressure.STEADY


# Plan


def test_what_is_waited_for_does_not_come_last() -> None:
    table = make_layer([10_000] * 50).table
    width = table.blob_end(0) - table.blob_offset(0)
    chunks = list(range(50))
    before, after = plan_runs(table, chunks, gap=0, due=[30, 31])
    assert (before.chunks, after.chunks) == (chunks[:30], chunks[30:])
    assert after.due == table.blob_end(31)
    near = BEFORE_SIZE // width
    assert len(plan_runs(table, chunks, gap=0, due=[near])) == 1
    assert len(plan_runs(table, chunks, gap=0, due=[near + 1])) == 2


def test_runs_join_over_small_gaps_and_split_at_segments() -> None:
    table = make_layer([10_000] * 50).table
    width = table.blob_end(0) - table.blob_offset(0)
    assert len(plan_runs(table, [0, 1, 2], gap=0)) == 1
    assert len(plan_runs(table, [0, 2], gap=0)) == 2
    (run,) = plan_runs(table, [0, 2], gap=width + 1000)
    assert run.chunks == [0, 2]
    assert (run.start, run.end) == (table.blob_offset(0), table.blob_end(2))
    runs = plan_runs(table, range(50), gap=0, segment=5 * width)
    assert [chunk for run in runs for chunk in run.chunks] == list(range(50))
    assert all(run.end - run.start <= 5 * width for run in runs)


# Background work


@pytest.mark.anyio
async def test_background_work_pauses_for_a_burst_and_goes_on_after_it(tmp_path: Path) -> None:
    layer = make_layer([9000] * 100)
    async with opened(layer, tmp_path) as bench:
        with bench.fetcher.demand.request(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(prefetch, bench.fetcher, [bench.device], "all")
                await trio.sleep(0.1)
                assert bench.source.requests == []
                nursery.cancel_scope.cancel()
    async with opened(layer, tmp_path / "again") as bench:
        await prefetch(bench.fetcher, [bench.device], "all")
        assert bench.device.content.resident_size() == 900_000


@pytest.mark.anyio
async def test_what_a_profile_names_does_not_wait(tmp_path: Path) -> None:
    layer = make_layer([9000] * 100)
    async with opened(layer, tmp_path) as bench:
        with bench.fetcher.demand.request(1):
            await prefetch(
                bench.fetcher, [bench.device], "profile", iter([(bench.device, [3, 4, 50])])
            )
        states = bench.device.content.states
        assert [chunk for chunk in range(100) if states[chunk]] == [3, 4, 50]


@pytest.mark.anyio
async def test_requests_for_a_profile_overlap(tmp_path: Path) -> None:
    """Chunks that lie apart are asked for side by side, though they are of one group."""
    layer = make_layer([90_000] * 30)
    async with opened(layer, tmp_path) as bench:
        bench.source.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            group = iter([(bench.device, list(range(0, 30, 3)))])
            nursery.start_soon(prefetch, bench.fetcher, [bench.device], "profile", group)
            await trio.testing.wait_all_tasks_blocked()
            assert len(bench.source.requests) == EAGER_WORKERS
            bench.source.gate.set()
        assert len(bench.source.requests) == 10
        assert bench.device.content.resident_size() == 900_000


@pytest.mark.anyio
async def test_the_connection_is_made_before_a_reader_needs_it(tmp_path: Path) -> None:
    layer = make_layer([9000] * 10)
    async with opened(layer, tmp_path) as bench:
        bench.origin.is_open = False
        await warm_up(bench.fetcher, [bench.device])
        start = layer.table.blob_offset(0)
        assert bench.source.requests == [(start, start + 1)]
        bench.origin.is_open = True
        await warm_up(bench.fetcher, [bench.device])
        assert len(bench.source.requests) == 1
        await bench.fetcher.ensure(1, 0, layer.table.device_size)
        bench.origin.is_open = False
        asked = len(bench.source.requests)
        await warm_up(bench.fetcher, [bench.device])
        assert len(bench.source.requests) == asked, "what is resident needs no connection"
