"""How fast the origin is, measured on what is fetched anyway, and the sizes that follow from it."""

from collections.abc import Callable

WINDOW_SECONDS = 0.05
SAMPLE_SIZE = 64 << 10
SEGMENT_SECONDS = 0.04
SEGMENT_MIN = 256 << 10
SEGMENT_MAX = 4 << 20
GAP_MIN = 16 << 10
GAP_MAX = 256 << 10


class Pace:
    """Round-trip time in seconds and bandwidth in bytes a second, of one origin.

    Both are None until something has been measured.  *clock* counts seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.round_trip: float | None = None
        self.bandwidth: float | None = None
        self._clock = clock
        self._active = 0
        self._window_start = 0.0
        self._window_size = 0

    def started(self) -> float:
        """Note that a request is sent; return the time, to be given to ``answered``."""
        now = self._clock()
        self._active += 1
        if self._active == 1:
            self._window_start, self._window_size = now, 0
        return now

    def answered(self, started: float) -> None:
        """Note that a request's first bytes are here."""
        latency = self._clock() - started
        if self.round_trip is None or latency < self.round_trip:
            self.round_trip = latency
        else:  # it may have become slower for good: forget the best one slowly
            self.round_trip += (latency - self.round_trip) * 0.02

    def received(self, size: int) -> None:
        """Note that *size* bytes of some request are here."""
        self._window_size += size
        elapsed = self._clock() - self._window_start
        if elapsed >= WINDOW_SECONDS and self._window_size >= SAMPLE_SIZE:
            self._take(self._window_size / elapsed)

    def ended(self) -> None:
        """Note that a request is over."""
        self._active -= 1

    def _take(self, rate: float) -> None:
        # A window may hold a wait for a first byte, which says nothing of the link: trust high
        # rates at once and low ones little.
        if self.bandwidth is None or rate > self.bandwidth:
            self.bandwidth = rate
        else:
            self.bandwidth += (rate - self.bandwidth) * 0.1
        self._window_start, self._window_size = self._clock(), 0

    @property
    def segment_size(self) -> int:
        """Bytes for one background request: what the link carries while a reader hardly notices."""
        if self.bandwidth is None:
            return SEGMENT_MIN
        return int(min(max(self.bandwidth * SEGMENT_SECONDS, SEGMENT_MIN), SEGMENT_MAX))

    @property
    def gap_size(self) -> int:
        """Bytes that are fetched rather than left out between two wanted chunks.

        A quarter of what is under way at any moment: a second request costs a round trip where
        requests wait for each other, and a millisecond of processor where they do not.
        """
        if self.bandwidth is None or self.round_trip is None:
            return GAP_MIN
        return int(min(max(self.bandwidth * self.round_trip / 4, GAP_MIN), GAP_MAX))
