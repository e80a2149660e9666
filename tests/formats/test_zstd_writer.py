"""zstd:chunked layers by our writer: like skopeo's, read by our reader, a tar for everyone else."""

import base64
import io
import json
import struct
import tarfile
from itertools import groupby
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.digest import digest_of
from lazyfs.formats.layers import Format, LayerToc, find_layer_toc, read_layer_toc
from lazyfs.formats.streams.crc64 import Crc64
from lazyfs.formats.streams.unzstd import unzstd
from lazyfs.formats.tars.arrange import arrange
from lazyfs.formats.tars.tar import BadTar, HeaderText, TarMember, TarScanner
from lazyfs.formats.tars.verbatim import CannotKeep, Spelling, check_keepable
from lazyfs.formats.tocs.claims import claims_of
from lazyfs.formats.tocs.rawtoc import BadToc
from lazyfs.formats.tocs.toc import Kind, TocEntry
from lazyfs.formats.writer import Target, WriterOptions, write_layer, write_verbatim
from tests.support.formats.images import (
    FIXTURES,
    OCI_ZSTD,
    Layer,
    directory,
    file,
    hardlink,
    sha256,
    source_tar,
    symlink,
    tar_bytes,
)
from tests.support.formats.tarsplit import rebuild_tar

REFERENCE = FIXTURES / "zstdchunked-skopeo-1.18.0"
KEEPABLE = ("edge-nodup", "big", "empty", "real-gnu", "real-pax", "real-ustar")
PREFIX = "io.github.containers.zstd-chunked."


def scan(tar: bytes) -> tuple[list[TarMember], list[HeaderText]]:
    texts: list[HeaderText] = []
    scanner = TarScanner(texts=texts)
    members = scanner.feed(tar)
    scanner.finish()
    return members, texts


def written_as(tar: bytes, *, keep: bool = True, prioritized: tuple = (), **options: int) -> Layer:
    """Return *tar* as a layer by our writer, the tar kept or its members arranged."""
    members, texts = scan(tar)
    chosen = WriterOptions(target=Target.ZSTD_CHUNKED, **options)  # type: ignore[arg-type]
    blob = io.BytesIO()

    def read(member: TarMember) -> list[bytes]:
        return [tar[member.offset : member.offset + member.size]]

    if keep:
        check_keepable(members, texts)
        ends = [0, *(text.end + each.size for each, text in zip(members, texts, strict=True))]

        def spell(number: int) -> Spelling:
            return Spelling(tar[ends[number] : texts[number].end], texts[number])

        written = write_verbatim(members, spell, tar[ends[-1] :], read, blob.write, chosen)
    else:
        written = write_layer(arrange(members, prioritized), read, blob.write, chosen)
    assert written.digest == digest_of(blob.getvalue())
    assert written.size == len(blob.getvalue())
    return Layer(blob.getvalue(), OCI_ZSTD, written.annotations, written.diff_id)


def read(layer: Layer) -> tuple[LayerToc, bytes]:
    """Read a layer as a mount does; return its TOC and its tar-split document."""
    claims = claims_of(layer.annotations)
    place = find_layer_toc(layer.blob[-4096:], layer.size, claims)
    assert place.format is Format.ZSTD_CONTAINERS
    toc = read_layer_toc(layer.blob[place.start : place.end], place, claims)
    split = claims.tar_split
    assert split is not None
    frame = layer.blob[split.offset : split.end]
    assert toc.toc.tar_split_digest == claims.tar_split_checksum == digest_of(frame)
    return toc, unzstd(frame, split.raw_size, "tar-split")


def payload_of(layer: Layer, entry: TocEntry) -> bytes:
    """Return a file's bytes, each chunk from its frame alone, verified."""
    data = b""
    for chunk in entry.chunks:
        frame = zstandard.ZstdDecompressor().decompressobj()
        piece = frame.decompress(layer.blob[chunk.blob_offset :])
        assert len(piece) == chunk.size, "a frame holds a chunk and nothing else"
        assert digest_of(piece).raw == chunk.digest
        data += piece
    return data


def uncompressed(blob: bytes) -> bytes:
    """Return what every other tool gets out of a blob."""
    with zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True) as stream:
        return stream.read()


def lines_of(document: bytes) -> list[tuple]:
    """Return tar-split's lines, segments that follow each other joined."""
    lines = [json.loads(line) for line in document.splitlines()]
    assert [line["position"] for line in lines] == list(range(len(lines)))
    found: list[tuple] = []
    for kind, group in groupby(lines, key=lambda line: line["type"]):
        if kind == 2:
            found.append((2, b"".join(base64.b64decode(each["payload"]) for each in group)))
        else:
            found += [
                (1, each.get("name"), each.get("name_raw"), each.get("size"), each["payload"])
                for each in group
            ]
    return found


