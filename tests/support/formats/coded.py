"""Blobs of compressed streams, and what a range decoder makes of them."""

import gzip
import hashlib
import random
from collections.abc import Callable, Iterable

from lazyfs.formats.decode import Decoded, Piece, RangeDecoder
from lazyfs.formats.streams.codec import Codec
from tests.support.formats.readers import check_reader

Result = dict[int, bytes | None]
Compress = Callable[..., bytes]


def member(data: bytes, level: int = 6) -> bytes:
    """Return a gzip member."""
    return gzip.compress(data, level, mtime=0)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def decode(decoder: RangeDecoder, *pieces: bytes | bytearray | memoryview) -> list[Decoded]:
    """Feed *pieces*, and nothing more; return what comes out."""
    decoded: list[Decoded] = []
    for data in pieces:
        decoder.feed(data, decoded)
    decoder.finish(decoded)
    return decoded


def run(pieces: Iterable[bytes], wanted: list[Piece], start: int = 0) -> tuple[Result, list[str]]:
    """Return what comes out, by key, and the errors; each key must come once."""
    decoder = RangeDecoder(wanted, start)
    decoded = decode(decoder, *pieces)
    assert decode(decoder) == []
    assert sorted(item.key for item in decoded) == sorted(piece.key for piece in wanted)
    for item in decoded:
        assert (item.data is None) != (item.error is None)
        (piece,) = [piece for piece in wanted if piece.key == item.key]
        if item.data is not None:
            assert len(item.data) == piece.size
            assert digest(item.data) == piece.digest
        else:
            assert f"chunk at {piece.blob_offset}" in item.error
            assert "expected" in item.error
    return {item.key: item.data for item in decoded}, [i.error for i in decoded if i.error]


class Blob:
    """A blob under construction, and the chunks that are wanted of it."""

    def __init__(self, codec: Codec = Codec.GZIP, compress: Compress = member) -> None:
        self.codec = codec
        self.compress = compress
        self.data = bytearray()
        self.pieces: list[Piece] = []
        self.plain: Result = {}

    def gap(self, size: int) -> "Blob":
        self.data += b"\xa5" * size
        return self

    def stream(
        self, *parts: bytes | int, members: int = 1, after: bytes = b"", **options: int
    ) -> "Blob":
        """Add a stream: bytes are wanted chunks, numbers are so many bytes that nobody wants.

        It is made of so many *members*, or frames; *options* are for what compresses them.
        """
        start = len(self.data)
        plain = bytearray()
        spans = []
        for part in parts:
            if isinstance(part, int):
                plain += b"\x5a" * part
            else:
                spans.append((len(plain), part))
                plain += part
        cut = -(-len(plain) // members) or 1
        for at in range(0, len(plain) or 1, cut):
            self.data += self.compress(bytes(plain[at : at + cut]), **options)
        self.data += after
        for inner, part in spans:
            key = len(self.plain)
            end, size = len(self.data), len(part)
            self.pieces.append(Piece(key, start, end, inner, size, digest(part), self.codec))
            self.plain[key] = part
        return self

    def piece(self, number: int, **fields) -> None:
        self.pieces[number] = self.pieces[number]._replace(**fields)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def check(blob: Blob, *, step: int = 1) -> None:
    """The whole suite for a stream reader; what is cut off may only be missing."""

    def is_partial(result: Result) -> bool:
        return all(data is None or data == blob.plain[key] for key, data in result.items())

    check_reader(
        lambda pieces: run(pieces, blob.pieces)[0],
        bytes(blob.data),
        blob.plain,
        is_partial=is_partial,
        step=step,
    )
