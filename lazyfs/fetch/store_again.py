"""What the store did not take is offered to it again, until it does: then there is room again."""

from collections.abc import Mapping

import trio

from lazyfs.fetch.device import Device
from lazyfs.fetch.origins.health import Unstored
from lazyfs.fetch.spare import Spare

RETRY_SECONDS = 2.0


class StoreAgain:
    """Offers what is in *spare* to the store while *unstored* says that it takes nothing."""

    def __init__(
        self,
        devices: Mapping[int, Device],
        spare: Spare,
        unstored: Unstored,
        nursery: trio.Nursery,
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._devices = devices
        self._spare = spare
        self._unstored = unstored
        self._nursery = nursery
        self._limiter = limiter
        self._is_running = False

    def begin(self) -> None:
        """See to it from now on."""
        if not self._is_running:
            self._is_running = True
            self._nursery.start_soon(self._run)

    async def _run(self) -> None:
        while self._unstored.since is not None and self._spare:
            await trio.sleep(RETRY_SECONDS)
            await self._offer()
        self._is_running = False

    async def _offer(self) -> None:
        for (number, chunk), data in self._spare.items():
            content = self._devices[number].content
            if chunk in content.unreadable:
                continue
            refused = await trio.to_thread.run_sync(
                content.write_all, [(chunk, (data,))], limiter=self._limiter
            )
            if refused:
                return
            self._spare.drop(number, chunk)
            self._unstored.taken()
