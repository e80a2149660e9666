"""The range decoder: right however it is fed, and hard to hurt."""

import gzip
import random
import time
import tracemalloc
import zlib
from collections.abc import Iterable
from tempfile import TemporaryFile
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.formats import decode
from lazyfs.formats.decode import PENDING_SIZE, Decoded, Piece, RangeDecoder
from lazyfs.formats.streams import stream as streams
from lazyfs.formats.streams.stream import INFLATE_STEP, MAX_MEMBERS, SPOOL_SIZE
from tests.support.formats import coded
from tests.support.formats.coded import Blob, Result, check, digest, noise, run
from tests.support.formats.readers import cuts


class TestIntactStreams:
    def test_one_chunk(self):
        check(Blob().stream(b"payload", 512))

    def test_streams_and_gaps(self):
        check(
            Blob()
            .gap(10)
            .stream(b"one", 512)
            .stream(b"two" * 300)
            .gap(99)
            .stream(512, noise(700), 30)
            .gap(7)
        )

    def test_a_shared_stream(self):
        parts = [512, b"a", 511, b"b" * 600, b"c", 512, noise(900, 1), 100]
        check(Blob().stream(*parts).stream(b"next"))

    def test_several_members(self):
        check(Blob().stream(b"x" * 10, 512, noise(2000), 512, b"y", members=5).stream(b"z"))

    def test_empty_members(self):
        blob = Blob()
        blob.data += gzip.compress(b"", mtime=0) * 3
        blob.stream(b"data")
        blob.piece(0, blob_offset=0)
        check(blob)

    def test_a_long_stream_in_pieces(self):
        """Longer than what waits for its end, and than one step."""
        data = noise(3 * INFLATE_STEP + 17)
        blob = Blob().stream(b"before").stream(data[:5], data[5:], 600).stream(b"after")
        assert len(blob.data) > 2 * PENDING_SIZE
        check(blob, step=50_021)

    def test_a_compressible_long_stream(self):
        text = b"".join(b"line %d\n" % number for number in range(200_000))
        blob = Blob().stream(100, text[:700_000], 512, text[700_000:]).stream(b"after")
        check(blob, step=20_011)

    def test_zeros(self):
        check(Blob().stream(bytes(5 << 20), 512).stream(b"after"), step=499)

    def test_stored_blocks(self):
        check(Blob().stream(noise(100_000), 512, level=0).stream(b"after"), step=5_003)

    def test_the_start_is_anywhere(self):
        blob = Blob().gap(1000).stream(b"one").gap(50).stream(b"two")
        for start in (0, 500, 1000):
            for pieces in cuts(bytes(blob.data[start:])):
                assert run(pieces, blob.pieces, start)[0] == blob.plain

    def test_nothing_wanted(self):
        assert run([b"x" * 100], []) == ({}, [])

    def test_some_of_a_stream(self):
        blob = Blob().stream(b"a" * 100, b"b" * 100, b"c" * 100, b"d" * 100)
        kept = [blob.pieces[1], blob.pieces[3]]
        assert run([bytes(blob.data)], kept)[0] == {1: b"b" * 100, 3: b"d" * 100}

    def test_any_buffer(self):
        blob = Blob().stream(b"one").stream(b"two")
        for kind in (bytes, bytearray, memoryview):
            assert run([kind(bytes(blob.data))], blob.pieces)[0] == blob.plain

    def test_input_may_be_reused(self):
        """What comes out does not share memory with what went in."""
        blob = Blob().stream(noise(500)).stream(b"two")
        buffer = bytearray(blob.data)
        decoder = RangeDecoder(blob.pieces, 0)
        decoded: list[Decoded] = []
        decoder.feed(memoryview(buffer)[:300], decoded)
        buffer[:300] = bytes(300)
        decoder.feed(memoryview(buffer)[300:], decoded)
        buffer[:] = bytes(len(buffer))
        assert {item.key: item.data for item in decoded} == blob.plain

    def test_the_rest_of_a_stream_is_not_inflated(self):
        """Garbage after the last wanted byte is nobody's business."""
        blob = Blob().stream(b"wanted", 100_000, level=0)
        blob.data[2000:] = b"\xff" * (len(blob.data) - 2000)
        blob.stream(b"next")
        check(blob, step=997)

    @given(st.data())
    @settings(max_examples=80, deadline=None)
    def test_any_layout(self, data):
        blob = Blob()
        part = st.one_of(
            st.integers(0, 2000),
            st.binary(min_size=1, max_size=50),
            st.builds(noise, st.integers(1, 3000), st.integers(0, 9)),
        )
        for _ in range(data.draw(st.integers(1, 6))):
            blob.gap(data.draw(st.sampled_from([0, 0, 1, 300])))
            parts = data.draw(st.lists(part, min_size=1, max_size=6))
            blob.stream(*parts, members=data.draw(st.sampled_from([1, 1, 2, 3])))
        wanted = [piece for piece in blob.pieces if data.draw(st.booleans())]
        expected = {piece.key: blob.plain[piece.key] for piece in wanted}
        size = data.draw(st.integers(1, 5000))
        view = bytes(blob.data)
        pieces = [view[at : at + size] for at in range(0, len(view), size)]
        assert run(pieces, wanted)[0] == expected


