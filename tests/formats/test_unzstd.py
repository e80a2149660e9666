"""Zstd frames: what comes out is bounded, whatever goes in."""

import random
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.streams.unzstd import (
    ZSTD_ERRORS,
    BadFrame,
    open_frames,
    open_short_frames,
    unzstd,
)
from tests.support.formats.readers import cuts
from tests.support.formats.zstdchunked import frame, skippable

SMALL_BOMB = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 30))


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("data", [b"", b"x", bytes(131072), noise(131072), noise(300_001)])
@pytest.mark.parametrize("is_sized", [True, False])
def test_frames_however_they_are_cut(data, is_sized):
    one = zstandard.ZstdCompressor(write_checksum=True).compress(data) if is_sized else frame(data)
    blob = one + skippable(b"skipped") + frame(b"second")
    for pieces in cuts(blob) if len(blob) < 10_000 else [[blob], [blob[:5], blob[5:]]]:
        out: list[bytes] = []
        push = open_frames(out.append)
        for piece in pieces:
            push(piece)
        assert b"".join(out) == data + b"second"
    assert unzstd(blob, len(data) + 6, "frames") == data + b"second"


def test_a_bomb_is_stopped_by_who_receives_it():
    received = []

    class Enough(Exception):
        pass

    def write(piece: bytes) -> None:
        received.append(len(piece))
        if sum(received) > 1 << 20:
            raise Enough

    tracemalloc.start()
    try:
        with pytest.raises(Enough):
            open_frames(write)(SMALL_BOMB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(received) <= 128 << 10
    assert sum(received) < 2 << 20
    assert peak < 4 << 20


def test_a_bomb_is_refused():
    with pytest.raises(BadFrame, match="more than 1000 bytes"):
        unzstd(SMALL_BOMB, 1000, "bomb")


def test_a_frame_that_declares_the_world():
    """Its header is honest or not: nothing is set aside for what it declares."""
    short = open_short_frames(1000)
    assert short(memoryview(SMALL_BOMB), 10) == b""
    # A header that declares 2^62 bytes in an eight-byte field, single segment.
    header = b"\x28\xb5\x2f\xfd\xe0" + (1 << 62).to_bytes(8, "little")
    assert short(memoryview(header + b"\x01\x00\x00"), 10) == b""
    with pytest.raises(BadFrame):
        unzstd(header + b"\x01\x00\x00", 10, "header")


def test_a_window_larger_than_any_producers():
    # Window descriptor: exponent 21 is 2 GiB.
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00"
    with pytest.raises(BadFrame, match="zstd data are damaged"):
        unzstd(header, 10, "window")


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(data, has_magic):
    data = b"\x28\xb5\x2f\xfd" * has_magic + data
    try:
        assert len(unzstd(data, 1 << 16, "bytes")) <= 1 << 16
    except BadFrame:
        pass
    try:
        open_short_frames(1000)(memoryview(data), 100)
    except ZSTD_ERRORS:
        pass
