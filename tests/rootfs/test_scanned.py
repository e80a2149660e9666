"""What the native core makes of TOCs is what the modules in Python make of them, to the byte."""

import json
from base64 import b64encode
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lazyfs.errors import FormatError
from lazyfs.formats.layer_pass import placed
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.limits import Limits
from lazyfs.formats.streams.spans import Span
from lazyfs.formats.tocs import scan
from lazyfs.formats.tocs.scan import ScannedEntries
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.rootfs.erofs_writer import build_index
from lazyfs.rootfs.table import build_table
from tests.formats.test_toc_hostile import fields, plausible, toc_bytes_of
from tests.support.formats.estargz import reference_layers
from tests.support.formats.tocs import BLOB_SIZE, raw_chunk, raw_entry, raw_file, sha, spelled

pytestmark = pytest.mark.skipif(scan.scan_toc is None, reason="nothing was compiled")
ROOT_XATTRS = {b"user.lazyfs.x": b"y" * 40}


@contextmanager
def in_python():
    """Do without the native core."""
    kept, scan.scan_toc = scan.scan_toc, None
    try:
        yield
    finally:
        scan.scan_toc = kept


def made_of(documents, options):
    """Return all that is made of layers, or the error."""
    try:
        tocs = [decode_toc(data, expected=None, **options) for data in documents]
        said = [(toc.digest, toc.prefetch_end, toc.tar_split_digest) for toc in tocs]
        ends = (options["blob_size"], options["blob_size"] // 2)
        tables = [table_of(toc, end) for toc in tocs for end in ends]
        tags = [f"layer {number}" for number in range(len(tocs))]
        index = build_index(tocs, root_xattrs=ROOT_XATTRS, device_tags=tags)
        bare = build_index(tocs, root_xattrs={}, device_tags=tags)
        return tocs, (said, tables, index, bare, [tuple(toc.entries) for toc in tocs])
    except FormatError as error:
        return [], (type(error), str(error))


def table_of(toc, end):
    try:
        return build_table(toc, end)
    except FormatError as error:
        return str(error)


def check_same(*documents: bytes, **options) -> bool:
    """Compare the two; say whether the native core took all of the layers."""
    options = {"blob_size": BLOB_SIZE} | options
    tocs, found = made_of(documents, options)
    with in_python():
        assert found == made_of(documents, options)[1]
    return bool(tocs) and all(isinstance(toc.entries, ScannedEntries) for toc in tocs)


@pytest.mark.parametrize(
    "name",
    [
        layer.name.removeprefix("estargz-")
        for layer in reference_layers()
        if layer.name.startswith("estargz-") and not layer.name.endswith("exttoc")
    ],
)
def test_reference_layers(name):
    data = toc_bytes_of(name)
    assert check_same(data, blob_size=1 << 30)
    assert check_same(data, data, blob_size=1 << 30)


USUAL = [
    raw_entry("./", mode=0o700),
    raw_entry("a/", mode=0o41777, uid=2**32 - 1, gid=7, modtime="1969-12-31T23:59:59.5Z"),
    raw_file("a/f", 10, 100, modtime="2024-02-29T12:00:00.123456789Z"),
    raw_file("a/g", 40, 200, chunkSize=20, chunkDigest=sha(b"1"), digest=sha(b"2")),
    raw_chunk(20, 20, 300),
    raw_file("deep/er/\u00e9\u4e2d\U0001f600 & <x>", 4097, 50),
    raw_entry("a/empty", "reg"),
    raw_entry("a/l", "symlink", linkName="/etc/../x"),
    raw_entry("a/h", "hardlink", linkName="./a//f"),
    raw_entry("a/hh", "hardlink", linkName="a/h"),
    raw_entry("dev/c", "char", devMajor=1, devMinor=0x12345, mode=0o666),
    raw_entry("dev/b", "block", devMajor=4095, devMinor=2**20 - 1),
    raw_entry("dev/p", "fifo"),
    raw_entry(
        "a/x", "reg",
        xattrs={
            "security.capability": b64encode(b"\1\2").decode(), "user.q": "", "system.odd": "AAAA",
            "user.lazyfs.forged": "AAAA",
        },
    ),
    raw_entry(".no.prefetch.landmark", "reg"),
]  # fmt: skip


def test_what_begins_inside_a_stream():
    """A plain layer's TOC does not say which of its chunks do; its spans do."""
    spans = [Span(100, 0, Codec.GZIP), Span(200, 50, Codec.DEFLATE), Span(300, 70, Codec.DEFLATE)]

    def made():
        toc = placed(decode_toc(spelled(*USUAL), expected=None, blob_size=BLOB_SIZE), spans)
        tags = ["layer"]
        return toc, (
            build_table(toc, BLOB_SIZE),
            build_index([toc], root_xattrs=ROOT_XATTRS, device_tags=tags),
            [chunk.codec for entry in toc.entries for chunk in entry.chunks],
        )

    toc, found = made()
    assert isinstance(toc.entries, ScannedEntries)
    assert found[2].count(Codec.DEFLATE) == 2
    with in_python():
        assert made()[1] == found


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh.", "deep/er/.wh.."])
def test_a_whiteout_of_nothing_is_for_python_to_refuse(name):
    document = spelled(*USUAL, raw_entry(name, "reg"))
    assert not check_same(document)
    with pytest.raises(FormatError, match="whiteout that names nothing"):
        decode_toc(document, expected=None, blob_size=BLOB_SIZE)
    assert check_same(spelled(*USUAL, raw_entry(name + "x", "reg")))


ABOVE = [
    raw_entry("a/.wh.f", "reg"),
    raw_entry("a/.wh.nothing", "reg"),
    raw_entry("a/.wh..wh.plnk", "dir"),
    raw_entry("deep/.wh..wh..opq", "reg"),
    raw_file("deep/new", 5),
    raw_entry("dev", "symlink", linkName="a"),
    raw_entry("a/-", "dir"),
    raw_entry("a/.-", "dir"),
    raw_entry("a/empty/now/a/tree", "dir", xattrs={"user.a": "AAAA"}),
    raw_file(".prefetch.landmark", 1, 77),
]
WIDE = [raw_file(f"w/{'n' * (n % 200)}{n}", n, 10 + n) for n in range(400)] + [
    raw_entry("w/" + "s" * 200, "symlink", linkName="t" * 4095),
    raw_entry("w/s", "symlink", linkName="t" * 4000),
]


def test_usual_layers_are_taken():
    layers = [spelled(*USUAL), spelled(*ABOVE, tarSplitDigest=sha(b"t")), spelled(*WIDE)]
    assert check_same(*layers)
    assert check_same(*reversed(layers))
    assert check_same(spelled(*reversed(USUAL[:3])), *layers, codec=Codec.ZSTD)
    assert check_same(json.dumps(json.loads(layers[0]), ensure_ascii=True, indent=3).encode())


def test_a_root_whose_names_move_it():
    """It is not at the first place for inodes, where the superblock must not look for it."""
    assert check_same(spelled(*(raw_entry(f"{number:06}") for number in range(200))))


def test_entries_are_made_when_they_are_looked_at():
    toc = decode_toc(spelled(*USUAL), expected=None, blob_size=BLOB_SIZE)
    assert len(toc.entries) == len(USUAL) - 1
    toc.entries._read = list  # nothing asks it
    build_index([toc], root_xattrs={}, device_tags=["x"])
    build_table(toc, BLOB_SIZE)
    with pytest.raises(IndexError):
        toc.entries[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "../a"}, {"name": ".wh.x/y"}, {"name": "a/f/below"}, {"name": "a/../b"},
        {"modtime": "2023-02-29T00:00:00Z"}, {"modtime": "2024-01-01T00:00:00+01:00"},
        {"modtime": "2024-01-01T00:00:60Z"}, {"modtime": "0000-01-01T00:00:00Z"},
        {"modtime": "2024-01-01T00:00:00.Z"}, {"modtime": "2024-1-01T00:00:000Z"},
        {"chunkType": "zeros"}, {"nameBytes": "YQ=="}, {"chunkDigest": sha(b"9")},
        {"size": 2**63 - 1}, {"offset": BLOB_SIZE}, {"innerOffset": 2**30}, {"uid": 2**32},
        {"mode": -1}, {"mode": 1.5}, {"digest": sha(b"").upper()}, {"digest": "sha256:"},
        {"unknown": {"deep": [1]}}, {"xattrs": {"": "AAAA"}}, {"xattrs": {"user.a": "A"}},
        {"xattrs": None}, {"name": "a\0b"}, {"name": "n" * 256}, {"name": "d/" * 1025 + "f"},
        {"type": "hardlink", "linkName": "f"}, {"type": "hardlink", "linkName": "none"},
        {"type": "hardlink", "linkName": ""}, {"type": "symlink", "linkName": ""},
        {"type": "chunk"}, {"type": "x"}, {"userName": 1}, {"chunkSize": 3},
        {"chunkSize": 3, "chunkDigest": ""}, {"name": "\\ud83d\\ude00"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_unusual(changed):
    check_same(spelled(*USUAL[:3], raw_file("f", 10) | changed))
    check_same(spelled(*USUAL, raw_file("f", 10) | changed, raw_chunk(3, 7, 5)))


@pytest.mark.parametrize(
    "text",
    ['"\\ud83d\\ude00"', '"\\u00e9\\/\\n"', '"\\u0000"', '"\\x"', "1e3"],
)
@pytest.mark.parametrize("key", ["name", "linkName", "userName", "size", "modtime"])
def test_how_json_is_written(key, text):
    data = spelled(raw_entry("l", "symlink", linkName="t"))
    document = json.loads(data)
    document["entries"][0][key] = "@"
    check_same(json.dumps(document).replace('"@"', text).encode())
    check_same(json.dumps(document).replace('"@"', f'"x", "{key}": {text}').encode())


@pytest.mark.parametrize("size", range(0, 700, 7))
def test_truncated(size):
    data = spelled(*USUAL[:4])
    check_same(data[:size])
    check_same(data[:size] + data[size + 1 :])


@pytest.mark.parametrize(
    "limits",
    [
        Limits(entries=2), Limits(path_size=4), Limits(component_size=2), Limits(depth=1),
        Limits(implied_size=65), Limits(link_size=3), Limits(chunk_size=9), Limits(stream_size=9),
        Limits(device_size=4096), Limits(block_size=512), Limits(xattr_name_size=5),
    ],
    ids=str,
)  # fmt: skip
def test_limits(limits):
    check_same(spelled(*USUAL), limits=limits)


TREE = st.lists(
    st.one_of(
        plausible,
        st.builds(
            raw_file,
            st.sampled_from(["a", "a/b", "c", "c/d", "c/d/e", "z/.wh.a", "c/.wh.d", ".wh.c", "b"]),
            st.sampled_from([0, 1, 4096, 70_000]),
            st.integers(0, 400),
        ),
        st.builds(
            raw_entry,
            st.sampled_from(["a", "c", "c/d", "c/.wh..wh..opq", "z", ".wh.a", ""]),
            mode=st.integers(0, 0o7777),
            uid=st.integers(0, 2**32 - 1),
        ),
        st.builds(
            lambda name, link: raw_entry(name, "hardlink", linkName=link),
            st.sampled_from(["h", "c/h", "i"]),
            st.sampled_from(["a", "h", "c/d/e", "i", "b", "z/.wh.a"]),
        ),
    ),
    max_size=7,
    unique_by=lambda entry: entry["name"] if entry["type"] != "chunk" else object(),
)


@settings(max_examples=250, deadline=None)
@given(st.lists(TREE, min_size=1, max_size=3))
@example([USUAL, ABOVE])
def test_any_layers(layers):
    check_same(*(spelled(*entries) for entries in layers))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(plausible, fields), max_size=6))
def test_any_entries(entries):
    check_same(spelled(*entries))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage(changes):
    data = bytearray(spelled(*USUAL))
    for place, value in changes:
        data[place % len(data)] = value
    check_same(bytes(data))
