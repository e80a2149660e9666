"""Sparse files: what tars of every format say of them is what a mount and a conversion have."""

import io
import random
import struct
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lazyfs.convert import spool
from lazyfs.convert.spool import rewrite_layer, unpack_layer
from lazyfs.digest import digest_of
from lazyfs.errors import FormatError
from lazyfs.formats.layer_pass import LayerPass, PassedLayer
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tars import comparison
from lazyfs.formats.tars.arrange import arrange
from lazyfs.formats.tars.comparison import Comparison, Disagreement
from lazyfs.formats.tars.tar import BadTar, TarScanner
from lazyfs.formats.tars.tar_sparse import MAX_MAP_SIZE
from lazyfs.formats.tars.verbatim import CannotKeep, check_keepable
from lazyfs.formats.tocs.toc import Chunk, Toc
from lazyfs.formats.writer import WriterOptions
from lazyfs.rootfs.erofs_writer import build_index
from tests.support.formats.images import file, source_tar, tar_bytes
from tools.differential.headers import Header, built, extended, padded
from tools.differential.sparse import FORMATS, old_sparse, pax_sparse

PIECES = [(0, 700), (1000, 0), (4096, 512), (4608, 88), (70_000, 3000)]
SIZE = 90_001
STORED = random.Random(1).randbytes(sum(size for _, size in PIECES))


def expected() -> bytes:
    content, at = bytearray(SIZE), 0
    for offset, size in PIECES:
        content[offset : offset + size] = STORED[at : at + size]
        at += size
    return bytes(content)


def sparse(
    format_: str, *, pieces: list[tuple[int, int]] = PIECES, size: int = SIZE, data: bytes = STORED
) -> bytes:
    make = old_sparse if format_ == "old" else None
    if make is not None:
        return make(random.Random(0), b"f", pieces, size, data)
    return pax_sparse(random.Random(0), format_, b"f", pieces, size, data)


def passed(tar: bytes, **options: int) -> tuple[PassedLayer, bytes]:
    device = io.BytesIO()

    def write(offset: int, data: bytes | memoryview) -> None:
        device.seek(offset)
        device.write(data)

    passing = LayerPass(write, **options)
    for at in range(0, len(tar), 333):
        passing.feed(tar[at : at + 333])
    return passing.finish(), device.getvalue()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("chunk_size", [100, 4 << 20])
def test_a_pass_has_the_pieces_where_they_belong(format_: str, chunk_size: int):
    next_ = built(Header(b"next", size=4)) + padded(b"more")
    layer, device = passed(sparse(format_) + next_, chunk_size=chunk_size)
    entry, other = layer.toc.entries
    assert (entry.path, entry.size, other.size, layer.moves) == (b"f", SIZE, 4, None)
    assert device[:SIZE].ljust(SIZE, b"\0") == expected()
    assert device[90_112:] == b"more"
    for chunk in entry.chunks:
        content = expected()[chunk.offset : chunk.offset + chunk.size]
        if chunk.codec == Codec.HOLE:
            assert content == bytes(chunk.size)
        else:
            assert digest_of(content).hex == chunk.digest.hex()
    holes = [(each.offset, each.size) for each in entry.chunks if each.codec == Codec.HOLE]
    assert holes == [(700, 3396), (4696, 65_304), (73_000, 17_001)]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(("pieces", "size"), [([], 5000), ([], 0), ([(0, 0)], 1), ([(0, 9)], 9)])
def test_files_of_nothing_but_zeros_or_without_any(
    format_: str, pieces: list[tuple[int, int]], size: int
):
    if format_ == "0.1 without version" and not pieces:
        return  # which nothing would tell from a plain file
    layer, device = passed(
        sparse(format_, pieces=pieces, size=size, data=STORED[: 9 * (size == 9)])
    )
    (entry,) = layer.toc.entries
    assert entry.size == size == sum(chunk.size for chunk in entry.chunks)
    assert device == (STORED[:9] if size == 9 else b"")
    build_index([layer.toc], root_xattrs={}, device_tags=[""])


def test_zeros_stay_zeros_where_payloads_move():
    """The first file's bytes lie where the second's device is, and no piece of it is written."""
    replaced = tar_bytes([file("f", b"x" * 5000)]).rstrip(b"\0")
    replaced = padded(replaced)
    layer, _ = passed(replaced + sparse("1.0", pieces=[], size=5000, data=b""))
    assert layer.moves == ()
    layer, _ = passed(replaced + sparse("1.0"))
    assert layer.moves is not None
    assert sum(move.size for move in layer.moves) == len(STORED)


