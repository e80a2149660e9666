"""Chunks that the store had no room for, kept in memory for a while."""

from collections import OrderedDict

SPARE_SIZE = 32 << 20


class Spare:
    """Verified chunks by (device, chunk); the least recently used go when *limit* is passed.

    Without it, a full disk would make a reader fetch a chunk again for each 128 KiB of it.
    """

    def __init__(self, limit: int = SPARE_SIZE) -> None:
        self._limit = limit
        self._size = 0
        self._chunks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def get(self, device: int, chunk: int) -> bytes | None:
        """Return a chunk's bytes, if they are still here."""
        data = self._chunks.get((device, chunk))
        if data is not None:
            self._chunks.move_to_end((device, chunk))
        return data

    def __len__(self) -> int:
        """Return how many chunks there are."""
        return len(self._chunks)

    def items(self) -> list[tuple[tuple[int, int], bytes]]:
        """Return (device, chunk) and bytes of what is here now."""
        return list(self._chunks.items())

    def drop(self, device: int, chunk: int) -> None:
        """Let go of a chunk."""
        self._size -= len(self._chunks.pop((device, chunk), b""))

    def put(self, device: int, chunk: int, data: bytes) -> None:
        """Keep a chunk; one that is larger than the limit is kept alone."""
        self._size += len(data) - len(self._chunks.pop((device, chunk), b""))
        self._chunks[device, chunk] = data
        while self._size > self._limit and len(self._chunks) > 1:
            _, dropped = self._chunks.popitem(last=False)
            self._size -= len(dropped)
