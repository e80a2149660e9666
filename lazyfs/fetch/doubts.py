"""Chunks that are doubted: hashed again before they are believed.

Hashing is cheaper than fetching by far, so whatever is to be fetched and may be here is hashed
first.  What turns out to be wrong becomes absent, and ``dropped`` is told: somebody may have read
it before.
"""

import logging
from collections.abc import Callable, Iterable

import trio

from lazyfs.fetch.device import Device
from lazyfs.store.content.presence import ABSENT, DOUBTFUL, RESIDENT, UNCLEAN

WINDOW_SIZE = 1 << 20
"""So many bytes behind a doubtful chunk are hashed with it.  A hop to a thread and a miss of the
native driver cost 0.2 ms, as much as hashing 300 KiB; whoever reads one small file of a layer reads
its neighbours soon."""

log = logging.getLogger(__name__)


class Doubts:
    """Hashes chunks again, in threads that *workers* limits.

    ``dropped`` is told, on the event loop, of chunks whose stored bytes were wrong and may have
    been read before; ``keep`` is told of each that is wrong, in a thread, to put the bytes aside.
    """

    def __init__(self, workers: trio.CapacityLimiter) -> None:
        self._workers = workers
        self.dropped: Callable[[Device, list[int]], None] | None = None
        self.keep: Callable[[Device, int], None] | None = None

    async def confirm_around(self, dev: Device, chunks: Iterable[int]) -> None:
        """Hash those of *chunks* that are doubtful, and doubtful ones that follow them."""
        doubtful = self._doubtful(dev, chunks)
        if not doubtful:
            return
        states, size = dev.content.states, 0
        for chunk in range(doubtful[-1] + 1, dev.table.count):
            size += dev.table.size(chunk)
            if size > WINDOW_SIZE or states[chunk] != DOUBTFUL:
                break
            doubtful.append(chunk)
        await self.confirm(dev, doubtful)

    async def confirm(self, dev: Device, chunks: Iterable[int]) -> bool:
        """Hash those of *chunks* that are doubtful; False if none are."""
        doubtful = self._doubtful(dev, chunks)
        if doubtful:
            await self._look(dev, doubtful)
        return bool(doubtful)

    async def check_again(self, dev: Device, chunks: Iterable[int]) -> list[int]:
        """Hash all of *chunks* that are marked, believed or not; return those that are wrong."""
        states = dev.content.states
        return await self._look(dev, [chunk for chunk in chunks if states[chunk] != ABSENT])

    def _doubtful(self, dev: Device, chunks: Iterable[int]) -> list[int]:
        states = dev.content.states
        return [chunk for chunk in chunks if states[chunk] == DOUBTFUL]

    async def _look(self, dev: Device, chunks: list[int]) -> list[int]:
        content = dev.content
        was_unclean = content.doubted == UNCLEAN  # then bytes may be missing, which is no rot

        def keep(chunk: int) -> None:
            if self.keep is not None and not was_unclean:
                self.keep(dev, chunk)

        def look() -> list[int]:
            return [chunk for chunk in chunks if not content.check_again(chunk, keep)]

        states = content.states
        shown = {
            chunk
            for chunk in chunks
            if content.was_shown or states[chunk] == RESIDENT or content.was_marked[chunk]
        }
        wrong = await trio.to_thread.run_sync(look, limiter=self._workers)
        if not wrong:
            return wrong
        log.warning(
            "layer %s: %d stored chunks are damaged (checked after %s), the first is number %d;"
            " fetching them again",
            dev.descriptor.digest,
            len(wrong),
            content.doubted or "a change on the disk",
            wrong[0],
        )
        if self.dropped is not None and not shown.isdisjoint(wrong):
            self.dropped(dev, [chunk for chunk in wrong if chunk in shown])
        return wrong