def told(entry: dict[str, Any]) -> dict[str, Any]:
    """Return what an entry says apart from where its bytes are and how they are cut."""
    left = {"offset", "endOffset", "chunkSize", "chunkOffset", "chunkDigest", "nameBytes"}
    return {key: value for key, value in entry.items() if key not in left}


# As the reference does


@pytest.mark.parametrize(
    "name", [name for name in KEEPABLE if (REFERENCE / f"{name}.json").exists()]
)
def test_it_says_what_skopeo_says(name: str):
    toc, split = read(written_as(source_tar(name)))
    ours = json.loads(toc.toc_bytes)
    theirs = json.loads((REFERENCE / f"{name}.toc.json").read_text())
    assert ours.keys() == theirs.keys()
    files = [
        [told(entry) for entry in document["entries"] or () if entry["type"] != "chunk"]
        for document in (ours, theirs)
    ]
    assert files[0] == files[1]
    frame = (REFERENCE / f"{name}.tar-split.json.zst").read_bytes()
    assert lines_of(split) == lines_of(unzstd(frame, 64 << 20, "tar-split"))


@pytest.mark.parametrize("name", KEEPABLE)
def test_the_tar_stays_bit_for_bit(name: str):
    tar = source_tar(name)
    layer = written_as(tar, chunk_size=4096)
    assert layer.diff_id == digest_of(tar)
    assert uncompressed(layer.blob) == tar
    toc, split = read(layer)
    assert rebuild_tar(split, toc.toc, lambda entry: payload_of(layer, entry)) == tar


@pytest.mark.parametrize("name", ["edge", "big", "empty"])
@pytest.mark.parametrize("chunk_size", [1000, 4 << 20])
def test_what_is_arranged_can_be_rebuilt_too(name: str, chunk_size: int):
    layer = written_as(source_tar(name), keep=False, chunk_size=chunk_size)
    toc, split = read(layer)
    rebuilt = rebuild_tar(split, toc.toc, lambda entry: payload_of(layer, entry))
    assert digest_of(rebuilt) == layer.diff_id
    assert rebuilt == uncompressed(layer.blob)
    assert all(entry.size <= chunk_size or len(entry.chunks) > 1 for entry in toc.toc.entries)


def test_the_footer_is_the_published_one():
    layer = written_as(tar_bytes([file("a", b"x")]))
    *numbers, magic = struct.unpack("<7Q8s", layer.blob[-64:])
    assert magic == b"GNUlInUx"
    assert layer.blob[-72:-64] == bytes.fromhex("502a4d1840000000")
    assert numbers[3] == 1
    frame = layer.blob[numbers[0] : numbers[0] + numbers[1]]
    assert layer.annotations == {
        f"{PREFIX}manifest-checksum": sha256(frame),
        f"{PREFIX}manifest-position": ":".join(map(str, numbers[:4])),
        f"{PREFIX}tarsplit-position": ":".join(map(str, numbers[4:])),
        f"{PREFIX}tarsplit-checksum": sha256(layer.blob[numbers[4] : numbers[4] + numbers[5]]),
    }


def test_where_payloads_end_is_said():
    layer = written_as(tar_bytes([file("a", b"x" * 5000), file("b")]), chunk_size=2000)
    first, second, third, empty = json.loads(read(layer)[0].toc_bytes)["entries"]
    assert [each["chunkSize"] for each in (first, second, third)] == [2000, 2000, 1000]
    end = zstandard.ZstdDecompressor().decompressobj()
    end.decompress(layer.blob[third["offset"] :])
    assert first["endOffset"] == layer.size - len(end.unused_data)
    assert not {"digest", "offset", "endOffset"} & set(empty)


def test_prioritised_files_come_first_and_landmarks_only_then():
    tar = tar_bytes([directory("d"), file("d/a", b"1"), file("d/b", b"2")])
    toc = read(written_as(tar, keep=False, prioritized=(b"d/b",)))[0].toc
    names = [entry.path for entry in toc.entries]
    assert names == [b"d", b"d/b", b".prefetch.landmark", b"d/a"]
    assert toc.prefetch_end == toc.entries[2].chunks[0].blob_offset
    toc = read(written_as(tar, keep=False))[0].toc
    assert [entry.path for entry in toc.entries] == [b"d", b"d/a", b"d/b"]
    assert toc.prefetch_end is None


