"""The index of a plain layer: the result of one pass over it, so that others need no pass.

Little-endian, one file per layer:

    header   magic "LFSINDX1", version u32, codec u8 (codec.Codec), algorithms of the blob's digest
             and of the diffID, u8 each (0 sha256, 1 sha512), zero byte, blob size u64, uncompressed
             size u64, blob's digest and diffID (64 bytes each, the end zeros), TOC's sha256, sizes
             of the two parts, u64 and u64
    part 1   the TOC's JSON, a zstd frame
    part 2   the spans: their number u64, a record of each (blob offset u64, plain offset u64,
             codec u8, bits u8, head u8, zero u8, window size u32), then the windows, each a zstd
             frame (windows.py)

Nothing in it is trusted: contents are checked by the TOC's chunk digests, and these by the digest
of the index.  A wrong span gives bytes that fail their digest.
"""

import struct
from collections.abc import Iterator, Sequence

import msgspec
import zstandard

from lazyfs.digest import HEX_LENGTH, Digest, digest_of
from lazyfs.errors import FormatError
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.streams.spans import Span
from lazyfs.formats.streams.windows import PACKED_SIZE

MAGIC = b"LFSINDX1"
VERSION = 2
HEADER = struct.Struct("<8sIBBBxQQ64s64s32sQQ")
ALGORITHMS = {"sha256": 0, "sha512": 1}
COUNT = struct.Struct("<Q")
RECORD = struct.Struct("<QQBBBxI")
LEVEL = 3


class BadLayerIndex(FormatError):
    """Bytes that are not the index of a layer."""


class LayerIndex(msgspec.Struct, frozen=True):
    """An index, read; sizes in bytes.  Digests are those that the index claims."""

    blob_digest: Digest
    blob_size: int
    diff_id: Digest
    plain_size: int
    toc_digest: Digest
    toc_json: bytes
    codec: Codec
    spans: tuple[Span, ...]


def encode_index(index: LayerIndex) -> bytes:
    """Return the bytes of *index*: the same ones for the same index."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    spans = encode_spans(index.spans)
    toc = compressor.compress(index.toc_json)
    header = HEADER.pack(
        *(MAGIC, VERSION, index.codec),
        *(ALGORITHMS[digest.algorithm] for digest in (index.blob_digest, index.diff_id)),
        *(index.blob_size, index.plain_size),
        *(digest.raw for digest in (index.blob_digest, index.diff_id, index.toc_digest)),
        *(len(toc), len(spans)),
    )
    return header + toc + spans


def decode_index(data: bytes, limits: Limits = DEFAULT_LIMITS) -> LayerIndex:
    """Return the index in *data*; raises BadLayerIndex.  Its TOC is checked to have its digest."""
    if len(data) < HEADER.size:
        raise BadLayerIndex(f"layer index: got {len(data)} bytes, expected at least {HEADER.size}")
    magic, version, codec, *rest = HEADER.unpack_from(data)
    numbers, (blob_size, plain_size, *raw, toc_raw, toc_size, spans_size) = rest[:2], rest[2:]
    if magic != MAGIC or version != VERSION:
        raise BadLayerIndex(
            f"layer index: got {magic!r} version {version}, expected {MAGIC!r} version {VERSION}",
            hint="publish a current one with `lazyfs index push`",
        )
    if codec not in (Codec.RAW, Codec.GZIP, Codec.ZSTD):
        raise BadLayerIndex(f"layer index: got codec {codec}, expected 0, 1 or 3")
    blob, diff_id = map(_digest, numbers, raw)
    toc_digest = Digest("sha256", toc_raw.hex())
    if len(data) != HEADER.size + toc_size + spans_size:
        raise BadLayerIndex(
            f"layer index: got {len(data)} bytes,"
            f" expected {HEADER.size} + {toc_size} + {spans_size}"
        )
    toc = _unpack(data[HEADER.size : HEADER.size + toc_size], limits.toc_size, "TOC")
    if digest_of(toc) != toc_digest:
        raise BadLayerIndex(
            f"layer index: got a TOC with digest {digest_of(toc)}, expected {toc_digest}"
        )
    spans = decode_spans(data[HEADER.size + toc_size :], blob_size)
    return LayerIndex(blob, blob_size, diff_id, plain_size, toc_digest, toc, Codec(codec), spans)


def _digest(number: int, raw: bytes) -> Digest:
    """Return the digest that a field of the header holds."""
    for algorithm, known in ALGORITHMS.items():
        size = HEX_LENGTH[algorithm] // 2
        if number == known and not any(raw[size:]):
            return Digest(algorithm, raw[:size].hex())
    raise BadLayerIndex(f"layer index: got a digest of kind {number}, expected 0 or 1")


def encode_spans(spans: Sequence[Span]) -> bytes:
    """Return *spans* as part 2 has them."""
    records = b"".join(
        RECORD.pack(s.blob_offset, s.plain_offset, s.codec, s.bits, s.head, len(s.window))
        for s in spans
    )
    return COUNT.pack(len(spans)) + records + b"".join(span.window for span in spans)


def decode_spans(data: bytes, blob_size: int) -> tuple[Span, ...]:
    """Return the spans in *data*, which are sorted by both offsets; raises BadLayerIndex."""
    if len(data) < COUNT.size:
        raise BadLayerIndex(f"spans: got {len(data)} bytes, expected at least {COUNT.size}")
    (count,) = COUNT.unpack_from(data)
    if count * RECORD.size > len(data) - COUNT.size:
        raise BadLayerIndex(f"spans: {len(data)} bytes are too few for {count} spans")
    return tuple(_spans(data, count, blob_size))


def _spans(data: bytes, count: int, blob_size: int) -> Iterator[Span]:
    windows = COUNT.size + count * RECORD.size
    before = (-1, -1)
    for number in range(count):
        blob_offset, plain_offset, codec, bits, head, size = RECORD.unpack_from(
            data, COUNT.size + number * RECORD.size
        )
        if not (
            before[0] < blob_offset < blob_size
            and before[1] <= plain_offset
            and codec in (Codec.GZIP, Codec.DEFLATE, Codec.ZSTD)
            and bits < 8
            and size <= (PACKED_SIZE if codec == Codec.DEFLATE else 0)
            and windows + size <= len(data)
        ):
            raise BadLayerIndex(f"spans: span {number} is not valid")
        before = (blob_offset, plain_offset)
        window = data[windows : windows + size]
        windows += size
        yield Span(blob_offset, plain_offset, Codec(codec), bits, head, window)
    if windows != len(data):
        raise BadLayerIndex(f"spans: got {len(data)} bytes, expected {windows}")


def _unpack(frame: bytes, limit: int, what: str) -> bytes:
    """Return what a zstd frame of known size holds, *limit* bytes at most."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= limit:
            raise BadLayerIndex(
                f"layer index: got {what} of {size} bytes, expected at most {limit}"
            )
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=limit)
    except zstandard.ZstdError as exc:
        raise BadLayerIndex(f"layer index: cannot decompress {what}: {exc}") from exc
