"""Layers by our writer: accepted by the format's rules, by our reader, and by everyone's tar."""

import gzip
import io
import json
import os
import random
import re
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.digest import digest_of, parse_digest
from lazyfs.formats.decode import RangeDecoder
from lazyfs.formats.estargz import TAIL_SIZE, find_toc, read_toc
from lazyfs.formats.estargz import Layer as ReadLayer
from lazyfs.formats.tars.arrange import Arrangement, arrange
from lazyfs.formats.tars.tar import MAX_SECONDS, BadTar, TarMember, TarScanner
from lazyfs.formats.tars.toc_json import build_modtime
from lazyfs.formats.tocs.claims import toc_digest_of
from lazyfs.formats.tocs.modtime import parse_modtime
from lazyfs.formats.tocs.paths import is_bare_whiteout
from lazyfs.formats.tocs.toc import Kind
from lazyfs.formats.writer import WriterOptions, WrittenLayer, write_layer
from tests.support.formats.coded import decode
from tests.support.formats.estargz import contents_of, files_of, pieces_of
from tests.support.formats.images import (
    Layer,
    char_device,
    directory,
    estargz_layer,
    fifo,
    file,
    hardlink,
    layer_from_fixture,
    members,
    sha256,
    source_tar,
    symlink,
    tar_bytes,
)

SOURCES = ("edge", "edge-nodup", "big", "empty", "real-gnu", "real-pax", "real-ustar")
SHAPES = (
    {},
    {"chunk_size": 4096},
    {"chunk_size": 1000},
    {"chunk_size": 8192, "min_chunk_size": 20_000},
    {"min_chunk_size": 1 << 30},
)
LANDMARK_DIGEST = "sha256:dc0e9c3658a1a3ed1ec94274d8b19925c93e1abb7ddba294923ad9bde30f8cb8"
EMPTY_DIGEST = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
LANDMARKS = (".prefetch.landmark", ".no.prefetch.landmark")
# The published vector for a TOC at 0x1a2b3c, around the digits.
FOOTER_RE = re.compile(
    bytes.fromhex("1f8b08040000000000ff1a0053471600")
    + rb"([0-9a-f]{16})STARGZ"
    + bytes.fromhex("010000ffff0000000000000000")
)
TYPES = {"reg", "dir", "symlink", "hardlink", "char", "block", "fifo", "chunk"}


# The format's rules, with nothing but the standard library


def check_layer(layer: Layer, *, chunk_size: int = 4 << 20) -> list[dict]:
    """Check a layer as strictly as the format can be read; return its entries."""
    blob = layer.blob
    footer = FOOTER_RE.fullmatch(blob[-51:])
    assert footer is not None
    toc_offset = int(footer[1], 16)
    streams = dict(members(blob))
    assert list(streams)[-2:] == [toc_offset, len(blob) - 51]
    assert streams[len(blob) - 51] == b""
    for offset in streams:
        # no time, no name, no extra, no trace of the machine
        if offset != len(blob) - 51:
            assert blob[offset : offset + 10] == bytes.fromhex("1f8b08000000000000ff")

    with tarfile.open(fileobj=io.BytesIO(streams[toc_offset])) as archive:
        (only,) = archive.getmembers()
        assert only.name == "stargz.index.json"
        assert only.isreg()
        toc = archive.extractfile(only).read()
    assert streams[toc_offset][:512].startswith(b"stargz.index.json\0")
    assert streams[toc_offset].endswith(bytes(1024))
    assert layer.annotations["containerd.io/snapshot/stargz/toc.digest"] == sha256(toc)

    tar = b"".join(streams.values())
    assert layer.annotations["io.containers.estargz.uncompressed-size"] == str(len(tar))
    assert layer.diff_id == digest_of(tar)
    assert b"".join(list(streams.values())[:-2])[-1024:] != bytes(1024), "the tar ends too early"

    document = json.loads(toc)
    assert list(document) == ["version", "entries"]
    assert document["version"] == 1
    entries = document["entries"]
    check_parts(entries, streams, toc_offset, chunk_size)
    check_landmarks(entries)
    return entries


