"""Take the compression off a plain layer: gzip, zstd, or none.

Spec: RFC 1952 (gzip; members may follow each other), RFC 8878 (zstd; frames may, skippable ones
among them).  Which one it is, the first bytes say: media types in the wild are often wrong, and
what comes out is checked against the diffID anyway.  No I/O here: callers bring a ``read``.
"""

from collections.abc import Callable, Iterator

import zstandard

from lazyfs.errors import FormatError
from lazyfs.formats.inflate import INFLATE_ERRORS, open_member

PIECE_SIZE = 1 << 20
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

Read = Callable[[int], bytes]


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
            raise NotALayer(f"layer: got {name}, expected tar, gzip or zstd")


def decompress(read: Read) -> Iterator[bytes]:
    """Yield the uncompressed layer in pieces of at most PIECE_SIZE bytes.

    *read* returns up to the asked number of bytes, and none only at the end.
    """
    head = read(PIECE_SIZE)
    if head.startswith(GZIP_MAGIC):
        return _gunzip(head, read)
    if is_zstd(head):
        return _unzstd(_Replay(head, read))
    check_head(head)
    return _copy(head, read)


def _copy(head: bytes, read: Read) -> Iterator[bytes]:
    while head:
        yield head
        head = read(PIECE_SIZE)


def _gunzip(data: bytes, read: Read) -> Iterator[bytes]:
    try:
        while data:
            if data[:2] not in (GZIP_MAGIC, GZIP_MAGIC[:1]):
                raise BadCompression(
                    f"layer: got {data[:4]!r} after a gzip member, expected another one"
                )
            inflater = open_member()
            while not inflater.eof:
                is_end = not data and not (data := read(PIECE_SIZE))
                piece = inflater.decompress(data, PIECE_SIZE)
                data = inflater.unconsumed_tail
                if piece:
                    yield piece
                elif is_end and not inflater.eof:
                    raise BadCompression("layer: got a gzip stream cut short, expected its end")
            data = inflater.unused_data or read(PIECE_SIZE)
    except INFLATE_ERRORS as exc:
        raise BadCompression(f"layer: got a damaged gzip stream: {exc}") from exc


class _Replay:
    """A file for zstandard: *head*, then what *read* returns."""

    def __init__(self, head: bytes, read: Read) -> None:
        self._head = head
        self._read = read

    def read(self, size: int) -> bytes:
        if self._head:
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._read(size)


def _unzstd(source: _Replay) -> Iterator[bytes]:
    """Inflate zstd frames.  The library is silent about a last frame cut short; diffIDs are not."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_SIZE)
    try:
        with decompressor.stream_reader(source, read_across_frames=True) as reader:  # type: ignore[arg-type]
            while piece := reader.read(PIECE_SIZE):
                yield piece
    except zstandard.ZstdError as exc:
        raise BadCompression(f"layer: got a damaged zstd stream: {exc}") from exc
