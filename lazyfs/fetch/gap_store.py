"""The gaps of one layer (formats/tars/gaps.py) while it is being filled: in a file without a name.

They are wanted once, when all of the layer is here, and by this process only: nothing of them is
left on the disk.  Where there is no room for them they are dropped, and what they were for is not
done.  Used by decoding threads and by who reads; a lock keeps them apart.
"""

import os
import tempfile
import threading
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import zstandard

from lazyfs.formats.tars.gaps import Gaps

MAX_SIZE = 256 << 20
"""Compressed bytes of one layer: headers of some millions of files."""

FRAMES_KEPT = 8

Parts = list[tuple[int, bytes]]
_DECODER = msgspec.msgpack.Decoder(list[tuple[int, Parts]])


class GapStore:
    """Keeps gaps by the blob offsets of their streams."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1
        self._lock = threading.Lock()
        self._size = 0
        self._is_lost = False
        self._offsets = array("Q")  # of a stream in the blob,
        self._numbers = array("Q")  # and the frame that its gaps are in
        self._frames: list[tuple[int, int]] = []  # place and size in the file
        self._places: dict[int, int] = {}
        self._read: dict[int, dict[int, Parts]] = {}

    def add(self, gaps: Sequence[Gaps]) -> None:
        """Keep what was caught; never raises."""
        data = msgspec.msgpack.encode([(each.blob_offset, each.parts) for each in gaps])
        frame = zstandard.ZstdCompressor(level=1).compress(data)
        with self._lock:
            if self._is_lost:
                return
            try:
                self._write(frame)
            except OSError:
                self._give_up()
                return
            self._offsets.extend(each.blob_offset for each in gaps)
            self._numbers.extend([len(self._frames) - 1] * len(gaps))

    def _write(self, frame: bytes) -> None:
        if self._size + len(frame) > MAX_SIZE:
            raise OSError("more than is kept")
        if self._fd < 0:
            self._fd = _open(self._folder)
        if os.pwrite(self._fd, frame, self._size) != len(frame):
            raise OSError("no room")
        self._frames.append((self._size, len(frame)))
        self._size += len(frame)

    def _give_up(self) -> None:
        self._is_lost = True
        self._close()

    def index(self) -> None:
        """Make ``find`` possible for all that was added so far; the last of a stream counts."""
        with self._lock:
            self._places = dict(zip(self._offsets, self._numbers, strict=True))

    def has(self, blob_offset: int) -> bool:
        """Say whether the gaps of a stream are here."""
        return not self._is_lost and blob_offset in self._places

    def find(self, blob_offset: int) -> Parts | None:
        """Return the gaps of a stream, None where there are none; OSError, ValueError."""
        number = self._places.get(blob_offset)
        if number is None or self._is_lost:
            return None
        if number not in self._read:
            place, size = self._frames[number]
            data = zstandard.ZstdDecompressor().decompress(os.pread(self._fd, size, place))
            while len(self._read) >= FRAMES_KEPT:
                del self._read[next(iter(self._read))]
            self._read[number] = dict(_DECODER.decode(data))
        return self._read[number].get(blob_offset)

    def close(self) -> None:
        """Give all of it back.  Idempotent."""
        with self._lock:
            self._give_up()
            self._places, self._read, self._frames = {}, {}, []
            self._offsets, self._numbers = array("Q"), array("Q")

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def cut(parts: Parts, start: int, end: int | None) -> Iterator[bytes]:
    """Yield plain bytes *start* to *end* of a stream (None: to its end); ValueError for a hole."""
    if end is None:
        end = max((at + len(data) for at, data in parts), default=start)
        end = max(start, end)
    if start == end:
        return
    for at, data in parts:
        if at <= start < end <= at + len(data):
            yield data[start - at : end - at]
            return
    raise ValueError(f"bytes {start} to {end} between the chunks of a stream are missing")


def _open(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:
        fd, name = tempfile.mkstemp(prefix=".gaps-", dir=folder)
        os.unlink(name)
        return fd
