"""The device layout and the layer table."""

import hashlib
import mmap
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.digest import Digest
from lazyfs.formats.layers import Format
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.rootfs.layout import (
    MAX_DEVICE_SIZE,
    NO_PAYLOAD,
    BadLayout,
    device_offsets,
    device_size,
)
from lazyfs.rootfs.table import BadTable, LayerTable, build_table

TOC_DIGEST = Digest("sha256", "11" * 32)


def toc_of(*entries: TocEntry) -> Toc:
    return Toc(TOC_DIGEST, entries)


def digest(seed: int) -> bytes:
    return hashlib.sha256(b"%d" % seed).digest()


def file_of(path: bytes, *chunks: tuple[int, int, int]) -> TocEntry:
    """A regular file with chunks (size, blob offset, inner offset)."""
    pieces = []
    offset = 0
    for size, blob_offset, inner_offset in chunks:
        pieces.append(Chunk(offset, size, blob_offset, inner_offset, digest(blob_offset)))
        offset += size
    return TocEntry(path, Kind.REGULAR, 0o644, 0, 0, size=offset, chunks=tuple(pieces))


DIRECTORY = TocEntry(b"d", Kind.DIRECTORY, 0o755, 0, 0)
EMPTY = TocEntry(b"d/empty", Kind.REGULAR, 0o644, 0, 0)
SAMPLE = toc_of(
    file_of(b".no.prefetch.landmark", (1, 10, 512)),
    DIRECTORY,
    file_of(b"d/a", (4096, 100, 0), (4096, 900, 0), (10, 1500, 0)),
    EMPTY,
    file_of(b"d/b", (5, 10, 2048)),
    file_of(b"d/a", (4097, 2000, 0)),  # replaces d/a above, which keeps its place
)


class TestLayout:
    def test_payloads_start_on_blocks_in_toc_order(self) -> None:
        assert device_offsets(SAMPLE) == [0, NO_PAYLOAD, 4096, NO_PAYLOAD, 16384, 20480]
        assert device_size(SAMPLE) == 28672

    def test_no_payload_no_device(self) -> None:
        assert device_size(toc_of(DIRECTORY, EMPTY)) == 0
        assert device_offsets(toc_of()) == []

    def test_too_large(self) -> None:
        # Block 0xFFFFFFFF is a hole to EROFS: no file may start there.
        assert MAX_DEVICE_SIZE == 0xFFFFFFFF * 4096
        fits = toc_of(file_of(b"a", (MAX_DEVICE_SIZE, 1, 0)))
        assert device_size(fits) == MAX_DEVICE_SIZE
        too_large = toc_of(file_of(b"a", (MAX_DEVICE_SIZE - 4095, 1, 0)), file_of(b"b", (1, 2, 0)))
        for function in (device_offsets, device_size):
            with pytest.raises(BadLayout, match="expected at most"):
                function(too_large)


class TestCodecs:
    def test_formats_and_codecs(self) -> None:
        for layer_format in (Format.ESTARGZ, Format.ZSTD_CONTAINERS):
            table = LayerTable(build_table(SAMPLE, 3000, layer_format))
            assert table.format is layer_format
            assert not table.holes
        entry = TocEntry(
            b"f",
            Kind.REGULAR,
            0o644,
            0,
            0,
            size=8292,
            chunks=(
                Chunk(0, 100, 50, 0, digest(1), Codec.ZSTD),
                Chunk(100, 4096, 0, 0, bytes(32), Codec.HOLE),
                Chunk(4196, 4096, 90, 0, digest(2), Codec.ZSTD),
            ),
        )
        hole = msgspec.structs.replace(
            entry, size=5, chunks=(Chunk(0, 5, 0, 0, bytes(32), Codec.HOLE),)
        )
        table = LayerTable(build_table(toc_of(hole, entry, hole), 200, Format.ZSTD_STARGZ))
        assert [table.codec(record) for record in range(5)] == [2, 1, 2, 1, 2]
        assert table.holes == {0, 2, 4}
        # Holes have no bytes, and stand where the chunk before them ends.
        places = [(table.blob_offset(each), table.blob_end(each)) for each in range(5)]
        assert places == [(0, 0), (50, 90), (90, 90), (90, 200), (200, 200)]
        assert table.by_blob() == range(5)
        assert table.payload_size == 8292 + 10
        assert list(table.covering(0, 20000)) == [0, 1, 2, 3, 4]

    def test_only_holes(self) -> None:
        hole = TocEntry(
            b"f", Kind.REGULAR, 0o644, 0, 0, size=5,
            chunks=(Chunk(0, 5, 0, 0, bytes(32), Codec.HOLE),),
        )  # fmt: skip
        table = LayerTable(build_table(toc_of(hole), 8, Format.ZSTD_STARGZ))
        assert (table.count, table.holes) == (1, {0})

    def test_an_unknown_format(self) -> None:
        table = bytearray(build_table(SAMPLE, 3000))
        table[57] = 200
        table[-32:] = hashlib.sha256(table[:-32]).digest()
        with pytest.raises(BadTable, match="format 200"):
            LayerTable(bytes(table))


