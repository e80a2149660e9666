"""Hashing again what a live mount has believed for long."""

import time

import trio

from lazyfs.fetch.device import Device
from lazyfs.fetch.doubts import Doubts
from lazyfs.store.content.content import NEVER
from lazyfs.store.content.presence import is_recent

PIECE_SIZE = 4 << 20
RATE = 32 << 20
"""Bytes a second: two per cent of a core, and less than a tenth of what a disk gives."""


def is_due(device: Device) -> bool:
    """Say whether some marked chunk of a layer was hashed too long ago, or at a time to come.

    A clock that was ahead and has been set must not put this off for years.
    """
    since = device.content.since
    return since != NEVER and not is_recent(since)


async def scrub(device: Device, doubts: Doubts, *, rate: int = RATE) -> int:
    """Hash all that is marked of a layer, *rate* bytes a second; return how many chunks are wrong.

    Those are absent then, and fetched again when they are needed.
    """
    table, started, wrong = device.table, time.time(), 0
    first = 0
    while first < table.count:
        last, size = first, 0
        while last < table.count and (last == first or size + table.size(last) <= PIECE_SIZE):
            size += table.size(last)
            last += 1
        wrong += len(await doubts.check_again(device, range(first, last)))
        await trio.sleep(size / rate)
        first = last
    await trio.to_thread.run_sync(device.content.note_checked, started)
    return wrong
