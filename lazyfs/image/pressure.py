"""How much readers need the link at the moment, for background work to yield to."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

CALM_SECONDS = 0.3
REST_SECONDS = 1.0
BURST_SECONDS = 1.0


class Pressure(Enum):
    """What readers need of the link."""

    NONE = 0
    """Nobody has waited for a request lately."""
    BURST = 1
    """Somebody began to, after a rest: a program starts, and each of its reads waits."""
    STEADY = 2
    """Somebody has for a while: filling the store is what helps most now."""


class Demand:
    """The requests that readers wait for.  *clock* counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running = 0
        self._ended = self._burst_started = -math.inf

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request from when a reader needs it to when it has ended."""
        now = self._clock()
        if self._running == 0 and now - self._ended > REST_SECONDS:
            self._burst_started = now
        self._running += 1
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
        return Pressure.BURST if now - self._burst_started < BURST_SECONDS else Pressure.STEADY
