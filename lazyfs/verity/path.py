"""Single blocks verified by their path to the root; what has been verified once is kept.

A block of the tree counts only after the one above it, up to the root, has vouched for it.  Data
is verified as it was read: verify the bytes that are handed out.
"""

from collections import OrderedDict
from collections.abc import Callable
from hmac import compare_digest

from lazyfs.verity.errors import Mismatch
from lazyfs.verity.geometry import Geometry, Parameters, hasher

KEPT = 4096
"""Hash blocks that stay in memory."""

ReadBlock = Callable[[int], bytes]
"""Returns a hash block by its number in the tree."""


class PathVerifier:
    """Verifies data blocks by *root*; hash blocks come from *read*."""

    def __init__(self, parameters: Parameters, root: bytes, read: ReadBlock) -> None:
        self._geometry = Geometry(parameters)
        self._parameters = parameters
        if len(root) != parameters.digest_size:
            raise Mismatch(
                f"the root has {len(root)} bytes; {parameters.algorithm} has "
                f"{parameters.digest_size}"
            )
        self._root = root
        self._read = read
        self._digest = hasher(parameters)
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def verify(self, number: int, block: bytes | memoryview) -> None:
        """Raise Mismatch unless *block* is data block *number*; the last one comes padded."""
        if not 0 <= number < self._parameters.data_blocks:
            raise Mismatch(
                f"data block {number} is not one of {self._parameters.data_blocks} that are signed"
            )
        if len(block) != self._parameters.data_block_size:
            raise Mismatch(f"data block {number} has {len(block)} bytes")
        if not compare_digest(self._digest(block), self._expected(0, number)):
            raise Mismatch(f"data block {number} does not have its digest")

    def _expected(self, level: int, number: int) -> bytes:
        """Return the digest of entry *number* of *level*, verified up to the root."""
        if level == len(self._geometry.levels):
            return self._root
        at, slot = divmod(number, self._geometry.per_block)
        block = self._block(level, at)
        start = slot * self._geometry.slot_size
        return block[start : start + self._parameters.digest_size]

    def _block(self, level: int, number: int) -> bytes:
        place = self._geometry.levels[level].first + number
        block = self._kept.get(place)
        if block is not None:
            self._kept.move_to_end(place)
            return block
        block = self._read(place)
        if len(block) != self._parameters.hash_block_size:
            raise Mismatch(f"hash block {place} has {len(block)} bytes")
        if not compare_digest(self._digest(block), self._expected(level + 1, number)):
            raise Mismatch(f"hash block {place} does not have its digest")
        self._kept[place] = block
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return block
