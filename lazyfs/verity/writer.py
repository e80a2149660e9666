"""A tree written while its data goes by, in the memory of one hash block a level."""

from collections.abc import Callable

from lazyfs.verity.geometry import Geometry, Parameters, hasher

Put = Callable[[int, bytes], object]
"""Takes bytes of the tree, and where in it they belong."""


class TreeWriter:
    """Takes the data piece by piece, and hands out the blocks of the tree as they are full."""

    def __init__(self, parameters: Parameters, put: Put = lambda offset, data: None) -> None:
        self._geometry = Geometry(parameters)
        self._parameters = parameters
        self._put = put
        self._digest = hasher(parameters)
        self._rest = b""
        self._size = 0
        self._filled = [bytearray() for _ in self._geometry.levels]
        self._written = [0] * len(self._geometry.levels)
        self._root: bytes | None = None

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the data; raises ValueError for more than was said."""
        self._size += len(data)
        if self._size > self._parameters.data_size:
            raise ValueError(f"more data than {self._parameters.data_size} bytes")
        size = self._parameters.data_block_size
        view = memoryview(data)
        if self._rest:
            missing = size - len(self._rest)
            self._rest += bytes(view[:missing])
            view = view[missing:]
            if len(self._rest) < size:
                return
            self._enter(0, self._digest(self._rest))
        end = len(view) - len(view) % size
        digest, enter = self._digest, self._enter
        for start in range(0, end, size):
            enter(0, digest(view[start : start + size]))
        self._rest = bytes(view[end:])

    def finish(self) -> bytes:
        """Pad the last block, hand out what is left of the tree, and return the root.

        Raises ValueError where data is missing: more than one block.
        """
        if self._root is not None:
            return self._root
        missing = self._parameters.data_size - self._size
        if missing >= self._parameters.data_block_size:
            raise ValueError(f"{missing} bytes of data are missing")
        if missing:
            self._rest += bytes(missing)
        if self._rest:
            self._enter(0, self._digest(self._rest))
        for level in range(len(self._geometry.levels)):
            if self._filled[level]:
                self._flush(level)
        assert self._root is not None, "the last block of the last level has been written"
        return self._root

    def _enter(self, level: int, digest: bytes) -> None:
        if level == len(self._geometry.levels):
            self._root = digest
            return
        filled = self._filled[level]
        filled += digest.ljust(self._geometry.slot_size, b"\0")
        if len(filled) == self._geometry.slot_size * self._geometry.per_block:
            self._flush(level)

    def _flush(self, level: int) -> None:
        size = self._parameters.hash_block_size
        block = bytes(self._filled[level]).ljust(size, b"\0")
        self._filled[level].clear()
        place = self._geometry.levels[level].first + self._written[level]
        self._written[level] += 1
        self._put(place * size, block)
        self._enter(level + 1, self._digest(block))
