"""Restart points: from each of them the rest of a stream comes out as from its beginning."""

import gzip
import random
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from lazyfs.formats.streams import inflate, restart
from lazyfs.formats.streams.inflate import INFLATE_ERRORS
from lazyfs.formats.streams.restart import (
    BlockInflater,
    Restarted,
    RestartPoint,
    has_blocks,
    prefix,
)

needs_blocks = pytest.mark.skipif(not has_blocks(), reason="no libz.so.1")


def deflate(data: bytes, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
    return compressor.compress(data) + compressor.flush()


def text(size: int, seed: int = 0) -> bytes:
    """Return bytes that compress to blocks of dynamic codes."""
    letters = random.Random(seed)
    return b" ".join(letters.randbytes(2).hex().encode() for _ in range(size // 5))


def points_of(raw: bytes, step: int = 4096) -> tuple[bytes, list[tuple[int, RestartPoint]]]:
    """Return what *raw* inflates to, and all its points with the plain bytes before each."""
    inflater = BlockInflater()
    plain = bytearray()
    points = []
    try:
        for start in range(0, len(raw), step):
            for part, block, _ in inflater.inflate(raw[start : start + step]):
                plain += part
                if block is not None:
                    at = start + block.used
                    head = raw[at - 1] if block.bits else 0
                    window = bytes(plain[-restart.WINDOW_SIZE :])
                    points.append((len(plain), RestartPoint(at, block.bits, head, window)))
        assert inflater.eof
    finally:
        inflater.close()
    return bytes(plain), points


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with both libraries."""
    chosen = isal_zlib if request.param == "isal" else zlib
    monkeypatch.setattr(inflate, "_decompressobj", chosen.decompressobj)


@pytest.mark.parametrize("bits", range(8))
def test_a_prefix_ends_at_every_bit(bits: int) -> None:
    plain = text(20_000)
    whole = int.from_bytes(deflate(plain), "little") << (-bits % 8)
    moved = bytearray(whole.to_bytes(len(deflate(plain)) + 2, "little"))
    if bits:
        moved[0] |= (1 << (-bits % 8)) - 1  # what was before: must not matter
        head, rest = moved[0], bytes(moved[1:])
    else:
        head, rest = 0, bytes(moved)
    restarted = Restarted(RestartPoint(1, bits, head, b""))
    assert restarted.decompress(rest) == plain


def test_a_prefix_says_nothing() -> None:
    for bits in range(8):
        inflater = zlib.decompressobj(-15)
        assert inflater.decompress(prefix(bits, 0)) == b""
        assert not inflater.eof


@needs_blocks
@pytest.mark.parametrize(
    ("level", "strategy"),
    [
        *((level, zlib.Z_DEFAULT_STRATEGY) for level in (0, 1, 6, 9)),
        (6, zlib.Z_FIXED),
        (6, zlib.Z_HUFFMAN_ONLY),
        (6, zlib.Z_RLE),
    ],
)
def test_from_every_point_the_rest_comes_out(level: int, strategy: int) -> None:
    plain = text(150_000) + bytes(200_000) + random.Random(1).randbytes(150_000) + text(90_000, 2)
    raw = deflate(plain, level, strategy)
    found, points = points_of(raw)
    assert found == plain
    assert len(points) > 1
    for at, point in points:
        restarted = Restarted(point)
        assert restarted.decompress(raw[point.blob_offset :] + bytes(8) + b"after") == plain[at:]
        assert restarted.eof
        assert restarted.unused_data == b"after"


@needs_blocks
def test_points_do_not_depend_on_how_the_input_is_cut() -> None:
    raw = deflate(text(120_000))
    assert points_of(raw, 1)[1] == points_of(raw, 999)[1] == points_of(raw, len(raw))[1]


@needs_blocks
def test_input_and_output_in_small_steps() -> None:
    plain = text(100_000)
    raw = deflate(plain)
    at, point = points_of(raw)[1][1]
    restarted = Restarted(point)
    result = bytearray()
    data = raw[point.blob_offset :] + zlib.crc32(plain).to_bytes(4, "little") + bytes(4)
    for start in range(0, len(data), 7):
        rest: bytes = data[start : start + 7]
        while True:
            result += (got := restarted.decompress(rest, 100))
            rest = restarted.unconsumed_tail
            if not rest and len(got) < 100:
                break
    assert bytes(result) == plain[at:]
    assert restarted.eof
    assert restarted.unused_data == b""


@needs_blocks
def test_without_its_window_a_point_fails() -> None:
    plain = text(100_000)
    raw = deflate(plain)
    at, point = points_of(raw)[1][-1]
    with pytest.raises(INFLATE_ERRORS):
        assert Restarted(point._replace(window=b"")).decompress(raw[point.blob_offset :]) == b""
    other = Restarted(point._replace(window=bytes(len(point.window))))
    assert other.decompress(raw[point.blob_offset :]) != plain[at:]


@needs_blocks
@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-20], lambda raw: raw[:5000] + b"\xff" * 64 + raw[5064:]]
)
def test_damaged_input(damage: Callable[[bytes], bytes]) -> None:
    inflater = BlockInflater()
    try:
        raw = damage(deflate(text(100_000)))
        try:
            produced = sum(len(plain) for plain, _, _ in inflater.inflate(raw))
        except zlib.error:
            return
        assert not inflater.eof
        assert produced < 100_000
    finally:
        inflater.close()
        inflater.close()


@needs_blocks
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000))
def test_random_input(data: bytes) -> None:
    for bits in (0, 3, 8 - 1):
        restarted = Restarted(RestartPoint(0, bits, 0x55, b""))
        try:
            assert len(restarted.decompress(data, 1 << 16)) <= 1 << 16
        except INFLATE_ERRORS:
            pass
    inflater = BlockInflater()
    try:
        for _ in inflater.inflate(data):
            pass
    except zlib.error:
        pass
    finally:
        inflater.close()


@needs_blocks
def test_a_gzip_member_goes_on_after_its_trailer() -> None:
    first, second = text(80_000), text(60_000, 1)
    blob = gzip.compress(first, mtime=0) + gzip.compress(second, mtime=0)
    raw = blob[10:]
    at, point = [
        (at, point) for at, point in _first_member(raw) if point.blob_offset < len(raw) // 3
    ][-1]
    restarted = Restarted(point)
    assert restarted.decompress(raw[point.blob_offset :]) == first[at:]
    assert gzip.decompress(restarted.unused_data) == second


def _first_member(raw: bytes) -> list[tuple[int, RestartPoint]]:
    inflater = BlockInflater()
    plain = bytearray()
    points = []
    for part, block, _ in inflater.inflate(raw):
        plain += part
        if block is not None:
            head = raw[block.used - 1] if block.bits else 0
            points.append(
                (len(plain), RestartPoint(block.used, block.bits, head, bytes(plain[-32768:])))
            )
    inflater.close()
    return points
