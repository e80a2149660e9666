"""EROFS on disk, as far as the rootfs index uses it: constants, records and the checksum.

Source: the Linux kernel's documentation and header of the format (fs/erofs/erofs_fs.h).  All
numbers are little-endian.  An index holds metadata only: extended inodes, directories, symlinks
and chunk-based regular files of one chunk each, whose data lie in extra devices.
"""

import stat
import struct
from collections.abc import Sequence
from functools import cache

from lazyfs.errors import FormatError
from lazyfs.formats.tocs.toc import Kind

REVISION = 2
"""Of our encoding: part of the UUID, so that images written by other rules have another one."""

BLOCK_SIZE = 4096
BLOCK_BITS = 12
SUPERBLOCK_OFFSET = 1024
MAGIC = 0xE0F5E1E2
NO_BLOCK = 0xFFFFFFFF  # the start block of inodes without a full data block

# Compatible features: the checksum is valid, inodes carry their own mtime.
HAS_CHECKSUM = 0x1
COMPATIBLE = HAS_CHECKSUM | 0x2
# Incompatible features: chunk-based files, the device table.  Readers decide on either bit.
CHUNKED_FILE = 0x4
DEVICE_TABLE = 0x8

# magic, checksum, compatible, block bits, extra slots, root nid, inodes, epoch seconds, epoch
# nanoseconds, blocks, metadata block, shared xattr block, UUID, volume name, incompatible,
# compression, devices, device slot, directory block bits, xattr prefixes, their start, packed
# nid, and 24 bytes of fields that later features use.
SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
DEVICE_SLOT_SIZE = 128
DEVICE_SLOT = struct.Struct("<64sII56x")  # tag, blocks, unified start
DEVICE_TABLE_OFFSET = SUPERBLOCK_OFFSET + SUPERBLOCK.size

SLOT_SIZE = 32  # inode number (nid) = byte offset in the metadata area / SLOT_SIZE
# format, xattr count, mode, high start block, size, union (start block, device number or chunk
# format), hint of an inode number, uid, gid, mtime seconds, nanoseconds, nlink, reserved.
INODE = struct.Struct("<HHHHQIIIIqII16x")
INODE_SIZE = INODE.size
EXTENDED = 1
PLAIN, INLINE, CHUNKED = 0, 2, 4  # data layouts, bits 1 to 3 of the format
FORMAT_PLAIN = EXTENDED | PLAIN << 1
FORMAT_INLINE = EXTENDED | INLINE << 1
FORMAT_CHUNKED = EXTENDED | CHUNKED << 1

CHUNK_BITS_MASK = 0x1F  # log2(chunk size / block size)
CHUNK_INDEXES = 0x20  # 8-byte chunk indexes
CHUNK_INDEX = struct.Struct("<HHI")  # high start block, device, start block
MAX_FILE_SIZE = BLOCK_SIZE << CHUNK_BITS_MASK  # of a file in one chunk: 8 TiB

DIRENT = struct.Struct("<QHBx")  # nid, name offset in the directory block, kind
DIRENT_SIZE = DIRENT.size
MAX_NAME_SIZE = 255
MAX_SYMLINK_SIZE = BLOCK_SIZE - 1  # PATH_MAX with its NUL

XATTR_HEADER_SIZE = 12  # name filter u32, number of shared ids u8, 7 reserved
XATTR_ENTRY = struct.Struct("<BBH")  # name length, prefix index, value size
XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
ACL_INDEXES = (2, 3)  # the whole name is the prefix

FILE_TYPES = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SYMLINK: stat.S_IFLNK,
}
MAX_DEV_MAJOR = 0xFFF
MAX_DEV_MINOR = 0xFFFFF


class UnsupportedByErofs(FormatError):
    """An image that holds what an EROFS image cannot express."""


def encode_device_number(major: int, minor: int) -> int:
    """Return the 32-bit form of a device number: 12 bits of major, 20 bits of minor."""
    if not (0 <= major <= MAX_DEV_MAJOR and 0 <= minor <= MAX_DEV_MINOR):
        raise UnsupportedByErofs(
            f"device number: got {major}:{minor}, expected at most {MAX_DEV_MAJOR}:{MAX_DEV_MINOR}"
        )
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device_number(number: int) -> tuple[int, int]:
    """Return (major, minor); the inverse of encode_device_number."""
    return number >> 8 & MAX_DEV_MAJOR, number & 0xFF | number >> 12 & 0xFFF00


def chunk_bits(size: int) -> int:
    """Return log2(chunk size / block size) of the smallest chunk that holds *size* bytes."""
    return (size - 1 >> BLOCK_BITS).bit_length()


def superblock_checksum(block: bytes | bytearray | memoryview) -> int:
    """Return the checksum of a superblock whose own checksum field is zero.

    *block* is what it covers: from the superblock to the end of its block (of the next block
    where blocks have at most 1024 bytes).  It is CRC-32C, without the usual final inversion.
    """
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in block:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


@cache
def _crc32c_table() -> Sequence[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table
