"""Tell how a plain layer is compressed: with gzip, zstd, or not at all; spans.py decompresses it.

Spec: RFC 1952 (gzip), RFC 8878 (zstd).  The first bytes decide: media types in the wild are often
wrong, and the decompressed layer is checked against the diffID anyway.
"""

from lazyfs.errors import FormatError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC = 0x184D2A50  # to …5F
# What other compressions begin with, and none of these can be a file's name in a tar.
OTHERS = {
    b"\xfd7zX": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
}
# The longest window that zstd's command line takes without being asked; bounds our memory.
ZSTD_WINDOW_SIZE = 1 << 27


class BadCompression(FormatError):
    """A layer's compressed stream is damaged or cut short."""


class NotALayer(BadCompression):
    """Bytes that are known to be something else."""


def is_compressed(head: bytes) -> bool:
    """Say whether a blob that starts with *head*, four bytes or more, is compressed."""
    return head.startswith(GZIP_MAGIC) or is_zstd(head)


def is_zstd(head: bytes | bytearray) -> bool:
    """Say whether *head*, four bytes or more, begins a frame; one that is skipped counts, too."""
    magic = int.from_bytes(head[:4], "little")
    return head.startswith(ZSTD_MAGIC) or (len(head) >= 4 and magic & ~0xF == SKIPPABLE_MAGIC)


def check_head(head: bytes) -> None:
    """Raise NotALayer where *head* begins what nobody takes for a layer, and name it."""
    for magic, name in OTHERS.items():
        if head.startswith(magic):
            raise NotALayer(f"layer: not tar, gzip or zstd, but {name}")
