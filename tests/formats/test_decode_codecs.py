"""The range decoder over zstd frames and over plain bytes: as right, and as hard to hurt."""

import gzip
import hashlib
import tracemalloc
from collections.abc import Callable
from tempfile import TemporaryFile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.formats.decode import PENDING_SIZE, Piece, RangeDecoder
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.stream import INFLATE_STEP, SPOOL_SIZE
from tests.support.formats.coded import Blob, check, decode, noise, run
from tests.support.formats.zstdchunked import frame, skippable


def sized_frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


COMPRESSORS: dict[str, tuple[Codec, Callable[[bytes], bytes]]] = {
    "zstd": (Codec.ZSTD, frame),
    "zstd that says its size": (Codec.ZSTD, sized_frame),
    "raw": (Codec.RAW, bytes),
}


@pytest.fixture(params=COMPRESSORS)
def blob(request):
    return Blob(*COMPRESSORS[request.param])


class TestIntactStreams:
    def test_one_chunk(self, blob):
        check(blob.stream(b"payload", 512))

    def test_streams_and_gaps(self, blob):
        check(
            blob.gap(10).stream(b"one", 512).stream(b"two" * 300).gap(9).stream(512, noise(700), 3)
        )

    def test_a_shared_stream(self, blob):
        parts = [512, b"a", 511, b"b" * 600, b"c", 512, noise(900, 1), 100]
        check(blob.stream(*parts).stream(b"next"))

    def test_several_frames(self, blob):
        check(blob.stream(b"x" * 10, 512, noise(2000), 512, b"y", members=5).stream(b"z"))

    def test_frames_of_other_things_behind(self):
        blob = Blob(*COMPRESSORS["zstd"])
        check(blob.stream(b"data", after=skippable(b"TOC") + b"junk").stream(b"more"))

    def test_long_streams(self, blob):
        size = 3 * INFLATE_STEP + 7
        blob.stream(b"one").stream(noise(size), 512, b"two" * PENDING_SIZE).stream(b"three")
        check(blob, step=100_003)

    def test_zeros(self, blob):
        check(blob.stream(bytes(2 << 20), 512).stream(b"next"), step=50_001)

    def test_a_large_chunk_goes_through_a_file(self, blob):
        large = noise(SPOOL_SIZE + 1)
        blob.stream(b"small", large, b"after")
        decoder = RangeDecoder(blob.pieces, 0, lambda: TemporaryFile(buffering=0))  # noqa: SIM115
        decoded = {item.key: item for item in decode(decoder, blob.data)}
        assert (decoded[0].data, decoded[2].data) == (b"small", b"after")
        with decoded[1].spool as spool:
            spool.seek(0)
            assert spool.read() == large


class TestBadStreams:
    def test_a_bad_one_leaves_the_others(self, blob):
        blob.stream(b"one" * 100, 512).stream(noise(900)).stream(b"three")
        start = blob.pieces[1].blob_offset
        blob.data[start : start + 8] = b"\xff" * 8
        result, errors = run([bytes(blob.data)], blob.pieces)
        assert result == {**blob.plain, 1: None}
        assert f"chunk at {start}" in errors[0]

    def test_of_another_compression(self, blob):
        blob.stream(b"one").stream(b"two")
        data = gzip.compress(b"one") + blob.data
        pieces = [piece._replace(blob_offset=0, blob_end=len(data)) for piece in blob.pieces[:1]]
        result, errors = run([data], pieces)
        assert result == {0: None}
        assert "expected 3 bytes" in errors[0]

    @pytest.mark.parametrize("size", [1 << 16, 8 << 20])
    def test_wrong_sizes(self, blob, size):
        blob.stream(b"one").stream(b"two")
        wrong = [blob.pieces[0]._replace(size=size), blob.pieces[1]]
        result, errors = run([bytes(blob.data)], wrong)
        assert result == {0: None, 1: b"two"}
        assert "expected" in errors[0]

    def test_overlaps(self, blob):
        blob.stream(b"abcdefgh")
        (piece,) = blob.pieces
        middle = Piece(
            1, piece.blob_offset, piece.blob_end, 4, 8, hashlib.sha256(b"efgh").digest(), blob.codec
        )
        result, errors = run([bytes(blob.data)], [piece, middle])
        assert result == {0: b"abcdefgh", 1: None}
        assert "overlaps" in errors[0]

    def test_a_bomb_takes_no_more_than_its_chunk(self):
        bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 30))
        digest = hashlib.sha256(bytes(100)).digest()
        wanted = [Piece(0, 0, len(bomb), 0, 100, digest, Codec.ZSTD)]
        tracemalloc.start()
        try:
            result, _ = run([bomb], wanted)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert result == {0: bytes(100)}
        assert peak < 4 << 20

    def test_a_bomb_before_the_chunk(self):
        """A chunk far inside a stream costs time, and no memory."""
        data = zstandard.ZstdCompressor(level=19).compress(bytes(200 << 20) + b"chunk")
        digest = hashlib.sha256(b"chunk").digest()
        wanted = [Piece(0, 0, len(data), 200 << 20, 5, digest, Codec.ZSTD)]
        tracemalloc.start()
        try:
            result, _ = run([data], wanted)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert result == {0: b"chunk"}
        assert peak < 4 << 20


@given(
    st.binary(max_size=300),
    st.lists(st.tuples(*[st.integers(0, 300)] * 4), max_size=5),
    st.sampled_from([Codec.ZSTD, Codec.RAW]),
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_and_any_pieces(data, shapes, codec):
    wanted = [
        Piece(key, start, start + length, inner, size, b"\0" * 32, codec)
        for key, (start, length, inner, size) in enumerate(sorted(shapes))
    ]
    wanted.sort(key=lambda piece: (piece.blob_offset, piece.inner_offset))
    for pieces in ([data], [data[:7], data[7:]], [frame(data)]):
        result, _ = run(pieces, wanted)
        assert set(result.values()) <= {None}
