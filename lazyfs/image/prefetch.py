"""Fetching what nobody has asked for yet: what was read first the last time, or else what the
producer marked; then everything.

Background work yields to readers by concurrency: while any of them waits, one worker goes on and
the others pause.  It is never cancelled, so what it has asked for is never thrown away.
"""

import itertools
from collections.abc import Iterator, Sequence

import trio

from lazyfs.image.device import Device
from lazyfs.image.fetch import Fetcher

SEGMENT_SIZE = 2 << 20
"""Compressed bytes per background request: a reader whose chunk is among them waits for them."""

WORKERS = 3
PAUSE_SECONDS = 0.02
FAILURE_SECONDS = 5.0
MODES = ("none", "landmark", "profile", "all")
"""Nothing; the landmark's range; the recorded profile, or the landmark's range without one; and
after that, all the rest."""


async def prefetch(
    fetcher: Fetcher,
    devices: Sequence[Device],
    mode: str,
    profiled: Iterator[tuple[Device, list[int]]] | None = None,
) -> None:
    """Prefetch as *mode* says; returns when all of it has been tried once.

    *profiled* are the groups of chunks that a profile names, if there is one.
    """
    if mode == "none":
        return
    if profiled is not None and mode != "landmark":
        segments = profiled
    else:
        segments = itertools.chain.from_iterable(_landmark(device) for device in devices)
    if mode == "all":
        rest = itertools.chain.from_iterable(_segments(device) for device in devices)
        segments = itertools.chain(segments, rest)
    async with trio.open_nursery() as nursery:
        for number in range(WORKERS):
            nursery.start_soon(_work, fetcher, segments, number)


async def _work(
    fetcher: Fetcher, segments: Iterator[tuple[Device, list[int]]], number: int
) -> None:
    """Take segments until there are none; worker 0 never pauses for readers."""
    while True:
        while number and fetcher.is_busy:  # noqa: ASYNC110 - it ends by time, too
            await trio.sleep(PAUSE_SECONDS)
        segment = next(segments, None)
        if segment is None:
            return
        failed = fetcher.statistics.failed_requests
        await fetcher.fetch_background(*segment)
        if fetcher.statistics.failed_requests > failed:
            await trio.sleep(FAILURE_SECONDS)


def _landmark(device: Device) -> Iterator[tuple[Device, list[int]]]:
    end = device.table.prefetch_end
    if end:
        yield from _segments(device, end)


def _segments(device: Device, end: int | None = None) -> Iterator[tuple[Device, list[int]]]:
    """Yield the wanted chunks below blob offset *end* in groups of about SEGMENT_SIZE.

    Whether a chunk is wanted is asked when its group is taken, not when the iteration starts.
    """
    table, order = device.table, device.order
    position = 0
    while position < len(order):
        group: list[int] = []
        start = -1
        while position < len(order):
            chunk = order[position]
            if end is not None and table.blob_offset(chunk) >= end:
                position = len(order)
                break
            if device.is_wanted(chunk):
                if start < 0:
                    start = table.blob_offset(chunk)
                is_shared = bool(group) and table.blob_offset(group[-1]) == table.blob_offset(chunk)
                if group and not is_shared and table.blob_end(chunk) - start > SEGMENT_SIZE:
                    break
                group.append(chunk)
            position += 1
        if group:
            yield device, group
