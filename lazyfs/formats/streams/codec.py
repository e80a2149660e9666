"""How a chunk's bytes lie in a blob.

The numbers are those of the layer table's records (docs/format.md), so they never change their
meaning.
"""

from enum import IntEnum


class Codec(IntEnum):
    """A compression, or what takes its place.

    A *stream* of GZIP is members in a row, one of ZSTD is frames in a row, one of RAW is the
    plain bytes; one of DEFLATE is gzip from a block in the middle of a member on, with the members
    behind it (restart.py).  A HOLE has no bytes in the blob: its plain bytes are zeros.
    """

    GZIP = 0
    ZSTD = 1
    HOLE = 2
    RAW = 3
    DEFLATE = 4


# How far a stream can expand.  Deflate: 258 bytes per two bits, block headers apart.  Zstd: a
# block of 4 bytes stands for 128 KiB of one byte.
MAX_RATIO = {Codec.GZIP: 1032, Codec.ZSTD: 32768, Codec.RAW: 1, Codec.DEFLATE: 1032}
