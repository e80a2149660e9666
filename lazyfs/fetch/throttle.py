"""A limit on how fast something may be asked for."""

from collections.abc import Callable

import trio

SHARE_SECONDS = 0.25
REQUEST_MIN = 64 << 10
REQUEST_MAX = 4 << 20


class Throttle:
    """At most *rate* bytes a second; what was not used is not saved up.

    A token bucket that is never more than empty: who has spent waits until that is paid for before
    anybody spends again.  So until any moment no more has been spent than the time since the start
    pays for, and what was spent last.  *clock* counts seconds.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = trio.current_time) -> None:
        self.rate = rate
        self._clock = clock
        self._free = clock()

    @property
    def request_size(self) -> int:
        """Bytes for one request: a quarter of a second's, so that the link is used evenly."""
        return int(min(max(self.rate * SHARE_SECONDS, REQUEST_MIN), REQUEST_MAX))

    async def wait(self) -> None:
        """Wait until something may be spent, which the caller does before it next awaits."""
        while (left := self._free - self._clock()) > 0:  # noqa: ASYNC110 - it ends by time
            await trio.sleep(left)

    def spend(self, size: int) -> None:
        """Take note that *size* bytes are asked for now."""
        self._free = max(self._free, self._clock()) + size / self.rate
