"""Whatever bytes come, a TOC is valid in every respect or refused with our own errors."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lazyfs.digest import digest_of
from lazyfs.errors import FormatError, VerificationFailed
from lazyfs.formats.estargz import find_toc, read_toc
from lazyfs.formats.streams.limits import DEFAULT_LIMITS
from lazyfs.formats.tocs.rawtoc import BadToc
from lazyfs.formats.tocs.toc import Kind, Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from tests.support.formats.estargz import reference_layers
from tests.support.formats.readers import check_document, check_flips
from tests.support.formats.tocs import BLOB_SIZE, raw_chunk, raw_entry, raw_file, sha, spelled


def toc_bytes_of(name: str) -> bytes:
    (reference,) = [layer for layer in reference_layers() if layer.name == f"estargz-{name}"]
    blob = reference.blob
    location = find_toc(blob, len(blob))
    return read_toc(
        blob[location.start : location.end], expected=None, blob_size=len(blob)
    ).toc_bytes


def check_valid(toc: Toc) -> None:
    """Check all that the rest of lazyfs relies on."""
    last = {entry.path: entry for entry in toc.entries}
    device_size = 0
    for entry in toc.entries:
        path = entry.path
        assert b"\0" not in path
        assert len(path) <= 4095
        for component in path.split(b"/") if path else []:
            assert component not in (b"", b".", b"..")
            assert len(component) <= 255
        assert entry.kind in Kind
        assert path or entry.kind is Kind.DIRECTORY
        assert 0 <= entry.mode <= 0o7777
        assert 0 <= entry.uid < 2**32
        assert 0 <= entry.gid < 2**32
        assert 0 <= entry.mtime_nanoseconds < 10**9
        assert entry.dev_major < 2**12
        assert entry.dev_minor < 2**20
        assert list(entry.xattrs) == sorted(entry.xattrs)
        assert entry.digest is None or len(entry.digest) == 32
        position = 0
        for chunk in entry.chunks:
            assert chunk.offset == position
            assert chunk.size > 0
            assert 0 <= chunk.blob_offset < BLOB_SIZE
            assert chunk.inner_offset >= 0
            assert len(chunk.digest) == 32
            position += chunk.size
        assert position == entry.size
        device_size += entry.size
        assert entry.kind is Kind.REGULAR or not entry.size
    assert device_size <= 2**44
    for path, entry in last.items():
        parent = path
        while parent:
            parent = parent.rpartition(b"/")[0]
            assert parent not in last or last[parent].kind is Kind.DIRECTORY
        for _ in range(len(last) + 1):
            if entry.kind is not Kind.HARDLINK or b".wh." in path:
                break
            entry = last[entry.link]
        assert entry.kind is not Kind.HARDLINK or b".wh." in path


def decode_or_refuse(data: bytes) -> Toc | None:
    try:
        toc = decode_toc(data, expected=None, blob_size=BLOB_SIZE)
    except BadToc:
        return None
    check_valid(toc)
    return toc


names = st.one_of(
    st.sampled_from(["a", "b", "a/b", "b/a", "./a", "/", "a/b/c", "..", "a/../b", ".wh.a", ""]),
    st.text(max_size=12),
)
numbers = st.one_of(
    st.sampled_from([0, 1, 10, 20, 512, BLOB_SIZE - 1, BLOB_SIZE, 2**32, 2**63 - 1, 2**63, -1]),
    st.integers(-(2**64), 2**64),
)
digests = st.one_of(
    st.sampled_from([sha(b""), sha(b"x"), "", "sha256:", sha(b"").upper()]), st.text(max_size=80)
)
fields = st.fixed_dictionaries(
    {
        "name": names,
        "type": st.sampled_from(
            ["dir", "reg", "symlink", "hardlink", "char", "block", "fifo", "chunk", "x"]
        ),
    },
    optional={
        "size": numbers,
        "offset": numbers,
        "innerOffset": numbers,
        "chunkOffset": numbers,
        "chunkSize": numbers,
        "mode": numbers,
        "uid": numbers,
        "devMajor": numbers,
        "devMinor": numbers,
        "digest": digests,
        "chunkDigest": digests,
        "linkName": names,
        "modtime": st.one_of(st.just("2023-11-14T22:13:20Z"), st.text(max_size=25)),
        "xattrs": st.dictionaries(st.text(max_size=5), st.sampled_from(["", "AAAA", "A", "%"])),
        "nameBytes": st.sampled_from(["", "YQ==", "Li4vYQ==", "AA==", "/w=="]),
    },
)
plausible = st.one_of(
    st.builds(raw_entry, names),
    st.builds(raw_file, names, st.integers(0, 100), st.integers(0, BLOB_SIZE)),
    st.builds(
        lambda name, target, kind: raw_entry(name, kind, linkName=target),
        names,
        names,
        st.sampled_from(["symlink", "hardlink"]),
    ),
    st.builds(raw_chunk, st.integers(0, 40), st.integers(0, 40), st.integers(0, BLOB_SIZE)),
)


@given(st.lists(st.one_of(plausible, fields), max_size=8))
@settings(max_examples=400, deadline=None)
def test_any_entries(entries):
    decode_or_refuse(spelled(*entries))


@given(st.lists(plausible, max_size=12))
@settings(max_examples=400, deadline=None)
def test_plausible_entries(entries):
    decode_or_refuse(spelled(*entries))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_json(value):
    decode_or_refuse(json.dumps({"version": 1, "entries": value}).encode())


@given(st.binary(max_size=200))
def test_any_bytes(data):
    with pytest.raises(BadToc):
        decode_toc(data, expected=None, blob_size=BLOB_SIZE)


@st.composite
def cut_files(draw):
    """A file of a few chunks, and their sizes."""
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=6))
    last_is_implicit = draw(st.booleans())
    file = raw_file("f", sum(sizes), 0, chunkSize=sizes[0] if len(sizes) > 1 else 0)
    parts = []
    position = sizes[0]
    for number, size in enumerate(sizes[1:], start=1):
        is_last = number == len(sizes) - 1
        parts.append(raw_chunk(position, 0 if is_last and last_is_implicit else size, number))
        position += size
    draw(st.randoms()).shuffle(parts)
    return [file, *parts], sizes


@given(cut_files())
def test_any_cut_of_a_file(case):
    entries, sizes = case
    (entry,) = decode_toc(spelled(*entries), expected=None, blob_size=BLOB_SIZE).entries
    assert [chunk.size for chunk in entry.chunks] == sizes
    assert [chunk.blob_offset for chunk in entry.chunks] == list(range(len(sizes)))


def test_a_real_toc_cut_anywhere():
    data = toc_bytes_of("go-0.12/empty").rstrip()
    check_document(lambda cut: decode_toc(cut, expected=None, blob_size=BLOB_SIZE), data, BadToc)
    data = toc_bytes_of("go-0.12/edge-default").rstrip()
    check_document(
        lambda cut: decode_toc(cut, expected=None, blob_size=BLOB_SIZE), data, BadToc, step=101
    )


@pytest.mark.parametrize(
    "name", ["go-0.12/edge-chunk4k", "ctr-remote-0.14.3/edge-minchunk", "go-0.12/real-gnu"]
)
def test_a_real_toc_with_a_bent_bit(name):
    data = toc_bytes_of(name)
    digest = digest_of(data)

    def verified(bent: bytes) -> None:
        decode_toc(bent, expected=digest, blob_size=BLOB_SIZE)

    assert check_flips(verified, data, VerificationFailed, count=100) == 100
    assert check_flips(decode_or_refuse, data, ()) == 0


def test_deep_paths_cost_little():
    """65,000 long paths would imply 66 million directories."""
    deep = "/".join("x" * 1000)
    entries = [raw_entry(f"{number}/{deep}") for number in range(2000)]
    data = spelled(*entries)
    tracemalloc.start()
    try:
        with pytest.raises(BadToc, match="without entries"):
            decode_toc(
                data,
                expected=None,
                blob_size=BLOB_SIZE,
                limits=replace(DEFAULT_LIMITS, implied_size=4 << 20),
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20


def test_errors_belong_to_the_family():
    assert issubclass(BadToc, FormatError)
