"""Windows of restart points: what is kept of them is enough, and little."""

import random
import zlib

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from lazyfs.formats.streams import inflate, windows
from lazyfs.formats.streams.compression import BadCompression
from lazyfs.formats.streams.inflate import INFLATE_ERRORS
from lazyfs.formats.streams.restart import (
    WINDOW_SIZE,
    BlockInflater,
    Restarted,
    RestartPoint,
    has_blocks,
)
from lazyfs.formats.streams.windows import PACKED_SIZE, LookBack, keep_used_twin, unpack_window

needs_blocks = pytest.mark.skipif(not has_blocks(), reason="no libz.so.1")


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with both libraries."""
    chosen = isal_zlib if request.param == "isal" else zlib
    monkeypatch.setattr(inflate, "_decompressobj", chosen.decompressobj)


def text(size: int, seed: int = 0) -> bytes:
    letters = random.Random(seed)
    return b" ".join(letters.randbytes(2).hex().encode() for _ in range(size // 5))


def deflate(data: bytes, level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
    return compressor.compress(data) + compressor.flush()


def points_of(raw: bytes) -> list[tuple[int, RestartPoint]]:
    """Return the points of *raw*, each with the number of plain bytes before it."""
    inflater = BlockInflater()
    plain = bytearray()
    points = []
    try:
        for part, block, _ in inflater.inflate(raw):
            plain += part
            if block is not None:
                head = raw[block.used - 1] if block.bits else 0
                window = bytes(plain[-WINDOW_SIZE:])
                points.append((len(plain), RestartPoint(block.used, block.bits, head, window)))
    finally:
        inflater.close()
    return points


def packed(point: RestartPoint, raw: bytes, step: int = 1 << 20) -> bytes:
    """Return what is kept of the point's window, having seen what is behind it."""
    look = LookBack(point)
    rest = raw[point.blob_offset :]
    for at in range(0, len(rest), step):
        look.feed(rest[at : at + step])
    return look.packed()


PLAIN = text(150_000) + bytes(100_000) + random.Random(1).randbytes(150_000) + text(150_000, 2)


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
def test_what_is_kept_is_enough(level: int, strategy: int) -> None:
    raw = deflate(PLAIN, level, strategy)
    points = points_of(raw)
    assert len(points) > 1
    for at, point in points:
        window = unpack_window(packed(point, raw))
        assert len(window) == len(point.window)
        assert (
            Restarted(point._replace(window=window)).decompress(raw[point.blob_offset :])
            == (PLAIN[at:])
        )


@needs_blocks
def test_what_nobody_refers_to_is_not_kept() -> None:
    half = WINDOW_SIZE // 2
    noise = random.Random(5).randbytes(2 * WINDOW_SIZE)
    far = noise[:half] + noise[-half:]  # the window, in its halves
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    raw = compressor.compress(noise) + compressor.flush(zlib.Z_FULL_FLUSH)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=far)
    behind = compressor.compress(far[half : half + 100] + text(200_000)) + compressor.flush()
    point = RestartPoint(len(raw), 0, 0, far)
    window = unpack_window(packed(point, raw + behind))
    assert window[half : half + 100] == far[half : half + 100]
    kept = sum(window[n] != 0 for n in range(WINDOW_SIZE))
    assert kept < 1000  # what text finds in noise, and bytes that look like positions
    assert len(packed(point, raw + behind)) < 2500


@needs_blocks
def test_how_the_data_are_cut_changes_nothing() -> None:
    raw = deflate(PLAIN, 6)
    _, point = points_of(raw)[1]
    assert packed(point, raw, 1) == packed(point, raw, 997) == packed(point, raw)


@settings(max_examples=150, deadline=None)
@example(bytes(range(256)) * 128, b"\0\xff\x7f", b"\0\x7f\x7f")
@given(st.binary(max_size=600), st.binary(max_size=80), st.binary(max_size=80))
def test_the_native_function_and_its_twin_agree(window: bytes, low: bytes, high: bytes) -> None:
    native = pytest.importorskip("lazyfs._native", reason="no native module").keep_used
    size = min(len(low), len(high))
    low, high = low[:size], bytes(each % 4 for each in high[:size])
    expected = keep_used_twin(window, low, high)
    assert native(window, low, high) == expected
    named = {below | above << 8 for below, above in zip(low, high, strict=True)}
    assert expected == bytes(byte * (at in named) for at, byte in enumerate(window))


def test_halves_of_two_lengths_are_refused() -> None:
    for keep in (windows.keep_used, keep_used_twin):
        with pytest.raises(ValueError):
            keep(b"window", b"\0", b"\0\0")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 7), st.binary(max_size=300))
def test_random_data_behind_a_point(data: bytes, bits: int, window: bytes) -> None:
    look = LookBack(RestartPoint(0, bits, 0xA5, window))
    try:
        look.feed(data)
    except INFLATE_ERRORS:
        pass
    assert len(unpack_window(look.packed())) == len(window)


def test_the_largest_window() -> None:
    noise = random.Random(3).randbytes(WINDOW_SIZE)
    frame = zstandard.ZstdCompressor(level=windows.LEVEL).compress(noise)
    assert len(frame) <= PACKED_SIZE
    assert unpack_window(frame) == noise


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"no frame",
        zstandard.compress(bytes(WINDOW_SIZE + 1)),
        zstandard.compress(text(5000))[:-20],
        zstandard.ZstdCompressor(write_content_size=False).compress(b"without a size"),
    ],
)
def test_what_is_no_window(frame: bytes) -> None:
    with pytest.raises(BadCompression, match=r"window: (got|cannot)"):
        unpack_window(frame)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_frames(data: bytes) -> None:
    for frame in (data, b"\x28\xb5\x2f\xfd" + data):
        try:
            assert len(unpack_window(frame)) <= WINDOW_SIZE
        except BadCompression:
            pass
