"""What fetching counts: what was asked for and why, what of it was read, how long who waited."""

from bisect import bisect_left
from enum import IntEnum
from typing import Any

import msgspec

BOUNDS = tuple(0.0001 * 2.0**power for power in range(21))
"""Upper ends of the histogram's classes in seconds: 0.1 ms to 105 s; one more is without an end."""


class Purpose(IntEnum):
    """Why something is fetched."""

    DEMAND = 1
    """A reader waits for it; what lies beside it comes along."""
    AHEAD = 2
    """A reader will come to it if it goes on as it does."""
    PROFILE = 3
    """It was read early at another mount, or the producer marked it."""
    BACKGROUND = 4
    """It is missing."""
    PROGRAM = 5
    """A program that starts needs it, by what its own bytes say."""


class Traffic(msgspec.Struct):
    """What was asked for with one purpose.

    ``size`` is compressed bytes; ``content_size`` is what chunks came of it, and were right.
    """

    requests: int = 0
    size: int = 0
    content_size: int = 0


class Waits:
    """A histogram of waits, with a fixed number of classes."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._classes = [0] * (len(BOUNDS) + 1)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.longest = max(self.longest, seconds)
        self._classes[bisect_left(BOUNDS, seconds)] += 1

    def quantile(self, share: float) -> float | None:
        """Return the seconds within which *share* of the waits ended, rounded up to a class's end.

        None if there were none.
        """
        if not self.count:
            return None
        seen = 0
        for bound, count in zip(BOUNDS, self._classes, strict=False):
            seen += count
            if count and seen >= share * self.count:
                return min(bound, self.longest)
        return self.longest

    def document(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        return {
            "count": self.count,
            "medianSeconds": self.quantile(0.5),
            "p95Seconds": self.quantile(0.95),
            "longestSeconds": self.longest if self.count else None,
        }


def _traffic() -> dict[Purpose, Traffic]:
    return {purpose: Traffic() for purpose in Purpose}


class FetchStatistics(msgspec.Struct):
    """Counts since the image was opened; sizes in bytes.

    ``misses`` are reads that had to wait, ``reader_waits`` how long; ``slot_waits`` is how long
    requests that readers wait for did so for others to end.  ``copied_size`` is content that came
    from other layers of the store.
    """

    misses: int = 0
    corrupt_chunks: int = 0
    failed_requests: int = 0
    unstored_chunks: int = 0
    copied_size: int = 0
    traffic: dict[Purpose, Traffic] = msgspec.field(default_factory=_traffic)
    reader_waits: Waits = msgspec.field(default_factory=Waits)
    slot_waits: Waits = msgspec.field(default_factory=Waits)

    @property
    def requests(self) -> int:
        """Requests of all purposes."""
        return sum(traffic.requests for traffic in self.traffic.values())

    @property
    def content_size(self) -> int:
        """Content that came, for all purposes."""
        return sum(traffic.content_size for traffic in self.traffic.values())