def test_the_same_input_gives_the_same_bytes_however_it_arrives():
    data = bytes(range(256)) * 3000
    member = TarMember(b"f", Kind.REGULAR, size=len(data))
    blobs = []
    for step in (len(data), 1000, 70_001):
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        blob = io.BytesIO()
        write_layer(
            arrange([member]),
            lambda _, pieces=pieces: pieces,
            blob.write,
            WriterOptions(300_000, target=Target.ZSTD_CHUNKED),
        )
        blobs.append(blob.getvalue())
    assert blobs[0] == blobs[1] == blobs[2]


@pytest.mark.parametrize(
    "options",
    [{"level": 0}, {"level": 20}, {"min_chunk_size": 1}, {"is_toc_external": True}],
)
def test_options_have_bounds(options: dict[str, Any]):
    with pytest.raises(ValueError, match="writer options"):
        WriterOptions(target=Target.ZSTD_CHUNKED, **options)


# What can stay


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([file("a", b"1"), file("a", b"2")], "twice"),
        ([hardlink("b", "a"), file("a", b"1")], "does not come before it"),
        ([file("stargz.index.json", b"{}")], "is eStargz already"),
        ([file(".no.prefetch.landmark", b"\x0f")], "is eStargz already"),
    ],
)
def test_tars_that_cannot_stay_are_refused_by_name(items: list, message: str):
    with pytest.raises(CannotKeep, match=message):
        check_keepable(*scan(tar_bytes(items)))


def test_global_headers_cannot_stay():
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(CannotKeep, match="global"):
        check_keepable(*scan(buffer.getvalue()))


def test_names_and_modes_are_told_as_the_headers_spell_them():
    tar = tar_bytes([directory("./d"), file("./d/f", b"x", mode=0o100644), symlink("./s", "./d")])
    toc, _ = read(written_as(tar))
    entries = json.loads(toc.toc_bytes)["entries"]
    assert [entry["name"].rstrip("/") for entry in entries] == ["./d", "./d/f", "./s"]
    assert [entry.path for entry in toc.toc.entries] == [b"d", b"d/f", b"s"]
    assert toc.toc.entries[1].mode == 0o644


def test_access_times_are_told():
    member = tarfile.TarInfo("f")
    member.pax_headers = {"atime": "1700000000.5", "ctime": "1600000000"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    (entry,) = json.loads(read(written_as(buffer.getvalue()))[0].toc_bytes)["entries"]
    assert entry["accesstime"] == "2023-11-14T22:13:20.5Z"
    assert entry["changetime"] == "2020-09-13T12:26:40Z"


NAMES = st.sampled_from(["a", "b", "a/b", "./c", "\u00e9", "d" * 150, "stargz.index.json"])
ITEMS = st.one_of(
    st.builds(file, NAMES, st.binary(max_size=3000)),
    st.builds(directory, NAMES),
    st.builds(symlink, NAMES, NAMES),
    st.builds(hardlink, NAMES, NAMES),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ITEMS, max_size=6), st.sampled_from([100, 4096]))
def test_a_tar_stays_or_is_refused(items: list, chunk_size: int):
    tar = tar_bytes(items)
    try:
        layer = written_as(tar, chunk_size=chunk_size)
        toc, split = read(layer)
    except (BadTar, BadToc):
        return
    assert layer.diff_id == digest_of(tar)
    assert rebuild_tar(split, toc.toc, lambda entry: payload_of(layer, entry)) == tar


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_headers_are_refused_or_understood(data: st.DataObject):
    tar = bytearray(tar_bytes([file("a", b"x" * 600), symlink("s", "a"), hardlink("h", "a")]))
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    try:
        layer = written_as(bytes(tar))
    except BadTar:
        return
    assert uncompressed(layer.blob) == bytes(tar)


# The sum


def slow_sum(data: bytes) -> bytes:
    state = (1 << 64) - 1
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0xD800000000000000 if state & 1 else 0)
    return (state ^ ((1 << 64) - 1)).to_bytes(8, "big")


def test_the_published_sum():
    crc = Crc64()
    crc.update(b"123456789")
    assert crc.digest().hex() == "b90956c775a41001"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=700), max_size=4))
def test_sums_are_those_of_the_definition(pieces: list[bytes]):
    crc = Crc64()
    for piece in pieces:
        crc.update(piece)
    assert crc.digest() == slow_sum(b"".join(pieces))


def test_long_pieces_are_summed_piece_by_piece():
    data = bytes(range(251)) * 600  # 150 kB: beyond one integer
    crc = Crc64()
    crc.update(data)
    assert crc.digest() == slow_sum(data)
