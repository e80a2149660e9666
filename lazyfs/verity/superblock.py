"""The superblock before a tree: what user space keeps its parameters in.

Spec: cryptsetup, lib/verity/verity.c (struct verity_sb, version 1).  The kernel never reads it, and
nothing vouches for it: who has a root knows the parameters that go with it, and compares.
"""

import struct
import uuid

from lazyfs.verity.errors import BadParameters, BadSuperblock
from lazyfs.verity.geometry import Parameters, check_parameters

LAYOUT = struct.Struct("<8sII16s32sIIQH6s256s168s")
SIZE = LAYOUT.size  # 512
MAGIC = b"verity\0\0"
VERSION = 1


def encode_superblock(parameters: Parameters, identity: uuid.UUID) -> bytes:
    """Return the superblock, 512 bytes."""
    check_parameters(parameters)
    return LAYOUT.pack(
        MAGIC,
        VERSION,
        parameters.hash_type,
        identity.bytes,
        parameters.algorithm.encode(),
        parameters.data_block_size,
        parameters.hash_block_size,
        parameters.data_blocks,
        len(parameters.salt),
        b"",
        parameters.salt,
        b"",
    )


def decode_superblock(data: bytes) -> tuple[Parameters, uuid.UUID]:
    """Return what the superblock at the beginning of *data* says; raises BadSuperblock."""
    if len(data) < SIZE or data[:8] != MAGIC:
        raise BadSuperblock("there is no superblock of dm-verity")
    found = LAYOUT.unpack_from(data)
    _, version, hash_type, identity, name, data_block, hash_block, blocks, length = found[:9]
    if version != VERSION:
        raise BadSuperblock(f"superblock: version {version} is not {VERSION}")
    if length > 256 or any(found[9]) or any(found[10][length:]) or any(found[11]):
        raise BadSuperblock("superblock: bytes that must be zero are not")
    algorithm, _, rest = name.partition(b"\0")
    if any(rest) or not algorithm.isascii():
        raise BadSuperblock("superblock: the name of the hash algorithm is not a name")
    try:
        parameters = check_parameters(
            Parameters(
                data_blocks=blocks,
                data_block_size=data_block,
                hash_block_size=hash_block,
                algorithm=algorithm.decode(),
                salt=found[10][:length],
                hash_type=hash_type,
            )
        )
    except BadParameters as exc:
        raise BadSuperblock(f"superblock: {exc.message}") from exc
    return parameters, uuid.UUID(bytes=identity)


def tree_offset(superblock_offset: int, hash_block_size: int) -> int:
    """Return where the tree begins, in bytes, whose superblock is at *superblock_offset*."""
    end = superblock_offset + SIZE
    return -(-end // hash_block_size) * hash_block_size
