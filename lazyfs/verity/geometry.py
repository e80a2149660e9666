"""What a dm-verity tree is made by, and where its blocks lie.

Spec: Linux, Documentation/admin-guide/device-mapper/verity.rst; cryptsetup, docs/on-disk-format
and lib/verity/verity_hash.c for what that leaves open.

A file is cut into data blocks, the last one padded with zeros.  Level 0 of the tree has the digests
of the data blocks, each level above those of the hash blocks of the level below, until one block is
left; its digest is the root.  The levels are stored top first.  One data block has no tree: its
digest is the root.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from lazyfs.verity.errors import BadParameters

ALGORITHMS = {"sha256": 32, "sha384": 48, "sha512": 64}
"""Bytes of a digest.  Others, SHA-1 above all, are refused by name."""

BLOCK_SIZES = tuple(1 << power for power in range(9, 20))  # 512 B to 512 KiB
SALT_LIMIT = 256  # bytes
BLOCKS_LIMIT = 1 << 52
NORMAL, CHROME_OS = 1, 0


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """How a tree is made.  Sizes in bytes; ``hash_type`` is 1, or 0 as Chrome OS had it.

    ``data_blocks`` is part of what must be known and signed: a tree with fewer blocks can have the
    same root.
    """

    data_blocks: int
    data_block_size: int = 4096
    hash_block_size: int = 4096
    algorithm: str = "sha256"
    salt: bytes = b""
    hash_type: int = NORMAL

    @property
    def data_size(self) -> int:
        """Bytes of the data, the last block padded."""
        return self.data_blocks * self.data_block_size

    @property
    def digest_size(self) -> int:
        """Bytes of a digest."""
        return ALGORITHMS[self.algorithm]


def check_parameters(parameters: Parameters) -> Parameters:
    """Return *parameters* if there can be such a tree; raises BadParameters."""
    if parameters.algorithm not in ALGORITHMS:
        raise BadParameters(
            f"hash algorithm {parameters.algorithm[:40]!r} is not one of {', '.join(ALGORITHMS)}"
        )
    check_block_sizes(parameters.data_block_size, parameters.hash_block_size)
    if len(parameters.salt) > SALT_LIMIT:
        raise BadParameters(f"a salt of {len(parameters.salt)} bytes: at most {SALT_LIMIT}")
    if parameters.hash_type not in (NORMAL, CHROME_OS):
        raise BadParameters(f"hash type {parameters.hash_type} is neither 1 nor 0")
    if not 0 < parameters.data_blocks <= BLOCKS_LIMIT:
        raise BadParameters(f"{parameters.data_blocks} data blocks: from 1 to {BLOCKS_LIMIT}")
    return parameters


def check_block_sizes(data_block_size: int, hash_block_size: int) -> None:
    """Raise BadParameters unless there can be a tree of these sizes, in bytes."""
    for name, size in (("data", data_block_size), ("hash", hash_block_size)):
        if size not in BLOCK_SIZES:
            raise BadParameters(
                f"{name} block size {size} is not a power of two from {BLOCK_SIZES[0]} to "
                f"{BLOCK_SIZES[-1]}"
            )


def blocks_of(size: int, block_size: int) -> int:
    """Return how many blocks *size* bytes take, the last one padded; none for no bytes."""
    return -(-size // block_size)


class Level(msgspec.Struct, frozen=True):
    """One level: ``first`` is its first hash block, counted from the tree's; ``blocks`` how many.

    ``entries`` is how many digests it has.
    """

    first: int
    blocks: int
    entries: int


class Geometry:
    """Where the blocks of a tree lie; ``levels`` from the bottom, none for one data block."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = check_parameters(parameters)
        count = parameters.hash_block_size // parameters.digest_size
        self.per_block = 1 << (count.bit_length() - 1)
        """Digests in a hash block: a power of two, whatever else would fit."""
        self.slot_size = parameters.digest_size
        if parameters.hash_type == NORMAL:
            self.slot_size = parameters.hash_block_size // self.per_block
        counts: list[tuple[int, int]] = []
        entries = parameters.data_blocks
        while entries > 1:
            blocks = -(-entries // self.per_block)
            counts.append((blocks, entries))
            entries = blocks
        levels, first = [], 0
        for blocks, entries in reversed(counts):
            levels.append(Level(first, blocks, entries))
            first += blocks
        self.levels = tuple(reversed(levels))
        self.hash_blocks = first

    @property
    def tree_size(self) -> int:
        """Bytes of the tree."""
        return self.hash_blocks * self.parameters.hash_block_size


def hasher(parameters: Parameters) -> Callable[[bytes | memoryview], bytes]:
    """Return what gives the digest of a block: salt and block, or block and salt for type 0."""
    salt, name = parameters.salt, parameters.algorithm
    make: Any = getattr(hashlib, name)
    if not salt:
        return lambda block: make(block, usedforsecurity=False).digest()
    begun = make(salt, usedforsecurity=False)

    def after_salt(block: bytes | memoryview) -> bytes:
        state = begun.copy()
        state.update(block)
        return state.digest()  # type: ignore[no-any-return]

    def before_salt(block: bytes | memoryview) -> bytes:
        state = make(block, usedforsecurity=False)
        state.update(salt)
        return state.digest()  # type: ignore[no-any-return]

    return after_salt if parameters.hash_type == NORMAL else before_salt