def in_trio(run, *arguments):  # type: ignore[no-untyped-def]
    return trio.run(trio.to_thread.run_sync, run, *arguments)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_conversion_writes_the_zeros(tmp_path: Path, format_: str):
    tar = sparse(format_)
    (tmp_path / "blob").write_bytes(tar)

    def convert() -> None:
        unpacked = unpack_layer(tmp_path / "blob", tmp_path / "tar", digest_of(tar))
        with pytest.raises(CannotKeep, match="sparse"):
            check_keepable(unpacked.members, unpacked.texts)
        arrangement = arrange(unpacked.members)
        written = rewrite_layer(unpacked.tar, arrangement, tmp_path / "result", WriterOptions())
        assert f'"digest": "{digest_of(expected())}"'.encode() in written.toc

    in_trio(convert)


def test_a_conversion_does_not_write_zeros_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spool, "MAX_ZEROS", SIZE - len(STORED) - 1)
    tar = sparse("1.0")
    (tmp_path / "blob").write_bytes(tar)

    def convert() -> None:
        unpacked = unpack_layer(tmp_path / "blob", tmp_path / "tar", digest_of(tar))
        with pytest.raises(BadTar, match="bytes of zeros"):
            rewrite_layer(unpacked.tar, arrange(unpacked.members), tmp_path / "r", WriterOptions())

    in_trio(convert)


# What contradicts itself


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("pieces", "size", "data"),
    [
        ([(0, 10), (5, 10)], 100, STORED[:20]),  # overlap
        ([(50, 10), (5, 10)], 100, STORED[:20]),  # out of order
        ([(95, 10)], 100, STORED[:10]),  # beyond the end
        ([(0, 10)], 100, STORED[:11]),  # more than the map has
        ([(0, 10)], 100, STORED[:9]),
        ([(2**63 - 5, 10)], 2**62, STORED[:10]),
    ],
)
def test_maps_that_cannot_be_are_refused(
    format_: str, pieces: list[tuple[int, int]], size: int, data: bytes
):
    if format_ == "old" and size > 100:
        return  # eleven digits hold no such number
    with pytest.raises(FormatError, match="sparse"):
        passed(sparse(format_, pieces=pieces, size=size, data=data))


def test_only_files_are_sparse():
    records = [(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.numblocks", b"1")]
    for flag in (b"1", b"2", b"5"):
        with pytest.raises(BadTar, match="sparse"):
            passed(extended(records) + built(Header(b"a", flag, link=b"l")))


def test_an_unknown_version_is_a_plain_file():
    records = [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"n")]
    layer, _ = passed(extended(records) + built(Header(b"a", size=3)) + padded(b"abc"))
    assert [(entry.path, entry.size) for entry in layer.toc.entries] == [(b"a", 3)]


def test_a_map_that_never_ends_is_refused():
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
    size = 2 * MAX_MAP_SIZE
    tar = extended(records) + built(Header(b"a", size=size)) + b"1" * size
    scanner = TarScanner()
    with pytest.raises(BadTar, match="sparse map"):
        scanner.feed(tar)
    assert scanner._position <= MAX_MAP_SIZE + 4096


def test_a_file_of_many_pieces_takes_its_room_in_a_toc():
    """A piece of a few bytes of a tar would be 1024 of a table of contents."""
    pieces = b",".join(b"%d,1" % (2 * number) for number in range(70_000))
    records = [(b"GNU.sparse.numblocks", b"70000"), (b"GNU.sparse.map", pieces)]
    member = extended([*records, (b"GNU.sparse.size", b"140000")]) + built(
        Header(b"a", size=70_000)
    )
    with pytest.raises(BadTar, match="more than"):
        TarScanner().feed(10 * (member + padded(bytes(70_000))))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 10**6), st.binary(max_size=3))
def test_damage_never_surprises(format_: str, at: int, junk: bytes):
    tar = bytearray(sparse(format_))
    place = at % (len(tar) - len(STORED))
    tar[place : place + len(junk)] = junk
    try:
        passed(bytes(tar))
    except FormatError:
        pass


def test_a_hole_has_no_digest_of_its_own():
    """The provenance table tells a file's digest, where it is known."""
    layer, _ = passed(sparse("1.0", pieces=[], size=5000, data=b""))
    built_index = build_index([layer.toc], root_xattrs={}, device_tags=[""])
    (record,) = struct.iter_unpack("<IHH32s", built_index.provenance[32:-32])
    assert record[2:] == (0, bytes(32))


def test_other_sources_have_none():
    scanner = TarScanner()
    assert all(member.pieces is None for member in scanner.feed(source_tar("edge")))


# Beside a TOC


