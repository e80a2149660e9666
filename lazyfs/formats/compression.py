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
# The longest window that zstd's command line takes without being asked; bounds our memory.
ZSTD_WINDOW_SIZE = 1 << 27

Read = Callable[[int], bytes]


class BadCompression(FormatError):
    """A layer's compressed stream is damaged or cut short."""


def is_compressed(head: bytes) -> bool:
    """Say whether a blob that starts with *head*, four bytes or more, is compressed."""
    return head.startswith((GZIP_MAGIC, ZSTD_MAGIC))


def decompress(read: Read) -> Iterator[bytes]:
    """Yield the uncompressed layer in pieces of at most PIECE_SIZE bytes.

    *read* returns up to the asked number of bytes, and none only at the end.
    """
    head = read(PIECE_SIZE)
    if head.startswith(GZIP_MAGIC):
        return _gunzip(head, read)
    if head.startswith(ZSTD_MAGIC):
        return _unzstd(_Replay(head, read))
    return _copy(head, read)


def _copy(head: bytes, read: Read) -> Iterator[bytes]:
    while head:
        yield head
        head = read(PIECE_SIZE)


def _gunzip(data: bytes, read: Read) -> Iterator[bytes]:
    try:
        while data:
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
