"""Fetching what nobody has asked for yet: what was read first the last time, or else what the
producer marked; then everything.

What a profile or a landmark names is what readers are about to want, so it waits for nobody.  The
rest yields to readers: while a burst of reads lasts (a program starts), no request for it is begun;
when readers go on for longer than that, filling is what helps them, and it goes on beside them.
It is never cancelled, so what it has asked for is never thrown away, and it is never starved, since
a burst ends after a moment.  It ends where the store has no room left for what nobody wants yet.
"""

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

import msgspec
import trio

from lazyfs.errors import LazyfsError
from lazyfs.fetch.counts import Purpose
from lazyfs.fetch.device import STREAM_CHUNKS, Device
from lazyfs.fetch.fetch import Fetcher
from lazyfs.fetch.plan import plan_runs
from lazyfs.fetch.pressure import Pressure
from lazyfs.fetch.throttle import Throttle
from lazyfs.store.content.presence import ABSENT

log = logging.getLogger(__name__)

WORKERS = 3
EAGER_WORKERS = 6
"""For what readers are about to want: many short requests, whose round trips overlap."""

PAUSE_SECONDS = 0.02
FAILURE_SECONDS = 5.0
Segments = Iterator[tuple[Device, list[int]]]
MODES = ("none", "landmark", "profile", "all")
"""Nothing; the landmark's range; the recorded profile, or without one the landmark's range, or
without that what the program that starts names; and after that, all the rest."""
FORECASTING = ("profile", "all")


MakeRoom = Callable[[int], Awaitable[bool]]
"""Asked before so many bytes of content are stored that nobody wants yet; False: leave it."""


class Limits(msgspec.Struct, frozen=True):
    """What prefetching is held to: how fast it may be, and how much the store takes."""

    throttle: Throttle | None = None
    make_room: MakeRoom | None = None


NO_LIMITS = Limits()


async def prefetch(
    fetcher: Fetcher,
    devices: Sequence[Device],
    mode: str,
    profiled: Iterator[tuple[Device, list[int]]] | None = None,
    limits: Limits = NO_LIMITS,
) -> None:
    """Prefetch as *mode* says; returns when all of it has been tried once.

    *profiled* are the groups of chunks that a profile names, if there is one.
    """
    if mode == "none":
        return
    chain = itertools.chain.from_iterable
    if profiled is None or mode == "landmark":
        profiled = chain(_landmark(fetcher, device) for device in devices)
    await _fetch_all(fetcher, _requests(fetcher, profiled), Purpose.PROFILE, limits)
    await fetcher.wait_adopted()
    if mode == "all":
        await warm_up(fetcher, devices)
        rest = chain(_segments(fetcher, device) for device in devices)
        await _fetch_all(fetcher, rest, Purpose.BACKGROUND, limits)


async def warm_up(fetcher: Fetcher, devices: Sequence[Device]) -> None:
    """Ask for one byte that is missing, if nothing has been asked of the origin yet.

    What a first request costs beyond its own round trip (connection, token, redirect) is spent
    then before a reader waits for it.
    """
    if fetcher.origin.is_open:
        return
    for dev in devices:
        chunk = next((c for c in dev.order if dev.is_missing(c)), None)
        if chunk is None:
            continue
        start = dev.table.blob_offset(chunk)
        try:
            async with fetcher.origin.source.open_range(dev.descriptor, start, start + 1) as body:
                async for _ in body:
                    pass
        except LazyfsError as exc:
            log.debug("%s", exc.message)  # whoever needs the bytes will be told
        return


async def _fetch_all(
    fetcher: Fetcher, segments: Segments, purpose: Purpose, limits: Limits
) -> None:
    is_full = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS if purpose is Purpose.BACKGROUND else EAGER_WORKERS):
            nursery.start_soon(_work, fetcher, segments, purpose, limits, is_full)
    if is_full.is_set():
        log.info("the cache is full and nothing can be evicted; background fill stops")


async def _work(
    fetcher: Fetcher, segments: Segments, purpose: Purpose, limits: Limits, is_full: trio.Event
) -> None:
    """Take segments until there are none, or no more room for what nobody has asked for."""
    yields = purpose is Purpose.BACKGROUND
    while True:
        while yields and fetcher.demand.pressure is Pressure.BURST:  # noqa: ASYNC110 - ends by time
            await trio.sleep(PAUSE_SECONDS)
        segment = next(segments, None)
        if segment is None or is_full.is_set():
            return
        device, chunks = segment
        if not chunks:
            await trio.lowlevel.checkpoint()
            continue
        if yields and limits.make_room is not None:
            states = device.content.states
            size = sum(device.table.size(c) for c in chunks if states[c] == ABSENT)
            if not await limits.make_room(size):
                is_full.set()
                return
        failed = fetcher.statistics.failed_requests
        await fetcher.fetch_background(device, chunks, purpose=purpose, throttle=limits.throttle)
        if fetcher.statistics.failed_requests > failed:
            await trio.sleep(FAILURE_SECONDS)


def _requests(fetcher: Fetcher, segments: Segments) -> Segments:
    """Yield *segments* cut into what one request asks for, so that each has a turn of its own."""
    for device, chunks in segments:
        for run in plan_runs(device.table, chunks, gap=fetcher.pace.gap_size):
            yield device, run.chunks


def _landmark(fetcher: Fetcher, device: Device) -> Iterator[tuple[Device, list[int]]]:
    end = device.table.prefetch_end
    if end:
        yield from _segments(fetcher, device, end)


def _segments(
    fetcher: Fetcher, device: Device, end: int | None = None
) -> Iterator[tuple[Device, list[int]]]:
    """Yield the wanted chunks below blob offset *end*, in groups of one request's size.

    The size, and whether a chunk is wanted, are asked when a group is taken.  A group without
    chunks comes now and then where none is wanted, so that others have their turn.
    """
    table, order = device.table, device.order
    position = 0
    while position < len(order):
        group: list[int] = []
        start = -1
        limit = fetcher.pace.segment_size
        pause = position + STREAM_CHUNKS
        while position < len(order):
            if position >= pause:
                break
            chunk = order[position]
            if end is not None and table.blob_offset(chunk) >= end:
                position = len(order)
                break
            if device.is_wanted(chunk):
                if start < 0:
                    start = table.blob_offset(chunk)
                is_shared = bool(group) and table.blob_offset(group[-1]) == table.blob_offset(chunk)
                if group and not is_shared and table.blob_end(chunk) - start > limit:
                    break
                group.append(chunk)
            position += 1
        if group or position >= pause:
            yield device, group