class TestTable:
    def test_records(self) -> None:
        table = LayerTable(build_table(SAMPLE, 3000))
        assert (table.count, table.device_size, table.payload_end) == (6, 28672, 3000)
        rows = [
            (
                table.device_offset(i),
                table.size(i),
                table.blob_offset(i),
                table.inner_offset(i),
                table.blob_end(i),
                table.digest(i),
            )
            for i in range(table.count)
        ]
        assert rows == [
            (0, 1, 10, 512, 100, digest(10)),
            (4096, 4096, 100, 0, 900, digest(100)),
            (8192, 4096, 900, 0, 1500, digest(900)),
            (12288, 10, 1500, 0, 2000, digest(1500)),
            (16384, 5, 10, 2048, 100, digest(10)),
            (20480, 4097, 2000, 0, 3000, digest(2000)),
        ]
        assert list(table.by_blob()) == [0, 4, 1, 2, 3, 5]

    def test_exact_bytes(self) -> None:
        data = build_table(toc_of(file_of(b"a", (5, 0, 7))), 99)
        body = struct.pack("<8sIIQQQQQQ", b"LFSTABL1", 1, 80, 1, 4096, 99, 2**64 - 1, 5, 1)
        body += struct.pack("<QQQQQ32sB7x", 0, 5, 0, 7, 99, digest(0), 0)
        assert data == body + hashlib.sha256(body).digest()

    def test_empty(self) -> None:
        table = LayerTable(build_table(toc_of(DIRECTORY), 500))
        assert (table.count, table.device_size, table.payload_end) == (0, 0, 500)
        assert list(table.by_blob()) == []
        assert list(table.covering(0, 1 << 40)) == []

    def test_chunk_behind_the_payloads(self) -> None:
        with pytest.raises(BadLayout, match="got blob offset 2000, expected less than 2000"):
            build_table(SAMPLE, 2000)

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 1, [0]),
            (0, 0, []),
            (5, 4, []),
            (1, 4096, []),  # the gap behind a payload belongs to no chunk
            (1, 4097, [1]),
            (0, 8193, [0, 1, 2]),
            (8191, 8192, [1]),
            (8192, 12288, [2]),
            (12297, 12298, [3]),
            (12298, 16384, []),
            (20480, 1 << 62, [5]),
            (24577, 28672, []),
            (28672, 30000, []),
        ],
    )
    def test_covering(self, start: int, end: int, expected: list[int]) -> None:
        assert list(LayerTable(build_table(SAMPLE, 3000)).covering(start, end)) == expected

    def test_in_a_memory_map_that_can_be_closed(self, tmp_path: Path) -> None:
        path = tmp_path / "table"
        path.write_bytes(build_table(SAMPLE, 3000))
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            table = LayerTable(mapped)
            assert list(table.covering(0, 8193)) == [0, 1, 2]
            assert table.digest(5) == digest(2000)
            table.release()

    def test_a_bad_map_can_be_closed(self) -> None:
        with mmap.mmap(-1, 4096) as mapped:
            mapped[:] = bytes(4096)
            good = build_table(toc_of(), 0)
            mapped.resize(len(good))
            mapped[:] = good[:-1] + bytes([good[-1] ^ 1])
            with pytest.raises(BadTable, match="trailer"):
                LayerTable(mapped)


class TestBadTable:
    def test_truncated_at_each_offset(self) -> None:
        good = build_table(SAMPLE, 3000)
        for size in range(len(good)):
            with pytest.raises(BadTable):
                LayerTable(good[:size])

    def test_trailing_bytes(self) -> None:
        good = build_table(SAMPLE, 3000)
        for junk in (b"\0", bytes(80), good):
            with pytest.raises(BadTable):
                LayerTable(good + junk)

    def test_each_byte_flipped(self) -> None:
        good = build_table(SAMPLE, 3000)
        for position in range(len(good)):
            bad = bytearray(good)
            bad[position] ^= 0x80
            with pytest.raises(BadTable):
                LayerTable(bad)

    @given(st.binary(max_size=300))
    def test_random(self, data: bytes) -> None:
        with pytest.raises(BadTable):
            LayerTable(data)

    def test_another_layout_version(self) -> None:
        body = bytearray(build_table(SAMPLE, 3000)[:-32])
        body[8] = 2
        with pytest.raises(BadTable, match=r"got layout 2 .* expected 1"):
            LayerTable(bytes(body) + hashlib.sha256(body).digest())


@given(
    st.lists(
        st.lists(st.integers(1, 20_000), max_size=4).map(tuple),
        max_size=12,
    ),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
)
def test_covering_equals_a_plain_search(sizes: list[tuple[int, ...]], one: int, other: int) -> None:
    position = 0
    entries = []
    for number, file_sizes in enumerate(sizes):
        chunks = []
        for size in file_sizes:
            chunks.append((size, position, 0))
            position += 1
        entries.append(file_of(b"f%d" % number, *chunks))
    toc = toc_of(*entries)
    table = LayerTable(build_table(toc, position + 1))
    assert table.device_size == device_size(toc)
    start, end = min(one, other), max(one, other)
    overlap = [
        i
        for i in range(table.count)
        if table.device_offset(i) < end and table.device_offset(i) + table.size(i) > start
    ]
    assert list(table.covering(start, end)) == (overlap if start < end else [])
