"""How much readers need the link at the moment, for background work to yield to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from lazyfs.fetch.origins.pace import Pace

CALM_SECONDS = 0.3
REST_SECONDS = 1.0
BURST_ROUND_TRIPS = 100
BURST_MIN_SECONDS = 2.0
BURST_MAX_SECONDS = 5.0
BURST_LONGEST_SECONDS = 20.0
BURST_SIZE = 32 << 20
BURST_SEQUENTIAL = 4
"""A burst ends after this many round trips, within these times, or after this many bytes: the start
of a large program takes no more, and whoever goes on reads in bulk.  Where the link is so slow that
these bytes take longer, it lasts until they could be here.  It ends, too, when so many more misses
have gone on where the one before ended than have jumped: what copies or scans goes on three times
out of four, a program jumps, and goes on by chance.  Where round trips cost nothing a start takes
processors, and so does filling."""


class Pressure(Enum):
    """What readers need of the link."""

    NONE = 0
    """Nobody has waited for a request lately."""
    BURST = 1
    """Somebody began to, after a rest: a program starts, and each of its reads waits."""
    STEADY = 2
    """Somebody has for a while: filling the store is what helps most now."""


class Demand:
    """The requests that readers wait for.  *clock* counts seconds; *pace* is the origin's."""

    def __init__(self, clock: Callable[[], float], pace: Pace) -> None:
        self._clock = clock
        self._pace = pace
        self._running = 0
        # Whoever opens an image is about to use it: that counts as the start of a burst.
        self._ended = self._burst_started = clock()
        self._burst_size = self._sequential = 0

    def note_miss(self, *, is_sequential: bool) -> None:
        """Note a reader's miss, and whether it went on where the one before was."""
        if self._sequential < BURST_SEQUENTIAL:  # else it has been said what this is
            self._sequential = max(self._sequential + (1 if is_sequential else -1), 0)

    @contextmanager
    def request(self, size: int) -> Iterator[None]:
        """Count a request for *size* bytes, from when a reader needs it to when it has ended."""
        now = self._clock()
        if self._running == 0 and now - self._ended > REST_SECONDS:
            self._burst_started = now
            self._burst_size = self._sequential = 0
        self._running += 1
        self._burst_size += size
        try:
            yield
        finally:
            self._running -= 1
            self._ended = self._clock()

    @property
    def pressure(self) -> Pressure:
        """What readers need now."""
        now = self._clock()
        if self._running == 0 and now - self._ended > CALM_SECONDS:
            return Pressure.NONE
        seconds = BURST_ROUND_TRIPS * (self._pace.round_trip or 0.0)
        seconds = min(max(seconds, BURST_MIN_SECONDS), BURST_MAX_SECONDS)
        if self._pace.bandwidth is not None:
            seconds = max(seconds, min(BURST_SIZE / self._pace.bandwidth, BURST_LONGEST_SECONDS))
        is_burst = (
            now - self._burst_started < seconds
            and self._burst_size < BURST_SIZE
            and self._sequential < BURST_SEQUENTIAL
        )
        return Pressure.BURST if is_burst else Pressure.STEADY
