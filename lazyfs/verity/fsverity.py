"""fs-verity digests of files, and what is signed of them.

Spec: Linux, Documentation/filesystems/fsverity.rst, "Merkle tree", "fs-verity descriptor" and
"Built-in signature verification".  The tree is dm-verity's of type 1 but for three things: hash
blocks are as large as data blocks, digests stand packed, and an empty file has a root of zeros.
"""

import hashlib
import struct
from collections.abc import Iterable

import msgspec

from lazyfs.verity.errors import BadParameters

DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144s")
SIGNED = struct.Struct("<8sHH")
MAGIC = b"FSVerity"
VERSION = 1
NUMBERS = {"sha256": 1, "sha512": 2}
SIZES = {"sha256": 32, "sha512": 64}
BLOCK_SIZES = tuple(1 << power for power in range(10, 17))  # 1 KiB to 64 KiB


class FileDigest(msgspec.Struct, frozen=True):
    """The digest of a file, as ``fsverity digest`` states it."""

    algorithm: str
    value: bytes

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value.hex()}"

    def signed_bytes(self) -> bytes:
        """Return what is signed of the digest: struct fsverity_formatted_digest."""
        number = NUMBERS[self.algorithm]
        return SIGNED.pack(MAGIC, number, len(self.value)) + self.value


def file_digest(
    pieces: Iterable[bytes], algorithm: str = "sha256", block_size: int = 4096
) -> FileDigest:
    """Return the fs-verity digest of a file whose contents are *pieces*; raises BadParameters.

    The memory of one block a level.
    """
    if algorithm not in NUMBERS:
        raise BadParameters(f"fs-verity hashes with {' or '.join(NUMBERS)}, not {algorithm[:40]!r}")
    if block_size not in BLOCK_SIZES:
        raise BadParameters(
            f"block size {block_size} is not a power of two from {BLOCK_SIZES[0]} to "
            f"{BLOCK_SIZES[-1]}"
        )
    tree = _Tree(algorithm, block_size)
    size = 0
    for piece in pieces:
        size += len(piece)
        tree.update(piece)
    root = tree.root()
    power = block_size.bit_length() - 1
    number = NUMBERS[algorithm]
    descriptor = DESCRIPTOR.pack(VERSION, number, power, 0, 0, size, root, b"", b"")
    return FileDigest(algorithm, _hash(algorithm, descriptor))


def _hash(algorithm: str, data: bytes | memoryview) -> bytes:
    return hashlib.new(algorithm, data, usedforsecurity=False).digest()


class _Tree:
    def __init__(self, algorithm: str, block_size: int) -> None:
        self._algorithm = algorithm
        self._block_size = block_size
        self._levels = [bytearray()]
        self._counts = [0]
        """Blocks that a level has handed up."""

    def update(self, piece: bytes) -> None:
        data = self._levels[0]
        data += piece
        end = len(data) - len(data) % self._block_size
        with memoryview(data) as view:
            digests = [
                _hash(self._algorithm, view[start : start + self._block_size])
                for start in range(0, end, self._block_size)
            ]
        del data[:end]
        self._counts[0] += len(digests)
        for digest in digests:
            self._enter(1, digest)

    def _enter(self, level: int, digest: bytes) -> None:
        if level == len(self._levels):
            self._levels.append(bytearray())
            self._counts.append(0)
        filled = self._levels[level]
        filled += digest
        if len(filled) == self._block_size:
            block = bytes(filled)
            filled.clear()
            self._counts[level] += 1
            self._enter(level + 1, _hash(self._algorithm, block))

    def root(self) -> bytes:
        """Return the root, once all pieces have been taken; zeros for an empty file."""
        if not self._levels[0] and not self._counts[0]:
            return bytes(SIZES[self._algorithm])
        level = 0
        while True:
            filled = self._levels[level]
            size = SIZES[self._algorithm]
            is_top = level > 0 and level == len(self._levels) - 1 and not self._counts[level]
            if is_top and len(filled) == size:
                return bytes(filled)  # one digest is left
            if filled:
                block = bytes(filled).ljust(self._block_size, b"\0")
                filled.clear()
                self._counts[level] += 1
                self._enter(level + 1, _hash(self._algorithm, block))
            level += 1