def toc_of(tar: bytes, chunk_size: int, *, has_holes: bool) -> Toc:
    """Return what a TOC says of a sparse tar: its zeros are holes, or bytes like others."""
    toc = passed(tar, chunk_size=chunk_size)[0].toc
    if has_holes:
        return toc
    plain = passed(tar_bytes([file("f", expected())]), chunk_size=chunk_size)[0].toc.entries[0]
    first, *others = toc.entries
    return replace(toc, entries=(replace(first, chunks=plain.chunks), *others))


def compared(tar: bytes, toc: Toc, step: int = 333) -> Disagreement | None:
    comparing = Comparison(toc)
    for at in range(0, len(tar), step):
        comparing.feed(tar[at : at + step])
    return comparing.finish()


def other_toc(toc: Toc, number: int, **fields: object) -> Toc:
    """Return *toc* with a chunk of its first file changed."""
    first, *others = toc.entries
    chunks = list(first.chunks)
    chunks[number] = replace(chunks[number], **fields)
    return replace(toc, entries=(replace(first, chunks=tuple(chunks)), *others))


def with_chunks(toc: Toc, *chunks: Chunk) -> Toc:
    """Return a TOC of one file with other chunks."""
    (entry,) = toc.entries
    return replace(toc, entries=(replace(entry, chunks=chunks),))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("chunk_size", [1000, 4096, 4 << 20])
@pytest.mark.parametrize("has_holes", [True, False])
def test_a_sparse_file_equals_what_an_honest_toc_says(
    format_: str, chunk_size: int, has_holes: bool
):
    tar = sparse(format_) + tar_bytes([file("next", b"more")])
    toc = toc_of(tar, chunk_size, has_holes=has_holes)
    for step in (1, 333, 512, len(tar)):
        assert compared(tar, toc, step) is None


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("has_holes", [True, False])
def test_no_byte_or_hole_of_a_sparse_file_may_be_another_one(format_: str, has_holes: bool):
    tar = sparse(format_)
    toc = toc_of(tar, 4096, has_holes=has_holes)
    chunks = toc.entries[0].chunks
    for number, chunk in enumerate(chunks):
        if chunk.codec != Codec.HOLE:
            lie = other_toc(toc, number, digest=bytes(32))
            found = compared(tar, lie)
            assert found is not None
            end = chunk.offset + chunk.size
            assert f"bytes {chunk.offset} to {end} differ between the tar and the TOC" in str(found)
        stored = expected()[chunk.offset : chunk.offset + chunk.size]
        if stored.strip(b"\0"):
            assert compared(tar, other_toc(toc, number, codec=Codec.HOLE)) is not None


@pytest.mark.parametrize("format_", ["0.0", "1.0", "old"])
def test_pieces_in_other_places_are_another_file(format_: str):
    moved = [*PIECES[:-1], (70_001, 3000)]
    toc = toc_of(sparse(format_), 4096, has_holes=True)
    plain = toc_of(sparse(format_), 4096, has_holes=False)
    assert compared(sparse(format_, pieces=moved), toc) is not None
    assert compared(sparse(format_, pieces=moved), plain) is not None


@pytest.mark.parametrize("format_", ["0.0", "1.0", "old"])
def test_files_of_nothing_but_zeros_are_compared(format_: str):
    tar = sparse(format_, pieces=[], size=100_000, data=b"")
    honest = passed(tar)[0].toc
    assert compared(tar, honest) is None
    assert compared(tar, honest, 512) is None
    (entry,) = honest.entries
    (hole,) = entry.chunks
    zeros = replace(hole, codec=Codec.GZIP, digest=bytes.fromhex(digest_of(bytes(100_000)).hex))
    assert compared(tar, with_chunks(honest, zeros)) is None
    assert compared(tar, with_chunks(honest, replace(zeros, digest=bytes(32))))
    some = passed(tar_bytes([file("f", b"x" * 100_000)]))[0].toc.entries[0].chunks
    assert compared(tar, with_chunks(honest, *some)) is not None


def test_what_follows_files_of_nothing_but_zeros_is_compared():
    zeros = sparse("old", pieces=[], size=100_000, data=b"")
    tar = zeros + tar_bytes([file("next", b"more")])
    toc = passed(tar)[0].toc
    assert compared(tar, toc) is None
    found = compared(zeros + tar_bytes([file("next", b"mora")]), toc)
    assert "'next'" in str(found)


def test_zeros_that_a_map_asks_for_have_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparison, "MAX_ZEROS", SIZE)
    tar = sparse("old")
    assert compared(tar, toc_of(tar, 4096, has_holes=False)) is None
    monkeypatch.setattr(comparison, "MAX_ZEROS", 50_000)
    assert compared(tar, toc_of(tar, 4096, has_holes=True)) is None  # which costs nothing
    with pytest.raises(BadTar, match="more than 50000 bytes of zeros"):
        compared(tar, toc_of(tar, 4096, has_holes=False))
