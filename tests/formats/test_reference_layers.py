"""Layers by official producers hold exactly what their source tars hold."""

import io
import tarfile
from collections import Counter

import pytest

from lazyfs.digest import DigestMismatch, digest_of, verify_digest
from lazyfs.formats.decode import RangeDecoder
from lazyfs.formats.estargz import NotEstargz, find_toc, read_toc
from lazyfs.formats.layers import (
    TAIL_SIZE,
    Format,
    LayerToc,
    TocPlace,
    find_layer_toc,
    read_layer_toc,
)
from lazyfs.formats.streams.unzstd import unzstd
from lazyfs.formats.tocs.claims import claims_of
from lazyfs.formats.tocs.toc import Kind
from tests.support.formats.coded import decode
from tests.support.formats.estargz import (
    ReferenceLayer,
    contents_of,
    files_of,
    lossy,
    members_of,
    pieces_of,
    reference_layers,
    source_of,
    xattrs_of,
)
from tests.support.formats.readers import cuts
from tests.support.formats.tarsplit import rebuild_tar

KINDS = {
    tarfile.REGTYPE: Kind.REGULAR,
    tarfile.AREGTYPE: Kind.REGULAR,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.CHRTYPE: Kind.CHAR,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}
LANDMARKS = {b".prefetch.landmark", b".no.prefetch.landmark"}

LAYERS = reference_layers()
WITH_TAR_SPLIT = [layer for layer in LAYERS if layer.tar_split is not None]


def find_layer(reference: ReferenceLayer) -> TocPlace:
    claims = claims_of(reference.annotations)
    return find_layer_toc(reference.blob[-TAIL_SIZE:], len(reference.blob), claims)


def read_layer(reference: ReferenceLayer) -> LayerToc:
    place = find_layer(reference)
    data = reference.toc_blob or reference.blob[place.start : place.end]
    return read_layer_toc(data, place, claims_of(reference.annotations))


def test_there_are_reference_layers():
    formats = Counter(find_layer(layer).format for layer in LAYERS)
    assert formats == {
        Format.ESTARGZ: 18,
        Format.EXTERNAL_TOC: 4,
        Format.ZSTD_STARGZ: 16,
        Format.ZSTD_CONTAINERS: 4,
    }
    assert len(WITH_TAR_SPLIT) == 4


@pytest.mark.parametrize("reference", LAYERS, ids=lambda layer: layer.name)
def test_metadata_equals_the_source(reference):
    layer = read_layer(reference)
    assert digest_of(layer.toc_bytes) == reference.toc_digest
    assert layer.toc.digest == claims_of(reference.annotations).key
    members = {
        lossy(path): member for path, member in members_of(source_of(reference.name)).items()
    }
    entries = {entry.path: entry for entry in layer.toc.entries}
    assert set(entries) - LANDMARKS == set(members)
    for path, member in members.items():
        entry = entries[path]
        assert entry.kind is KINDS[member.type], path
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid), path
        assert entry.size == (member.size if member.isreg() else 0), path
        if reference.has_landmarks:  # stargz writes whole seconds; it rounds as Go does
            assert abs(entry.mtime_seconds - member.mtime) < 1, path
            assert entry.mtime_nanoseconds == 0
        else:
            mtime = entry.mtime_seconds + entry.mtime_nanoseconds / 1e9
            assert abs(mtime - member.mtime) < 1e-3, path
        if member.issym():
            assert entry.link == member.linkname.encode("utf-8", "surrogateescape")
        if member.islnk():
            assert entry.link == member.linkname.encode().strip(b"/")
        if member.isdev() and not member.isfifo():
            assert (entry.dev_major, entry.dev_minor) == (member.devmajor, member.devminor), path
        xattrs = xattrs_of(member)
        if reference.name.startswith("zstdchunked-skopeo-1.9.3"):  # it loses empty ones
            xattrs = tuple((name, value) for name, value in xattrs if value)
        assert entry.xattrs == xattrs, path


