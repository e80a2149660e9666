"""One pass over a plain layer: contents, TOC and spans agree with tarfile and with each other."""

import gzip
import hashlib
import io
import itertools
import random
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Sequence

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.digest import digest_of
from lazyfs.errors import FormatError
from lazyfs.formats.decode import RangeDecoder
from lazyfs.formats.layer_index import (
    HEADER,
    BadLayerIndex,
    LayerIndex,
    decode_index,
    decode_spans,
    encode_index,
    encode_spans,
)
from lazyfs.formats.layer_pass import LayerPass, PassedLayer
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.compression import BadCompression
from lazyfs.formats.streams.spans import Span, gzip_header_size, open_stream
from lazyfs.formats.streams.stream import Piece
from lazyfs.formats.tars.tar import BadTar
from lazyfs.formats.tocs.toc import Kind
from tests.support.formats.coded import decode

SPAN = 20_000
CHUNK = 50_000


def words(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(2 * (size // 5 + 1)).hex(" ", 2).encode()[:size]


def tar_of(files: Sequence[tuple[str, bytes]], more: Sequence[tarfile.TarInfo] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in more:
            tar.addfile(entry)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


FILES = [
    ("a/empty", b""),
    ("a/small", b"small\n"),
    ("a/long", words(180_000, 1)),
    ("a/zeros", bytes(90_000)),
    ("b/noise", random.Random(2).randbytes(70_000)),
    *((f"c/{number}", words(number * 211 % 5000, number)) for number in range(60)),
]


def split(data: bytes, size: int, pack: Callable[[bytes], bytes]) -> bytes:
    return b"".join(pack(data[at : at + size]) for at in range(0, len(data), size))


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


def zstd_without_sizes(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(data)


def named_member(data: bytes) -> bytes:
    body = gzip.compress(data, mtime=0)
    extra = b"\x05\x00abcde" + b"name\0" + b"comment\0"
    return body[:3] + bytes([4 | 8 | 16]) + body[4:10] + extra + body[10:]


SKIPPABLE = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 6, mtime=0),
    "gzip-stored": lambda data: gzip.compress(data, 0, mtime=0),
    "gzip-members": lambda data: split(data, 30_001, lambda part: gzip.compress(part, mtime=0)),
    "gzip-names": named_member,
    "zstd": zstd,
    "zstd-frames": lambda data: SKIPPABLE + split(data, 33_333, zstd_without_sizes) + SKIPPABLE,
}


def run(
    blob: bytes, step: int = 1 << 20, *, span: int = SPAN, chunk: int = CHUNK
) -> tuple[PassedLayer, bytes]:
    """Return what a pass over *blob* leaves, and the device as the TOC has it."""
    device = bytearray()

    def write(offset: int, data: bytes | memoryview) -> None:
        if len(device) < offset + len(data):
            device.extend(bytes(offset + len(data) - len(device)))
        device[offset : offset + len(data)] = data

    passing = LayerPass(write, chunk_size=chunk, span_size=span)
    try:
        for at in range(0, len(blob), step):
            passing.feed(blob[at : at + step])
        layer = passing.finish()
    finally:
        passing.close()
    if layer.moves is not None:
        moved = bytearray(max((m.target + m.size for m in layer.moves), default=0))
        for move in layer.moves:
            moved[move.target : move.target + move.size] = device[move.source :][: move.size]
        return layer, bytes(moved)
    return layer, bytes(device)


def contents(layer: PassedLayer, device: bytes) -> dict[str, bytes]:
    found = {}
    base = 0
    for entry in layer.toc.entries:
        if entry.kind is Kind.REGULAR:
            found[entry.path.decode()] = device[base : base + entry.size]
            base += -(-entry.size // 4096) * 4096
    return found


def decode_all(blob: bytes, layer: PassedLayer, step: int) -> dict[tuple[int, int], bytes]:
    """Return every chunk by (entry number, offset), decoded from the blob by its spans alone."""
    spans = {span.blob_offset: span for span in layer.spans}
    keys: list[tuple[int, int]] = []
    pieces = []
    for number, entry in enumerate(layer.toc.entries):
        for chunk in entry.chunks:
            at = chunk.blob_offset
            inner, size = chunk.inner_offset, chunk.size
            pieces.append(Piece(len(keys), at, 0, inner, size, chunk.digest, chunk.codec))
            keys.append((number, chunk.offset))
    pieces.sort(key=lambda piece: (piece.blob_offset, piece.inner_offset))
    starts = sorted({piece.blob_offset for piece in pieces})
    ends = dict(itertools.pairwise([*starts, len(blob)]))
    pieces = [piece._replace(blob_end=ends[piece.blob_offset]) for piece in pieces]
    decoder = RangeDecoder(pieces, 0, points=lambda at: spans[at].point())
    decoded = decode(decoder, *(blob[at : at + step] for at in range(0, len(blob), step)))
    assert [item.error for item in decoded if item.error] == []
    return {keys[item.key]: item.data for item in decoded if item.data is not None}


def index_of(layer: PassedLayer) -> LayerIndex:
    """Return the index that a pass leaves."""
    return LayerIndex(
        layer.blob_digest,
        layer.blob_size,
        layer.diff_id,
        layer.plain_size,
        layer.toc.digest,
        layer.toc_json,
        layer.codec,
        layer.spans,
    )


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("step", [1 << 20, 997])
def test_what_a_pass_leaves(packer: str, step: int) -> None:
    tar = tar_of(FILES)
    blob = PACKERS[packer](tar)
    layer, device = run(blob, step)
    assert layer.blob_digest == digest_of(blob)
    assert layer.blob_size == len(blob)
    assert layer.diff_id == digest_of(tar)
    assert layer.plain_size == len(tar)
    assert layer.moves is None
    assert contents(layer, device) == dict(FILES)
    decoded = decode_all(blob, layer, step)
    base = 0
    for number, entry in enumerate(layer.toc.entries):
        for chunk in entry.chunks:
            payload = device[base + chunk.offset :][: chunk.size]
            assert hashlib.sha256(payload).digest() == chunk.digest
            assert decoded[number, chunk.offset] == payload
            assert chunk.size <= CHUNK
        base += -(-entry.size // 4096) * 4096


def test_how_the_blob_is_cut_changes_nothing() -> None:
    for pack in PACKERS.values():
        blob = pack(tar_of(FILES))
        assert run(blob, 100) == run(blob)


def test_spans_are_as_long_as_asked() -> None:
    layer, _ = run(PACKERS["gzip"](tar_of([("f", words(900_000, 5))])), span=200_000)
    starts = [span.plain_offset for span in layer.spans]
    assert starts[0] == 0
    assert len(starts) >= 4
    assert all(later - sooner >= 200_000 for sooner, later in itertools.pairwise(starts))


def test_of_equal_names_the_last_counts_and_payloads_move() -> None:
    files = [("x", words(9000, 1)), ("keep", b"k" * 5000), ("x", words(100, 2))]
    more = [link("hard", "keep"), link("soft", "keep", tarfile.SYMTYPE)]
    layer, device = run(gzip.compress(tar_of(files, more)))
    assert layer.moves
    assert contents(layer, device) == {"x": words(100, 2), "keep": b"k" * 5000}
    kinds = {entry.path: entry.kind for entry in layer.toc.entries}
    assert kinds[b"hard"] is Kind.HARDLINK
    assert kinds[b"soft"] is Kind.SYMLINK


def test_a_link_inherits_a_file_that_was_replaced() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (("x", b"first" * 1000), ("=h", b""), ("x", b"second" * 1000)):
            if name == "=h":
                tar.addfile(link("h", "x"))
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    layer, device = run(gzip.compress(buffer.getvalue()))
    assert contents(layer, device) == {"x": b"second" * 1000, "h": b"first" * 1000}


@pytest.mark.parametrize("packer", PACKERS)
def test_a_blob_cut_short(packer: str) -> None:
    blob = PACKERS[packer](tar_of(FILES))
    for size in (1, 3, 12, len(blob) // 2, len(blob) - 3):
        if packer == "raw" and size > len(blob) // 2:
            continue  # what follows the archive's end is not missed
        with pytest.raises(FormatError):
            run(blob[:size])


@pytest.mark.parametrize("packer", [name for name in PACKERS if name not in ("raw", "gzip-stored")])
def test_damage(packer: str) -> None:
    """Whatever a flipped byte does, it is an error or another digest."""
    tar = tar_of(FILES)
    blob = PACKERS[packer](tar)
    for at in random.Random(3).sample(range(len(blob)), 40):
        damaged = bytearray(blob)
        damaged[at] ^= 0x41
        try:
            layer, _ = run(bytes(damaged))
        except FormatError:
            continue
        assert layer.blob_digest != digest_of(blob)


def test_a_bomb_takes_no_memory() -> None:
    bomb = tar_of([("zeros", bytes(200 << 20))])
    for blob in (gzip.compress(bomb, 1), zstd(bomb)):
        assert len(blob) < 2 << 20
        passing = LayerPass(lambda offset, data: None)
        tracemalloc.start()
        try:
            passing.feed(blob)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
        assert passing.finish().plain_size == len(bomb)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=600), st.sampled_from([b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd"]))
def test_random_input(data: bytes, magic: bytes) -> None:
    for blob in (magic + data, gzip.compress(data), zstd(data)):
        try:
            run(blob)
        except FormatError:
            pass


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(b"x", mtime=0) + b"trailing", "after a gzip member"),
        (zstd(b"x") + b"trailing", "after a zstd frame"),
        (b"\x1f\x8b\x07" + bytes(20), "gzip method 7"),
        (zstd(b"")[:6] + b"\xff\xff\xff\xff\xff\xff\xff", "zstd"),
    ],
)
def test_what_is_no_stream(data: bytes, reason: str) -> None:
    def read() -> None:
        stream = open_stream(data)
        list(stream.feed(data))
        stream.finish()

    with pytest.raises(BadCompression, match=reason):
        read()


def test_a_blob_of_no_bytes_is_an_empty_layer() -> None:
    passed, device = run(b"")
    assert (passed.codec, passed.plain_size, len(passed.toc.entries)) == (Codec.RAW, 0, 0)
    assert (passed.diff_id, passed.blob_digest) == (digest_of(b""), digest_of(b""))
    assert device == b""


def test_an_endless_gzip_header() -> None:
    with pytest.raises(BadCompression, match="header is longer than"):
        list(open_stream(b"\x1f\x8b\x08\x08").feed(b"\x1f\x8b\x08\x08" + b"n" * (1 << 18)))
    header = b"\x1f\x8b\x08\x02" + bytes(6)
    crc = zlib.crc32(header).to_bytes(4, "little")[:2]
    assert gzip_header_size(header + crc) == 12
    with pytest.raises(BadCompression, match="CRC of a gzip header is wrong"):
        gzip_header_size(header + b"xx")


def test_a_tar_that_ends_within_a_file() -> None:
    with pytest.raises(BadTar):
        run(gzip.compress(tar_of(FILES)[:100_000]))


# The index.


@pytest.mark.parametrize("packer", PACKERS)
def test_an_index_comes_back(packer: str) -> None:
    index = index_of(run(PACKERS[packer](tar_of(FILES)))[0])
    data = encode_index(index)
    assert decode_index(data) == index
    assert encode_index(index) == data


def test_an_index_that_was_changed() -> None:
    index = index_of(run(PACKERS["gzip"](tar_of(FILES)))[0])
    data = encode_index(index)
    for at in random.Random(4).sample(range(len(data)), 200):
        damaged = bytearray(data)
        damaged[at] ^= 0x15
        try:
            found = decode_index(bytes(damaged))
        except BadLayerIndex:
            continue
        assert found != index or at == 15  # padding
    for size in (0, HEADER.size - 1, HEADER.size, len(data) - 1):
        with pytest.raises(BadLayerIndex):
            decode_index(data[:size])
    with pytest.raises(BadLayerIndex):
        decode_index(data + b"x")


@pytest.mark.parametrize(
    "spans",
    [
        [Span(5, 0, Codec.GZIP), Span(5, 9, Codec.GZIP)],
        [Span(5, 9, Codec.GZIP), Span(6, 8, Codec.GZIP)],
        [Span(100, 0, Codec.GZIP)],
        [Span(1, 0, Codec.RAW)],
        [Span(1, 0, Codec.DEFLATE, 8)],
        [Span(1, 0, Codec.GZIP, 0, 0, b"window")],
        [Span(1, 0, Codec.DEFLATE, 0, 0, bytes((33 << 10) + 1))],
    ],
)
def test_spans_that_cannot_be(spans: list[Span]) -> None:
    with pytest.raises(BadLayerIndex):
        decode_spans(encode_spans(spans), 100)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_spans(data: bytes) -> None:
    try:
        spans = decode_spans(data, 1 << 40)
    except BadLayerIndex:
        return
    assert encode_spans(spans) == data or len(data) >= 8
