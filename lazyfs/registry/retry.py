"""When to try again, and how long to wait before.

Only temporary errors are tried again (``errors.TEMPORARY``), only for requests that can be
repeated, a bounded number of times and within a time limit.
"""

import logging
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

import msgspec
import trio

from lazyfs.errors import LazyfsError, Unavailable
from lazyfs.registry.config.errors import TEMPORARY, ConnectionTrouble, Overloaded, Silent, Slow
from lazyfs.registry.source import SourceStatistics

log = logging.getLogger(__name__)

T = TypeVar("T")

MOMENT = 1e9
"""From here on a number of seconds is a moment: as a time to wait it would be thirty years."""

WATCHED_TRIES = 3
WATCHED_SECONDS = 2.0
"""The bounds where somebody else waits for a registry that is away: a moment's trouble is no
absence, and an absence is to be known soon."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how patiently; times in seconds.

    Waits double from ``first_seconds`` to ``longest_seconds``, each shortened by a random part of
    a half so that many clients do not come back together.  A Retry-After is obeyed up to
    ``obeyed_seconds``.  No new try begins ``patience_seconds`` after the first failure.
    *is_watched*: somebody else waits for a registry that is away, so that it is soon reported.
    """

    tries: int = 5
    first_seconds: float = 0.2
    longest_seconds: float = 5.0
    obeyed_seconds: float = 30.0
    patience_seconds: float = 60.0
    jitter: Callable[[], float] = random.random
    is_watched: bool = False

    def bounds(self, error: LazyfsError) -> tuple[int, float]:
        """Return how many tries there are after *error*, and within how many seconds."""
        if not (self.is_watched and isinstance(error, Unavailable) and error.is_away):
            return self.tries, self.patience_seconds
        # Who says nothing has had its time already; one that is slow goes on where it stopped.
        tries = 1 if isinstance(error, Silent) and not isinstance(error, Slow) else WATCHED_TRIES
        return min(self.tries, tries), min(self.patience_seconds, WATCHED_SECONDS)

    def wait_seconds(self, failures: int, error: LazyfsError, wall_seconds: float) -> float:
        """Return how long to wait after the failure number *failures* (from 1)."""
        if isinstance(error, ConnectionTrouble) and error.is_stale and failures == 1:
            return 0.0  # a connection that was kept too long: a new one is likely to do
        wait = min(self.first_seconds * 2.0 ** (failures - 1), self.longest_seconds)
        wait *= 1 - self.jitter() / 2
        if isinstance(error, Overloaded) and error.retry_after is not None:
            asked = parse_retry_after(error.retry_after, wall_seconds)
            if asked is not None:
                wait = max(wait, min(asked, self.obeyed_seconds))
        return wait


def parse_retry_after(text: str, wall_seconds: float) -> float | None:
    """Return the seconds that a Retry-After header asks for; None if it cannot be understood.

    Spec: RFC 9110, section 10.2.3: a number of seconds, or a date.  Docker Hub sends the moment in
    Unix seconds.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text) if len(text) < 12 else float("inf")
        return seconds if seconds < MOMENT else max(seconds - wall_seconds, 0.0)
    try:
        return max(parsedate_to_datetime(text).timestamp() - wall_seconds, 0.0)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class Patience:
    """The tries of one operation: how many failed since something last came of it."""

    __slots__ = ("_failures", "_policy", "_started", "_statistics")

    def __init__(self, policy: RetryPolicy, statistics: SourceStatistics) -> None:
        self._policy = policy
        self._statistics = statistics
        self._failures = 0
        self._started = 0.0

    async def bear(self, error: LazyfsError) -> None:
        """Wait before the next try, or raise *error* because there is none."""
        if not await self.endure(error):
            self._statistics.errors += 1
            raise error

    async def endure(self, error: LazyfsError) -> bool:
        """Wait before the next try, or say that there is none."""
        now = trio.current_time()
        if self._failures == 0:
            self._started = now
        self._failures += 1
        wait = self._policy.wait_seconds(self._failures, error, time.time())
        tries, seconds = self._policy.bounds(error)
        is_over = now + wait - self._started > seconds
        if not isinstance(error, TEMPORARY) or self._failures >= tries or is_over:
            return False
        self._statistics.retries += 1
        log.debug("%s; retrying in %.2f s", error.message, wait)
        await trio.sleep(wait)
        return True

    def renew(self) -> None:
        """Something came of the last try: start counting again."""
        self._failures = 0


async def persist(
    attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, statistics: SourceStatistics
) -> T:
    """Return what *attempt* returns, calling it again while it fails for a passing reason."""
    patience = Patience(policy, statistics)
    while True:
        try:
            return await attempt()
        except LazyfsError as error:
            await patience.bear(error)


ONCE = RetryPolicy(tries=1)
"""For whoever asks again by himself."""

WATCHED = RetryPolicy(is_watched=True)
"""For the contents of a mount whose readers wait while the registry is away."""
