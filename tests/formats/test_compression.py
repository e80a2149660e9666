"""Taking the compression off a layer."""

import bz2
import gzip
import io
import lzma
import os
import tracemalloc

import pytest
import zstandard

from lazyfs.formats.streams.compression import BadCompression, is_compressed
from lazyfs.formats.streams.spans import READ_SIZE, open_stream
from lazyfs.formats.streams.unpack import decompress
from tests.support.formats.readers import check_flips

DATA = os.urandom(300_000) + bytes(3 * READ_SIZE) + b"end"
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
BLOBS = {
    "tar": DATA,
    "gzip": gzip.compress(DATA),
    "gzip of many members": gzip.compress(DATA[:9]) + gzip.compress(b"") + gzip.compress(DATA[9:]),
    "zstd": zstandard.compress(DATA),
    "zstd of many frames": (
        zstandard.compress(DATA[:9]) + SKIPPABLE + zstandard.compress(DATA[9:]) + SKIPPABLE
    ),
    "zstd as pzstd writes it": SKIPPABLE + zstandard.compress(DATA),
}


def unpack(blob: bytes, step: int = 1 << 30) -> bytes:
    stream = io.BytesIO(blob)
    pieces = list(decompress(lambda size: stream.read(min(size, step))))
    assert all(0 < len(piece) <= READ_SIZE for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("name", BLOBS)
def test_it_comes_off_however_the_blob_is_read(name: str):
    for step in (1 << 30, 65_536, 5003):
        assert unpack(BLOBS[name], step) == DATA
    assert is_compressed(BLOBS[name][:4]) is (name != "tar")


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        (lzma.compress(DATA), "xz"),
        (bz2.compress(b"payload"), "bzip2"),
        (b"PK\x03\x04" + bytes(600), "zip"),
        (b"\x04\x22\x4d\x18" + bytes(600), "lz4"),
    ],
)
def test_what_other_programs_compress_is_named(blob: bytes, name: str):
    for take in (unpack, lambda data: open_stream(data).feed(data)):
        with pytest.raises(BadCompression, match=f"not tar, gzip or zstd, but {name}"):
            take(blob)


def test_nothing_is_nothing():
    assert unpack(b"") == b""
    assert not is_compressed(b"")


def test_gzip_cut_anywhere_is_refused():
    blob = gzip.compress(b"payload" * 40)
    for size in range(2, len(blob)):
        with pytest.raises(BadCompression):
            unpack(blob[:size])
    assert unpack(blob) == b"payload" * 40


def test_junk_after_a_member_is_not_called_a_member_cut_short():
    with pytest.raises(BadCompression, match="b'junk' after a gzip member"):
        unpack(gzip.compress(b"payload") + b"junk")


@pytest.mark.parametrize("junk", [b"x", bytes(512), b"\x1f\x8b\x08\x00junk"])
def test_junk_after_the_stream_is_refused(junk: bytes):
    for blob in (gzip.compress(b"payload"), zstandard.compress(b"payload")):
        with pytest.raises(BadCompression):
            unpack(blob + junk)


def test_flipped_bits_are_refused_by_name():
    assert check_flips(unpack, gzip.compress(os.urandom(500)), BadCompression) > 300
    check_flips(unpack, zstandard.compress(os.urandom(500)), BadCompression)


def test_a_bomb_takes_no_memory():
    with io.BytesIO() as stream:
        with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as bomb:
            for _ in range(300):
                bomb.write(bytes(READ_SIZE))
        blobs = [stream.getvalue(), zstandard.compress(bytes(300 << 20))]
    for blob in blobs:
        stream = io.BytesIO(blob)
        tracemalloc.start()
        try:
            size = sum(len(piece) for piece in decompress(stream.read))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert size == 300 << 20
        assert peak < 16 << 20