class TestDamage:
    def blob(self) -> Blob:
        return Blob().stream(b"first", 512).stream(noise(5000), 512).stream(b"third")

    def test_a_flipped_bit_costs_its_stream_only(self):
        blob = self.blob()
        rng = random.Random(1)
        start, end = blob.pieces[1].blob_offset, blob.pieces[1].blob_end
        damaged = 0
        for _ in range(300):
            bent = bytearray(blob.data)
            bent[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
            for pieces in ([bytes(bent)], [bytes(bent[:2000]), bytes(bent[2000:])]):
                result, _ = run(pieces, blob.pieces)
                assert (result[0], result[2]) == (b"first", b"third")
                damaged += result[1] is None
        assert damaged > 500

    def test_a_wrong_digest(self):
        blob = self.blob()
        blob.piece(1, digest=bytes(32))
        for pieces in cuts(bytes(blob.data)):
            result, (error,) = run(pieces, blob.pieces)
            assert result == {0: b"first", 1: None, 2: b"third"}
            assert f"got sha256:{digest(blob.plain[1]).hex()}" in error
            assert f"expected 5000 bytes with sha256:{'00' * 32}" in error

    def test_a_piece_longer_than_its_stream(self):
        blob = self.blob()
        blob.piece(1, size=10_000)
        for pieces in cuts(bytes(blob.data)):
            result, (error,) = run(pieces, blob.pieces)
            assert result == {0: b"first", 1: None, 2: b"third"}
            assert "its stream ends after 5512 bytes" in error

    def test_a_piece_beyond_its_stream(self):
        blob = self.blob()
        blob.piece(1, inner_offset=10**9)
        result, (error,) = run([bytes(blob.data)], blob.pieces)
        assert result == {0: b"first", 1: None, 2: b"third"}
        assert "+1000000000" in error

    @pytest.mark.parametrize("junk", [b"\0" * 600, b"not gzip at all", b"\x1f\x8b\x08\0" * 50])
    def test_streams_that_are_not_gzip(self, junk):
        blob = Blob().stream(b"first")
        start = len(blob.data)
        blob.data += junk
        blob.pieces.append(Piece(1, start, len(blob.data), 0, 5, bytes(32)))
        blob.plain[1] = None
        blob.stream(b"third")
        for pieces in cuts(bytes(blob.data)):
            assert run(pieces, blob.pieces)[0] == blob.plain

    def test_zlib_is_not_gzip(self):
        data = zlib.compress(b"payload")
        wanted = [Piece(0, 0, len(data), 0, 7, digest(b"payload"))]
        assert run([data], wanted)[0] == {0: None}

    def test_junk_between_members(self):
        blob = Blob().stream(b"one", after=b"junk" * 10)
        blob.pieces.append(blob.pieces[0]._replace(key=1, inner_offset=3))
        result, (error,) = run([bytes(blob.data)], blob.pieces)
        assert result == {0: b"one", 1: None}
        assert "gzip data are damaged" in error

    def test_a_range_that_ends_early(self):
        blob = self.blob()
        result, errors = run([bytes(blob.data[:100])], blob.pieces)
        assert result == {0: b"first", 1: None, 2: None}
        assert any("range that was read ends before" in error for error in errors)
        assert run([], blob.pieces)[0] == {0: None, 1: None, 2: None}

    def test_a_range_that_starts_late(self):
        blob = self.blob()
        start = blob.pieces[1].blob_offset
        result, (error,) = run([bytes(blob.data[start:])], blob.pieces, start)
        assert result == {0: None, 1: blob.plain[1], 2: b"third"}
        assert "outside the range" in error

    @pytest.mark.parametrize("length", [0, -5])
    def test_streams_without_length(self, length):
        blob = self.blob()
        blob.piece(1, blob_end=blob.pieces[1].blob_offset + length)
        assert run([bytes(blob.data)], blob.pieces)[0] == {0: b"first", 1: None, 2: b"third"}

    def test_a_stream_that_claims_to_reach_into_the_next(self):
        blob = self.blob()
        blob.piece(0, blob_end=10**6)
        blob.piece(1, blob_end=10**6)
        for pieces in cuts(bytes(blob.data)):
            assert run(pieces, blob.pieces)[0] == blob.plain

    @pytest.mark.parametrize("size", [0, -1])
    def test_empty_pieces_are_refused(self, size):
        blob = self.blob()
        blob.piece(1, size=size)
        assert run([bytes(blob.data)], blob.pieces)[0] == {0: b"first", 1: None, 2: b"third"}


class TestOverlaps:
    def test_the_same_bytes_twice(self):
        blob = Blob().stream(b"a" * 100, b"b" * 100)
        blob.pieces.insert(1, blob.pieces[0]._replace(key=7))
        for pieces in cuts(bytes(blob.data)):
            result, _ = run(pieces, blob.pieces)
            assert result == {0: b"a" * 100, 7: b"a" * 100, 1: b"b" * 100}

    def test_the_same_bytes_with_another_digest(self):
        blob = Blob().stream(b"a" * 100, b"b" * 100)
        blob.pieces.insert(0, blob.pieces[0]._replace(key=7, digest=bytes(32)))
        for pieces in cuts(bytes(blob.data)):
            result, _ = run(pieces, blob.pieces)
            assert result == {0: b"a" * 100, 7: None, 1: b"b" * 100}

    @pytest.mark.parametrize(("inner", "size"), [(0, 150), (50, 20), (50, 100), (0, 10), (99, 2)])
    def test_others_are_refused_however_they_arrive(self, inner, size):
        blob = Blob().stream(b"a" * 100, b"b" * 100)
        plain = b"a" * 100 + b"b" * 100
        extra = Piece(7, 0, len(blob.data), inner, size, digest(plain[inner : inner + size]))
        wanted = [blob.pieces[0], extra, blob.pieces[1]]
        results = [run(pieces, wanted) for pieces in cuts(bytes(blob.data))]
        for result, errors in results:
            assert result[0] == b"a" * 100
            assert result[7] is None
            assert any("overlaps the chunk at 0" in error for error in errors)
            assert result == results[0][0]


class TestSpools:
    """Chunks beyond SPOOL_SIZE go through files, which their receivers close."""

    def run(self, pieces: Iterable[bytes], wanted: list[Piece]) -> tuple[Result, list[BinaryIO]]:
        opened: list[BinaryIO] = []

        def open_spool() -> BinaryIO:
            opened.append(TemporaryFile())  # noqa: SIM115 - the decoder's receiver closes it
            return opened[-1]

        decoder = RangeDecoder(wanted, 0, open_spool)
        decoded = coded.decode(decoder, *pieces)
        decoder.close()
        result: Result = {}
        for item in decoded:
            result[item.key] = item.data
            if item.spool is not None:
                assert item.data is None
                assert item.error is None
                item.spool.seek(0)
                result[item.key] = item.spool.read()
                item.spool.close()  # a second receiver of the same one would fail above
        assert all(spool.closed for spool in opened)
        return result, opened

    def blob(self) -> Blob:
        return Blob().stream(b"one").stream(512, noise(SPOOL_SIZE + 1), b"two").stream(b"three")

    def test_only_large_chunks(self):
        blob = self.blob()
        for pieces in cuts(bytes(blob.data)):
            result, opened = self.run(pieces, blob.pieces)
            assert result == blob.plain
            assert len(opened) == 1
        exact = Blob().stream(noise(SPOOL_SIZE))
        assert self.run([bytes(exact.data)], exact.pieces) == (exact.plain, [])

    def test_each_receiver_has_its_own(self):
        blob = self.blob()
        blob.pieces.insert(2, blob.pieces[1]._replace(key=7))
        blob.pieces.insert(1, blob.pieces[1]._replace(key=8, digest=bytes(32)))
        result, opened = self.run([bytes(blob.data)], blob.pieces)
        assert result == {**blob.plain, 7: blob.plain[1], 8: None}
        assert len(opened) == 2

    def test_what_is_not_handed_out_is_closed(self):
        blob = self.blob()
        blob.piece(1, digest=bytes(32))
        result, opened = self.run([bytes(blob.data)], blob.pieces)
        assert (result[1], len(opened)) == (None, 1)
        result, opened = self.run([bytes(blob.data[: 2 << 20])], self.blob().pieces)
        assert (result[1], len(opened)) == (None, 1)

    def test_a_decoder_that_is_given_up(self):
        blob = self.blob()
        with TemporaryFile() as spool:
            decoder = RangeDecoder(blob.pieces, 0, lambda: spool)
            decoder.feed(bytes(blob.data[: 2 << 20]), [])
            assert not spool.closed
            decoder.close()
            decoder.close()
            assert spool.closed


class TestCost:
    def peak(self, data: bytes, wanted: list[Piece]) -> int:
        pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
        tracemalloc.start()
        try:
            for item in coded.decode(RangeDecoder(wanted, 0), *pieces):
                assert item.error is None
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def test_skipping_takes_no_memory(self):
        blob = Blob().stream(100 << 20, b"wanted", level=1)
        assert self.peak(bytes(blob.data), blob.pieces) < 3 << 20

    def test_a_chunk_takes_its_own_size(self):
        blob = Blob().stream(noise(16 << 20), level=1)
        assert self.peak(bytes(blob.data), blob.pieces) < 22 << 20

    def test_a_bomb_yields_what_was_asked_for(self):
        blob = Blob().stream(b"wanted", 100 << 20, level=9)
        assert len(blob.data) < 200_000
        assert self.peak(bytes(blob.data), blob.pieces) < 3 << 20

    def test_what_is_complete_is_handed_over_at_once(self):
        """Many chunks in few bytes take the memory of one, if their receiver keeps none."""
        zeros = bytes(1 << 20)
        blob = Blob()
        for _ in range(40):
            blob.stream(zeros, level=9)
        blob.stream(*[zeros] * 40, level=9)
        assert len(blob.data) < 100_000

        class Counted:
            count = 0

            def append(self, item: Decoded) -> None:
                assert item.error is None
                self.count += 1

        counted = Counted()
        decoder = RangeDecoder(blob.pieces, 0)
        tracemalloc.start()
        try:
            decoder.feed(blob.data, counted)
            decoder.finish(counted)
            assert tracemalloc.get_traced_memory()[1] < 5 << 20
        finally:
            tracemalloc.stop()
        assert counted.count == 80

    def test_small_parts_take_no_more_than_their_bytes(self):
        """However the input is cut: an object for each part would take many times the chunk."""
        blob = Blob().stream(noise(200_000), level=0)
        wanted = blob.pieces
        data = bytes(blob.data)
        tracemalloc.start()
        try:
            decoder = RangeDecoder(wanted, 0)
            decoded: list[Decoded] = []
            for at in range(0, len(data), 3):
                decoder.feed(data[at : at + 3], decoded)
            decoder.finish(decoded)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert decoded[0].data == blob.plain[0]

    def test_a_flood_of_members(self):
        """Each empty member costs a copy of what follows; too many are refused."""
        data = gzip.compress(b"", mtime=0) * 200_000 + gzip.compress(b"x", mtime=0)
        wanted = [Piece(0, 0, len(data), 0, 1, digest(b"x"))]
        before = time.process_time()
        result, (error,) = run([data], wanted)
        assert time.process_time() - before < 1
        assert result == {0: None}
        assert f"more than {MAX_MEMBERS}" in error

    def test_many_tiny_chunks_in_one_stream(self):
        parts: list[bytes | int] = []
        for number in range(20_000):
            parts += [b"%d" % number, 512]
        blob = Blob().stream(*parts, level=1)
        data = bytes(blob.data)
        before = time.process_time()
        decoder = RangeDecoder(blob.pieces, 0)
        decoded = coded.decode(decoder, data)
        assert time.process_time() - before < 2
        assert {item.key: item.data for item in decoded} == blob.plain


@given(st.binary(max_size=300), st.lists(st.tuples(*[st.integers(0, 300)] * 4), max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_bytes_and_any_pieces(data, shapes):
    wanted = sorted(
        (
            Piece(key, offset, offset + length, inner, size, bytes(32))
            for key, (offset, length, inner, size) in enumerate(shapes)
        ),
        key=lambda piece: (piece.blob_offset, piece.inner_offset),
    )
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        result, _ = run(pieces, wanted)
        assert set(result.values()) <= {None}


@pytest.mark.parametrize("library", ["zlib", "isal"])
def test_both_libraries_agree(monkeypatch, library):
    """What the fallback decodes and refuses is what the fast library does."""
    if library == "isal":
        factory = pytest.importorskip("isal.isal_zlib").decompressobj
    else:
        factory = zlib.decompressobj
    for module in (decode, streams):
        monkeypatch.setattr(module, "open_member", lambda: factory(31))
    blob = Blob().stream(b"one", 600).stream(noise(3 * INFLATE_STEP), 512, b"two")
    blob.stream(512, b"three" * 100, members=3)
    for pieces in cuts(bytes(blob.data)):
        assert run(pieces, blob.pieces)[0] == blob.plain
    start = blob.pieces[1].blob_offset
    bent = bytes(blob.data[: start + 50]) + b"\xff" * 500 + bytes(blob.data[start + 550 :])
    result, _ = run([bent], blob.pieces)
    assert result[1] is None
    assert (result[0], result[3]) == (blob.plain[0], blob.plain[3])
