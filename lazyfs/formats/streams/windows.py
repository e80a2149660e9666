"""The window of a restart point: what of it is looked back at, and how it is kept.

Deflate data refer back by up to 32 KiB, so whoever restarts needs the plain bytes before; but few
of them, one in nine or so, are ever referred to.  Which ones, inflating tells: behind a window that
holds the low halves of its own positions, each byte that was copied out of it is the low half of
where it lay, and behind one of high halves it is the high half.  Only the first 32 KiB of output
can come from there.  A byte that was not copied is the same in both, and may name a position, too:
at most 128 bytes are kept for nothing.
"""

from collections.abc import Callable

import zstandard

from lazyfs.formats.streams.compression import BadCompression
from lazyfs.formats.streams.restart import WINDOW_SIZE, Restarted, RestartPoint

LEVEL = 3
PACKED_SIZE = WINDOW_SIZE + (1 << 10)
"""Bytes that a packed window has at most: a frame adds some, and no more."""

STEP = 8 << 10  # compressed bytes; what an inflater does not take of them it copies
LOW = bytes(range(256)) * (WINDOW_SIZE >> 8)
HIGH = b"".join([bytes([high]) * 256 for high in range(WINDOW_SIZE >> 8)])


def keep_used_twin(window: bytes, low: bytes, high: bytes) -> bytes:
    """Return *window* with zeros where no place names it; halves of places beside each other."""
    kept = bytearray(len(window))
    for place in {below | above << 8 for below, above in zip(low, high, strict=True)}:
        if place < len(window):
            kept[place] = window[place]
    return bytes(kept)


keep_used: Callable[[bytes, bytes, bytes], bytes] = keep_used_twin
try:
    from lazyfs._native import keep_used
except ImportError:
    pass


class LookBack:
    """Finds what the data behind a restart point refer to; feed it those data."""

    def __init__(self, point: RestartPoint) -> None:
        self._window = point.window
        size = len(point.window)
        self._low = Restarted(point._replace(window=LOW[:size]))
        self._high = Restarted(point._replace(window=HIGH[:size]))
        self._halves = bytearray(), bytearray()

    @property
    def is_done(self) -> bool:
        """Whether nothing more can refer to the window."""
        return self._low.eof or len(self._halves[0]) >= WINDOW_SIZE

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next compressed bytes; raises INFLATE_ERRORS."""
        for at in range(0, len(data), STEP):
            if self.is_done:
                return
            left = WINDOW_SIZE - len(self._halves[0])
            for half, inflater in zip(self._halves, (self._low, self._high), strict=True):
                half += inflater.decompress(data[at : at + STEP], left)

    def packed(self) -> bytes:
        """Return the window as it is kept: what is not referred to is zeros, and takes no room."""
        low, high = map(bytes, self._halves)
        thinned = keep_used(self._window, low, high)
        return zstandard.ZstdCompressor(level=LEVEL).compress(thinned)


def unpack_window(frame: bytes) -> bytes:
    """Return what ``packed`` returned before it was packed; raises BadCompression."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= WINDOW_SIZE:
            raise BadCompression(
                f"window: got a frame of {size} bytes, expected at most {WINDOW_SIZE}"
            )
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=WINDOW_SIZE)
    except zstandard.ZstdError as exc:
        raise BadCompression(f"window: cannot decompress it: {exc}") from exc