def check_parts(entries: list[dict], streams: dict[int, bytes], end: int, chunk_size: int) -> None:
    owner: dict = {}
    content = b""
    last = (0, 0)
    for entry in [*entries, {"name": "", "type": "reg"}]:
        assert entry["type"] in TYPES
        if entry["type"] != "chunk":
            if owner.get("type") == "reg":
                assert len(content) == owner.get("size", 0)
                assert sha256(content) == owner["digest"]
            owner, content = entry, b""
            if not entry.get("size"):
                assert not {"offset", "chunkSize", "chunkDigest"} & set(entry)
                continue
        assert owner["type"] == "reg"
        assert entry["name"] == owner["name"]
        assert entry.get("chunkOffset", 0) == len(content)
        place = (entry.get("offset", 0), entry.get("innerOffset", 0))
        assert place[0] < end
        assert place > last or place == last == (0, 0)
        last = place
        left = owner["size"] - len(content)
        assert entry.get("chunkSize", 0) == (chunk_size if left >= chunk_size else 0)
        stream = streams[place[0]]  # the offset is where a member starts
        part = stream[place[1] : place[1] + min(left, chunk_size)]
        assert sha256(part) == entry["chunkDigest"]
        content += part


def check_landmarks(entries: list[dict]) -> None:
    (place,) = (n for n, entry in enumerate(entries) if entry["name"] in LANDMARKS)
    entry = entries[place]
    assert (entry["size"], entry["digest"]) == (1, LANDMARK_DIGEST)
    assert "innerOffset" not in entry
    assert (entry["name"] == ".no.prefetch.landmark") == (place == 0)


def read(layer: Layer) -> ReadLayer:
    """Read a layer with our own reader, as a mount does."""
    place = find_toc(layer.blob[-TAIL_SIZE:], layer.size)
    return read_toc(
        layer.blob[place.start : place.end],
        expected=toc_digest_of(layer.annotations),
        blob_size=layer.size,
    )


def contents(layer: Layer) -> dict[bytes, bytes]:
    """Return all files, decoded and verified as a mount does."""
    found = read(layer)
    pieces, chunks = pieces_of(found.toc, found.payload_end)
    decoder = RangeDecoder(pieces, 0)
    decoded = decode(decoder, layer.blob[: found.payload_end])
    files = files_of(decoded, chunks)
    return files | {
        entry.path: b""
        for entry in found.toc.entries
        if entry.kind is Kind.REGULAR and not entry.size
    }


def scan(tar: bytes) -> list[TarMember]:
    scanner = TarScanner()
    found = scanner.feed(tar)
    scanner.finish()
    return found


def expected_entries(tar: bytes) -> list[tuple]:
    """Return what the entries of a layer must say, from the source tar alone."""
    return [
        (
            member.path,
            member.kind,
            member.mode,
            member.uid,
            member.gid,
            member.size,
            member.mtime_seconds,
            member.mtime_nanoseconds,
            member.link,
            member.dev_major,
            member.dev_minor,
            member.xattrs,
        )
        for member in arrange(scan(tar)).members
    ]


