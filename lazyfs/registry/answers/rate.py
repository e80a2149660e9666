"""How fast bodies arrive, and when one is so slow that it counts as silent.  No I/O here."""

SLOWEST_RATE = 512
"""Bytes a second that a body must bring on average over each idle limit.  Whoever drips one byte
just before each idle limit holds a reader no longer than who says nothing."""

FAST_RATE = 10e6
SLOW_SHARE = 100
"""A body must also bring this part of the best rate that was seen, of which no more than FAST_RATE
counts.  A body that is given up goes on where it stopped, so being wrong costs a connection."""

SAMPLE_SIZE = 64 << 10
"""Fewer bytes than these say nothing about a rate."""


class Rate:
    """How fast bodies have come, in bytes a second, and so how slow is too slow."""

    def __init__(self, window_seconds: float) -> None:
        self.window_seconds = window_seconds
        self._best = 0.0

    def learn(self, size: int, seconds: float) -> None:
        """Note that *size* bytes came in *seconds* of waiting."""
        self._best = max(self._best, min(size / max(seconds, 1e-3), FAST_RATE))

    def judge(self, size: int, seconds: float) -> float | None:
        """Return the rate that was expected, if *size* bytes in *seconds* are less.

        What was expected is less each time: the link may have become slower for good.
        """
        least = max(SLOWEST_RATE, self._best / SLOW_SHARE)
        if size >= least * seconds:
            self.learn(size, seconds)
            return None
        self._best /= 2
        return least