@pytest.mark.parametrize("reference", LAYERS, ids=lambda layer: layer.name)
def test_every_chunk_decodes_however_the_blob_arrives(reference):
    layer = read_layer(reference)
    pieces, chunks = pieces_of(layer.toc, layer.payload_end)
    tar = source_of(reference.name)
    expected = {lossy(path): data for path, data in contents_of(tar).items() if data}
    assert reference.has_landmarks == bool(LANDMARKS & {path for path, _ in chunks})
    for path in LANDMARKS & {path for path, _ in chunks}:
        expected[path] = b"\x0f"
    payload = reference.blob[: layer.payload_end]
    for cut in cuts(payload):
        decoder = RangeDecoder(pieces, 0)
        decoded = decode(decoder, *cut)
        assert len(decoded) == len(pieces)
        assert files_of(decoded, chunks) == expected


@pytest.mark.parametrize("reference", LAYERS, ids=lambda layer: layer.name)
def test_file_digests_are_of_the_files(reference):
    layer = read_layer(reference)
    contents = {lossy(p): data for p, data in contents_of(source_of(reference.name)).items()}
    for entry in {entry.path: entry for entry in layer.toc.entries}.values():
        if entry.kind is not Kind.REGULAR or entry.path in LANDMARKS:
            continue
        if reference.has_landmarks or entry.size:  # others leave out what is empty
            assert entry.digest == digest_of(contents[entry.path]).raw


@pytest.mark.parametrize("reference", WITH_TAR_SPLIT, ids=lambda layer: layer.name)
def test_tar_split_gives_the_source_bit_for_bit(reference):
    claims = claims_of(reference.annotations)
    place, toc = claims.tar_split, read_layer(reference).toc
    frame = reference.blob[place.offset : place.end]
    assert frame == reference.tar_split
    verify_digest(frame, toc.tar_split_digest, "tar-split")
    document = unzstd(frame, place.raw_size, "tar-split")
    source = source_of(reference.name)
    contents = {lossy(path): data for path, data in contents_of(source).items()}
    rebuilt = rebuild_tar(document, toc, lambda entry: contents[entry.path])
    assert rebuilt == source


@pytest.mark.parametrize(
    "reference", [layer for layer in LAYERS if layer.toc_blob], ids=lambda layer: layer.name
)
def test_an_external_toc_is_found_by_name_alone(reference):
    with pytest.raises(NotEstargz, match="external TOC") as caught:
        find_toc(reference.blob[-TAIL_SIZE:], len(reference.blob))
    assert "esgztoc" in (caught.value.hint or "")


def test_landmarks_advise():
    ends = {
        layer.name.rpartition("/")[2]: read_layer(layer)
        for layer in LAYERS
        if layer.name.startswith("estargz")
    }
    assert ends["edge-default"].toc.prefetch_end == 0
    assert ends["edge-prio-missing"].toc.prefetch_end == 262
    prioritised = ends["edge-prio"]
    assert prioritised.toc.prefetch_end == 25018
    before = [
        entry.path
        for entry in prioritised.toc.entries
        if entry.chunks and entry.chunks[0].blob_offset < 25018
    ]
    assert b".prefetch.landmark" not in before
    assert before


def test_shared_streams_are_in_the_sample():
    chunks = [
        chunk
        for layer in LAYERS
        if layer.name.endswith("edge-minchunk")
        for entry in read_layer(layer).toc.entries
        for chunk in entry.chunks
    ]
    assert any(chunk.inner_offset for chunk in chunks)
    offsets = [chunk.blob_offset for chunk in chunks]
    assert len(set(offsets)) < len(offsets)


def test_another_layers_toc_is_refused():
    one, other = LAYERS[0], LAYERS[-1]
    location = find_toc(one.blob, len(one.blob))
    with pytest.raises(DigestMismatch, match="TOC"):
        read_toc(
            one.blob[location.start : location.end],
            expected=other.toc_digest,
            blob_size=len(one.blob),
        )


def test_the_blob_is_a_plain_tar_for_everyone_else():
    reference = LAYERS[0]
    with tarfile.open(fileobj=io.BytesIO(reference.blob)) as archive:
        assert "stargz.index.json" in archive.getnames()