def found_entries(layer: Layer) -> list[tuple]:
    return [
        (
            entry.path,
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.mtime_seconds,
            entry.mtime_nanoseconds,
            entry.link,
            entry.dev_major,
            entry.dev_minor,
            entry.xattrs,
        )
        for entry in read(layer).toc.entries
        if entry.path.decode("utf-8", "replace") not in LANDMARKS
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_sources_become_layers_by_the_rules(name: str, shape: dict[str, int]):
    tar = source_tar(name)
    if name == "big" and shape.get("chunk_size", 4 << 20) < 4096:
        shape = {"chunk_size": 300_000}
    layer = estargz_layer(tar, **shape)
    check_layer(layer, chunk_size=shape.get("chunk_size", 4 << 20))
    assert found_entries(layer) == expected_entries(tar)
    files = contents(layer)
    for landmark in LANDMARKS:
        files.pop(landmark.encode(), None)
    assert files == contents_of(tar)


def test_prioritised_files_come_before_the_landmark():
    tar = source_tar("edge")
    wanted = ["sl/rel", "dir/small.txt", "modes/suid"]
    for shape in ({}, {"min_chunk_size": 1 << 20}):
        layer = estargz_layer(tar, prioritized=wanted, **shape)
        entries = check_layer(layer)
        names = [entry["name"] for entry in entries]
        place = names.index(".prefetch.landmark")
        first = ["sl/", "sl/rel", "dir/", "dir/small.txt", "modes/", "modes/suid"]
        assert names[:place] == first
        toc = read(layer).toc
        assert toc.prefetch_end == entries[place]["offset"]
        assert sorted(found_entries(layer)) == sorted(expected_entries(tar))
        if shape:
            # the first stream starts at 0, which is left out
            assert entries[3]["innerOffset"] > 0
            assert "offset" not in entries[3]
            assert "offset" not in entries[5]


def test_without_prioritised_files_nothing_is_advised():
    layer = estargz_layer(tar_bytes([file("a", b"x")]))
    assert read(layer).toc.prefetch_end == 0


def test_small_files_share_streams():
    tar = tar_bytes([file(f"f{number}", os.urandom(500)) for number in range(100)])
    alone = estargz_layer(tar)
    shared = estargz_layer(tar, min_chunk_size=10_000)
    # TOC, footer, the landmark's stream and the one before it, in both
    assert len(members(alone.blob)) == 100 + 4
    assert len(members(shared.blob)) < 12 + 4
    assert shared.size < alone.size
    for offset, data in members(shared.blob)[2:-3]:
        assert len(data) >= 10_000, offset


# Against the official producers


@pytest.mark.parametrize(
    ("fixture", "source", "options"),
    [
        ("edge-default", "edge", {}),
        ("edge-esgz14", "edge", {}),
        ("edge-chunk4k", "edge", {"chunk_size": 4096}),
        ("edge-chunk1000", "edge", {"chunk_size": 1000}),
        ("edge-prio", "edge", {"prioritized": ["dir/text64k.txt", "hl/link1", "sl/rel"]}),
        ("edge-prio-missing", "edge", {"prioritized": ["dir/dup-a", "no/such/file"]}),
        ("edge-minchunk", "edge", {"chunk_size": 8192}),
        ("big-default", "big", {}),
        ("big-chunk1m", "big", {"chunk_size": 1 << 20}),
        ("real-gnu", "real-gnu", {}),
        ("real-ustar-level1", "real-ustar", {"level": 1}),
        ("real-from-targz", "real-pax", {"chunk_size": 32_768}),
        ("empty", "empty", {}),
    ],
)
def test_entries_are_those_of_the_official_producer(fixture: str, source: str, options: dict):
    ours = toc_of(estargz_layer(source_tar(source), **options))
    theirs = toc_of(layer_from_fixture(fixture))
    if fixture == "edge-chunk1000":
        assert len(ours) > 150
    assert [described(entry) for entry in ours] == [described(entry) for entry in theirs]


def toc_of(layer: Layer) -> list[dict]:
    place = find_toc(layer.blob[-TAIL_SIZE:], layer.size)
    tar = zlib.decompressobj(31).decompress(layer.blob[place.start : place.end])
    return json.loads(tar[512 : 512 + int(tar[124:135], 8)])["entries"]


def described(entry: dict) -> dict:
    """Return an entry without what may differ: where it lies, and what we say more precisely."""
    same = {
        key: value
        for key, value in entry.items()
        if key not in ("offset", "innerOffset", "userName", "groupName", "nameBytes")
    }
    same["modtime"] = re.sub(r"\.\d+Z$", "Z", entry.get("modtime", "1970-01-01T00:00:00Z"))
    if entry["name"] == "hl/link2":
        same["linkName"] = "hl/target"  # theirs is the chain
    return same


def test_every_owner_has_its_name_once():
    entries = toc_of(estargz_layer(source_tar("edge")))
    users = [(e.get("uid", 0), e["userName"]) for e in entries if "userName" in e]
    groups = [(e.get("gid", 0), e["groupName"]) for e in entries if "groupName" in e]
    assert users[0] == groups[0] == (0, "root")
    assert len(users) == len(set(users))
    assert len(groups) == len(set(groups))


# For everyone else it is a layer as any other


@pytest.mark.parametrize("name", SOURCES)
def test_tarfile_reads_the_same_tree(name: str):
    tar = source_tar(name)
    layer = estargz_layer(tar, chunk_size=4096 if name != "big" else 4 << 20)
    assert tree(gzip.decompress(layer.blob), added=True) == tree(tar)


def tree(tar: bytes, *, added: bool = False) -> dict[str, tuple]:
    """Return what tarfile reads, the last of each name; *added* drops what the format adds."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        for member in archive:
            link = member.linkname
            if member.islnk() and found[link][0] == tarfile.LNKTYPE:
                link = found[link][6]
            payload = archive.extractfile(member).read() if member.isreg() else b""
            attributes = {k: v for k, v in member.pax_headers.items() if k.startswith("SCHILY")}
            found[member.name] = (
                tarfile.REGTYPE if member.isreg() else member.type,
                member.mode,
                member.uid,
                member.gid,
                member.mtime,
                (member.devmajor, member.devminor) if member.isdev() else (0, 0),
                link,
                payload,
                attributes,
                member.uname,
                member.gname,
            )
    if added:
        for name in ("stargz.index.json", ".no.prefetch.landmark"):
            del found[name]
    return found


@pytest.mark.parametrize("name", ["edge", "real-pax"])
def test_gnu_tar_lists_the_same(name: str, tmp_path: Path):
    tar = source_tar(name)
    (tmp_path / "source.tar").write_bytes(tar)
    (tmp_path / "layer.tar.gz").write_bytes(estargz_layer(tar).blob)
    subprocess.run(["gzip", "-t", tmp_path / "layer.tar.gz"], check=True, timeout=30)
    theirs = listing(tmp_path / "source.tar")
    ours = listing(tmp_path / "layer.tar.gz")
    added = [line for line in ours if line.endswith((".landmark", "stargz.index.json"))]
    assert len(added) == 2
    if name == "edge":
        # listed twice in the source; and a link to a link
        theirs = [
            line for line in theirs if not (line.endswith(" dir/small.txt") and "100" in line)
        ]
        theirs = [line.replace("link to hl/link1", "link to hl/target") for line in theirs]
    assert sorted(set(ours) - set(added)) == sorted(theirs)


def listing(path: Path) -> list[str]:
    arguments = [
        "tar",
        "--list",
        "--verbose",
        "--numeric-owner",
        "--full-time",
        "--utc",
        "-f",
        path,
    ]
    environment = {"LC_ALL": "C", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        arguments, check=True, capture_output=True, text=True, timeout=30, env=environment
    )
    return [re.sub(r" +", " ", line) for line in done.stdout.splitlines()]


# Reproducible


def write(arrangement: Arrangement, tar: bytes, piece_size: int, **options: int) -> bytes:
    def payload(member: TarMember) -> Iterator[bytes]:
        for at in range(member.offset, member.offset + member.size, piece_size):
            yield tar[at : min(at + piece_size, member.offset + member.size)]

    blob = io.BytesIO()
    write_layer(arrangement, payload, blob.write, WriterOptions(**options))
    return blob.getvalue()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_how_payloads_are_cut_changes_nothing(shape: dict[str, int]):
    tar = source_tar("edge")
    arrangement = arrange(scan(tar))
    first = write(arrangement, tar, 1 << 20, **shape)
    for piece_size in (1 << 20, 4096, 1000, 17):
        assert write(arrangement, tar, piece_size, **shape) == first


def test_the_order_of_xattrs_and_the_dialect_of_the_source_change_nothing():
    names = [f"user.{letter}" for letter in "abcdef"]
    one = {name: name.encode() for name in names}
    other = {name: name.encode() for name in reversed(names)}
    assert list(one) != list(other)
    first = estargz_layer(tar_bytes([file("a", b"x", xattrs=one)]))
    assert estargz_layer(tar_bytes([file("./a", b"x", xattrs=other)])).blob == first.blob
    items = [directory("d"), file("d/" + "n" * 150, b"x"), symlink("s", "t" * 120)]
    blobs = {
        estargz_layer(tar_bytes(items, format=format)).blob
        for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    }
    assert len(blobs) == 1


def test_a_layer_converted_again_is_the_same():
    layer = estargz_layer(source_tar("edge"))
    assert estargz_layer(gzip.decompress(layer.blob)).blob == layer.blob


def test_level_is_the_only_thing_that_changes_digests_of_contents():
    tar = source_tar("real-gnu")
    fast, small = estargz_layer(tar, level=1), estargz_layer(tar, level=9)
    assert fast.size > small.size
    assert fast.diff_id != small.diff_id  # offsets are in the TOC, which is in the tar
    assert contents(fast) == contents(small)


# Anything a tar can hold

names = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b".wh.a", b".wh..wh..opq"]),  # so that some come twice
    st.binary(min_size=1, max_size=20).filter(
        lambda name: (
            not {0, 0x2F} & set(name) and name not in (b".", b"..") and not is_bare_whiteout(name)
        )  # refused: test_arrange.py
    ),
)
payloads = st.one_of(
    st.binary(max_size=50),
    st.builds(
        lambda seed, size: random.Random(seed).randbytes(size),
        st.integers(0, 99),
        st.sampled_from([511, 512, 4096, 4097, 8192, 20_000]),
    ),
)


class Tar(bytes):
    """A tar whose repr is what is in it: its bytes are more than hypothesis wants to print."""

    def __repr__(self) -> str:
        return f"<tar of {[(m.path, m.kind.name, m.link) for m in TarScanner().feed(self)]}>"


@st.composite
def trees(draw: st.DrawFn) -> Tar:
    """Return a tar with a random tree, some names in it twice."""
    folders = [b""]
    items = []
    files = []
    for _ in range(draw(st.integers(0, 12))):
        path = draw(st.sampled_from(folders)) + draw(names)
        common = {
            "mode": draw(st.integers(0, 0o7777)),
            "uid": draw(st.sampled_from([0, 1000, 2**21, 2**31])),
            "mtime": draw(st.sampled_from([0, 1, -1, -0.5, 1.25, 2**33, 1_700_000_000])),
        }
        kind = draw(st.sampled_from(["dir", "file", "file", "link", "soft", "dev", "fifo"]))
        taken = {item.name for item in items} | {f.rstrip(b"/") for f in folders}
        if kind == "dir" and path not in {item.name for item in items}:
            items.append(directory(path, **common))
            folders.append(path + b"/")
        elif path in {f.rstrip(b"/") for f in folders}:
            continue
        elif kind == "file":
            xattrs = draw(
                st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.binary(max_size=9))
            )
            items.append(file(path, draw(payloads), xattrs=xattrs, **common))
            if b".wh." not in path:
                files.append(path)
        elif kind == "link" and files and path not in taken:
            items.append(hardlink(path, draw(st.sampled_from(files)), **common))
        elif kind == "soft" and path not in taken:
            items.append(symlink(path, draw(names)))
        elif kind == "dev" and path not in taken:
            items.append(char_device(path, 1, draw(st.integers(0, 99)), **common))
        elif kind == "fifo" and path not in taken:
            items.append(fifo(path, **common))
    return Tar(tar_bytes(items))


@settings(max_examples=100, deadline=None)
@given(
    trees(),
    st.sampled_from([512, 4096, 5000, 4 << 20]),
    st.sampled_from([0, 100, 5000, 1 << 20]),
    st.lists(st.integers(0, 11), max_size=3),
)
def test_any_tree_survives(tar: bytes, chunk_size: int, min_chunk_size: int, chosen: list[int]):
    paths = [member.path for member in scan(tar)]
    wanted = [paths[number] for number in chosen if number < len(paths)]
    layer = estargz_layer(
        tar, prioritized=wanted, chunk_size=chunk_size, min_chunk_size=min_chunk_size, level=1
    )
    check_layer(layer, chunk_size=chunk_size)
    assert sorted(found_entries(layer)) == sorted(expected_entries(tar))
    files = contents(layer)
    for landmark in LANDMARKS:
        files.pop(landmark.encode(), None)
    assert files == last_contents(tar)


def last_contents(tar: bytes) -> dict[bytes, bytes]:
    """Return the payload of each regular file, as unpacking the tar in order would leave them."""
    inodes: dict[bytes, bytes] = {}
    for member in scan(tar):
        if member.kind is Kind.REGULAR:
            inodes[member.path] = tar[member.offset : member.offset + member.size]
        elif member.path.rpartition(b"/")[2].startswith(b".wh."):
            inodes[member.path] = b""  # whatever it is
        elif member.kind is Kind.HARDLINK:
            inodes[member.path] = inodes[member.link]
    regular = {member.path for member in arrange(scan(tar)).members if member.kind is Kind.REGULAR}
    return {path: data for path, data in inodes.items() if path in regular}


# Streams


def test_memory_does_not_grow_with_a_file():
    size = 200 << 20

    def payload(member: TarMember) -> Iterator[bytes]:
        for _ in range(member.size >> 20):
            yield bytes(1 << 20)

    sizes = []
    tracemalloc.start()
    try:
        written = write_layer(
            Arrangement((TarMember(b"big", Kind.REGULAR, size=size),)),
            payload,
            lambda data: sizes.append(len(data)),
            WriterOptions(level=1),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == written.size
    assert written.toc.count(b'"chunk"') == 49
    assert peak < 8 << 20


@pytest.mark.parametrize("pieces", [[], [b"abc"], [b"abcd", b"e"], [b"abcdef"]])
def test_a_payload_of_another_size_is_refused(pieces: list[bytes]):
    arrangement = Arrangement((TarMember(b"f", Kind.REGULAR, size=4),))
    with pytest.raises(BadTar, match=r"b'f'(: got| has more than)"):
        write_layer(arrangement, lambda _: pieces, lambda _: None)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(name: str, shape: dict[str, int], workers: int):
    tar = source_tar(name)
    scanner = TarScanner()
    arrangement = arrange(scanner.feed(tar))

    def payload(member: TarMember) -> Iterator[bytes]:
        for at in range(member.offset, member.offset + member.size, 5000):
            yield tar[at : min(at + 5000, member.offset + member.size)]

    blob = io.BytesIO()
    with ThreadPoolExecutor(workers) as pool:
        write_layer(arrangement, payload, blob.write, WriterOptions(**shape), pool.submit)
    assert blob.getvalue() == estargz_layer(tar, **shape).blob


def test_empty_pieces_are_nothing():
    arrangement = Arrangement((TarMember(b"f", Kind.REGULAR, size=4),))
    written = write_layer(arrangement, lambda _: [b"", b"abcd", b""], lambda _: None)
    assert isinstance(written, WrittenLayer)
    assert sha256(b"abcd").encode() in written.toc


@pytest.mark.parametrize("options", [{"chunk_size": 0}, {"min_chunk_size": -1}, {"level": 10}])
def test_options_have_bounds(options: dict[str, int]):
    with pytest.raises(ValueError, match="writer options"):
        WriterOptions(**options)


# The document


def test_empty_files_have_a_digest_and_nothing_else():
    entries = toc_of(estargz_layer(tar_bytes([file("a", mode=0, mtime=0)])))
    assert entries[1] == {
        "name": "a",
        "type": "reg",
        "modtime": "1970-01-01T00:00:00Z",
        "digest": EMPTY_DIGEST,
    }


def test_names_that_are_not_utf8_keep_their_bytes():
    items = [
        file(b"a\xff", b"1"),
        file(b"a\xfe", b"2"),
        symlink(b"s", b"\xe9"),
        directory(b"d\x80"),
    ]
    layer = estargz_layer(tar_bytes([*items, hardlink(b"h\xff", b"a\xff")]), chunk_size=4096)
    entries = toc_of(layer)
    assert entries[1]["name"] == entries[2]["name"] == "a\ufffd"
    assert entries[1]["nameBytes"] != entries[2]["nameBytes"]
    assert "nameBytes" not in entries[3]
    assert [(entry.path, entry.link) for entry in read(layer).toc.entries[1:]] == [
        (b"a\xff", b""),
        (b"a\xfe", b""),
        (b"s", b"\xe9"),
        (b"d\x80", b""),
        (b"h\xff", b"a\xff"),
    ]


def test_it_is_spelled_as_the_reference_does():
    layer = estargz_layer(tar_bytes([file("a", b"x", xattrs={"user.k": b"v"})]))
    place = find_toc(layer.blob[-TAIL_SIZE:], layer.size)
    tar = zlib.decompressobj(31).decompress(layer.blob[place.start : place.end])
    text = tar[512:].rstrip(b"\0").decode()
    assert text == json.dumps(json.loads(text), indent="\t", ensure_ascii=False)
    assert list(json.loads(text)["entries"][1]) == [
        "name",
        "type",
        "size",
        "modtime",
        "mode",
        "offset",
        "xattrs",
        "digest",
        "chunkDigest",
    ]


def test_xattr_names_must_be_text():
    arrangement = Arrangement((TarMember(b"f", Kind.REGULAR, xattrs=((b"user.\xff", b""),)),))
    with pytest.raises(BadTar, match="UTF-8"):
        write_layer(arrangement, lambda _: [], lambda _: None)


@settings(max_examples=500, deadline=None)
@given(st.integers(-MAX_SECONDS, MAX_SECONDS), st.integers(0, 10**9 - 1))
def test_any_time_is_read_back(seconds: int, nanoseconds: int):
    assert parse_modtime(build_modtime(seconds, nanoseconds)) == (seconds, nanoseconds)


@pytest.mark.parametrize(
    ("time", "text"),
    [
        ((0, 0), "1970-01-01T00:00:00Z"),
        ((-1, 0), "1969-12-31T23:59:59Z"),
        ((951_782_400, 0), "2000-02-29T00:00:00Z"),
        ((4_107_542_399, 0), "2100-02-28T23:59:59Z"),
        ((4_107_542_400, 0), "2100-03-01T00:00:00Z"),
        ((1_700_000_000, 120_000_000), "2023-11-14T22:13:20.12Z"),
        ((253_402_300_800, 1), "10000-01-01T00:00:00.000000001Z"),
    ],
)
def test_times_are_rfc_3339(time: tuple[int, int], text: str):
    assert build_modtime(*time) == text


def test_annotations_are_those_that_readers_want():
    layer = estargz_layer(tar_bytes([]))
    assert sorted(layer.annotations) == [
        "containerd.io/snapshot/stargz/toc.digest",
        "io.containers.estargz.uncompressed-size",
    ]
    assert parse_digest(layer.annotations["containerd.io/snapshot/stargz/toc.digest"])
