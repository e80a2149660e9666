"""A plain layer fetched whole: verified before anybody sees it, and only once."""

import gzip
import hashlib
import lzma
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from lazyfs.digest import Digest, DigestMismatch, digest_of
from lazyfs.errors import FormatError, LazyfsError, Unavailable
from lazyfs.formats.decode import RangeDecoder
from lazyfs.formats.streams.stream import Piece
from lazyfs.image.layers import full_pass
from lazyfs.image.layers.full_pass import pass_layer, pass_layers
from lazyfs.oci.descriptor import Descriptor
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT, HEADER, HEADER_SIZE, RESIDENT
from lazyfs.store.layers import load_table, load_toc
from lazyfs.store.passes import load_pass
from lazyfs.store.paths import Store
from lazyfs.store.points import RestartPoints
from lazyfs.store.spans import load_spans
from tests.formats.test_layer_pass import FILES, link, tar_of, words
from tests.support.formats.coded import decode
from tests.support.registries.sources import MemorySource

pytestmark = pytest.mark.anyio

BIG = [*FILES, ("big", words(3_500_000, 9)), ("noise", random.Random(5).randbytes(600_000))]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Made:
    """A plain layer and a source that serves it."""

    def __init__(self, files: Sequence[tuple[str, bytes]], more: Sequence = ()) -> None:
        self.tar = tar_of(files, more)
        self.blob = gzip.compress(self.tar, mtime=0)
        self.layer = Descriptor("", digest_of(self.blob), len(self.blob))
        self.diff_id = digest_of(self.tar)
        self.source = MemorySource({self.layer.digest: self.blob}, piece_size=100_000)


def payloads(table: LayerTable, content: LayerContent) -> list[bytes]:
    return [
        content.read(table.device_offset(chunk), table.size(chunk)) for chunk in range(table.count)
    ]


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


async def test_all_of_it_is_resident_afterwards(store: Store) -> None:
    made = Made(BIG)
    seen: list[int] = []
    toc = await pass_layer(store, made.source, made.layer, made.diff_id, progress=seen.append)
    assert sum(seen) == len(made.blob)
    assert made.source.requests == [(0, len(made.blob))]
    table = load_table(store, toc.digest)
    assert table is not None
    assert load_toc(store, toc.digest) is not None
    record = load_pass(store, made.layer.digest)
    assert record is not None
    assert (record.toc_digest, record.diff_id) == (str(toc.digest), str(made.diff_id))
    content = LayerContent(store.layer_path(toc.digest), table)
    try:
        assert set(content.states[: table.count]) == {RESIDENT}
        for chunk, data in enumerate(payloads(table, content)):
            assert hashlib.sha256(data).digest() == table.digest(chunk)
    finally:
        content.close()
    assert is_empty(store.tmp)


async def test_what_was_evicted_comes_back_by_its_span(store: Store) -> None:
    made = Made(BIG)
    toc = await pass_layer(store, made.source, made.layer, made.diff_id)
    table = load_table(store, toc.digest)
    assert table is not None
    points = RestartPoints(store, toc.digest, len(made.blob))
    spans = load_spans(store, toc.digest, len(made.blob))
    assert spans is not None
    assert len(spans) > 2
    chunk = next(c for c in range(table.count) if points(table.blob_offset(c)) is not None)
    start, end = table.blob_offset(chunk), table.blob_end(chunk)
    assert 0 < start < end < len(made.blob)
    piece = Piece(
        *(0, start, end, table.inner_offset(chunk), table.size(chunk)),
        *(table.digest(chunk), table.codec(chunk)),
    )
    decoder = RangeDecoder([piece], start, points=points)
    (decoded,) = decode(decoder, made.blob[start:end])
    assert decoded.error is None
    assert decoded.data is not None
    assert hashlib.sha256(decoded.data).digest() == table.digest(chunk)
    without = RangeDecoder([piece], start, points=lambda at: None)
    (refused,) = decode(without, made.blob[start:end])
    assert "no restart point" in str(refused.error)


async def test_names_that_occur_twice(store: Store) -> None:
    files = [("x", words(9000, 1)), ("keep", b"k" * 5000), ("x", words(70_000, 2))]
    made = Made(files, [link("hard", "keep")])
    toc = await pass_layer(store, made.source, made.layer, made.diff_id)
    table = load_table(store, toc.digest)
    assert table is not None
    content = LayerContent(store.layer_path(toc.digest), table)
    try:
        assert sorted(payloads(table, content)) == sorted([b"k" * 5000, words(70_000, 2)])
    finally:
        content.close()


@pytest.mark.parametrize("what", ["blob", "diffID", "tar", "gzip", "cut"])
async def test_nothing_is_kept_of_what_is_not_right(store: Store, what: str) -> None:
    made = Made(BIG)
    diff_id = made.diff_id
    error: type[LazyfsError] = DigestMismatch
    if what == "blob":
        made.source.blobs[made.layer.digest] = _padded(made.tar, len(made.blob))
        error = LazyfsError
    elif what == "diffID":
        diff_id = digest_of(b"another")
    else:
        data = {"tar": gzip.compress(b"no tar " * 1000), "gzip": b"\x1f\x8b\x08\0" + bytes(99)}
        made.blob = data.get(what, made.blob[:-100])
        made.layer = Descriptor("", digest_of(made.blob), len(made.blob))
        made.source.blobs = {made.layer.digest: made.blob}
        error = FormatError
    with pytest.raises(error) as caught:
        await pass_layer(store, made.source, made.layer, diff_id)
    assert str(made.layer.digest) in str(caught.value) or what == "blob"
    assert is_empty(store.tmp)
    assert is_empty(store.layers)
    assert load_pass(store, made.layer.digest) is None


def _padded(tar: bytes, size: int) -> bytes:
    """Return another gzip stream of *tar*, of *size* bytes."""
    blob = gzip.compress(tar, 9, mtime=7)
    return (blob + gzip.compress(b"", mtime=0) * (size // 20))[:size]


async def test_a_transfer_that_breaks_goes_on(store: Store) -> None:
    made = Made(BIG)
    broken: list[int] = []

    def bend(start: int, data: bytes) -> bytes:
        return data[: 2_000_000 - 1] if start == 0 else data

    class Breaking(MemorySource):
        async def _body(self, data: bytes):  # type: ignore[no-untyped-def]
            async for piece in super()._body(data):
                yield piece
            if self.requests[-1][0] == 0:
                broken.append(len(data))
                raise Unavailable("the connection broke")

    source = Breaking({made.layer.digest: made.blob}, piece_size=100_000, bend=bend)
    toc = await pass_layer(store, source, made.layer, made.diff_id)
    assert broken
    assert [start for start, _ in source.requests] == [0, broken[0]]
    assert load_table(store, toc.digest) is not None


@pytest.mark.parametrize("place", [5, 30_000, -3])
async def test_bytes_that_are_wrong_are_fetched_once_more(store: Store, place: int) -> None:
    """Also those that look like a damaged layer: whether it is one, its digest says."""
    made = Made(BIG)
    bent = bytearray(made.blob)
    bent[place] ^= 0x40
    answers = [bytes(bent), made.blob]
    made.source.bend = lambda start, data: answers.pop(0)
    told: list[int] = []
    toc = await pass_layer(store, made.source, made.layer, made.diff_id, progress=told.append)
    assert load_table(store, toc.digest) is not None
    assert made.source.blamed == [(0, made.layer.size)]
    assert sum(told) == made.layer.size
    assert is_empty(store.tmp)


@pytest.mark.parametrize(("others", "requests"), [(0, 2), (1, 2), (4, 4)])
async def test_wrong_bytes_everywhere(store: Store, others: int, requests: int) -> None:
    made = Made(BIG)
    made.source.bend = lambda start, data: data[:40_000] + bytes(9) + data[40_009:]
    made.source.others = others
    with pytest.raises(DigestMismatch, match=f"layer {made.layer.digest}: got sha256"):
        await pass_layer(store, made.source, made.layer, made.diff_id)
    assert len(made.source.requests) == requests
    assert is_empty(store.tmp)
    assert is_empty(store.layers)


@pytest.mark.parametrize(
    "data",
    [gzip.compress(b"no tar " * 99, mtime=0), b"\x1f\x8b\x08\0bad" + bytes(600)],
    ids=["no-tar", "no-gzip"],
)
async def test_a_layer_that_was_published_so_is_fetched_once(store: Store, data: bytes) -> None:
    layer = Descriptor("", digest_of(data), len(data))
    source = MemorySource({layer.digest: data})
    with pytest.raises(FormatError):
        await pass_layer(store, source, layer, digest_of(b""))
    assert (len(source.requests), source.blamed) == (1, [])


async def test_what_is_known_to_be_no_layer_is_not_read_to_its_end(store: Store) -> None:
    data = lzma.compress(random.Random(1).randbytes(2_500_000))
    layer = Descriptor("", digest_of(data), len(data))
    source = MemorySource({layer.digest: data}, piece_size=1 << 20)
    taken: list[int] = []
    with pytest.raises(FormatError, match=f"layer {layer.digest}: not tar, .* but xz"):
        await pass_layer(store, source, layer, digest_of(b""), progress=taken.append)
    assert taken == []


async def test_a_source_that_gives_nothing(store: Store) -> None:
    made = Made(FILES)

    def fail(start: int, end: int) -> None:
        raise Unavailable("no")

    made.source.fail = fail
    with pytest.raises(Unavailable):
        await pass_layer(store, made.source, made.layer, made.diff_id)
    assert is_empty(store.tmp)


async def test_a_layer_that_others_use_is_copied_into(store: Store) -> None:
    made = Made(BIG)
    toc = await pass_layer(store, made.source, made.layer, made.diff_id)
    table = load_table(store, toc.digest)
    assert table is not None
    content = LayerContent(store.layer_path(toc.digest), table)
    try:
        for chunk in range(table.count):
            content.forget(chunk)
        await pass_layer(store, made.source, made.layer, made.diff_id)
        assert set(content.states[: table.count]) == {RESIDENT}
        assert hashlib.sha256(payloads(table, content)[-1]).digest() == table.digest(
            table.count - 1
        )
    finally:
        content.close()


async def test_no_mark_outlives_the_file_it_was_made_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on the disk when the content file is replaced says nothing of the new one."""
    made = Made(BIG)
    toc = await pass_layer(store, made.source, made.layer, made.diff_id)
    folder = store.layer_path(toc.digest)
    table = load_table(store, toc.digest)
    assert table is not None
    content = folder / "content"
    close_pins()
    LayerContent(folder, table).close()  # on the disk, and clean
    synced: list[bytes] = []
    fdatasync, rename = os.fdatasync, os.rename

    def note_sync(fd: int) -> None:
        fdatasync(fd)
        if os.path.samestat(os.fstat(fd), os.stat(folder / "presence")):
            synced.append((folder / "presence").read_bytes())

    def note_rename(source: Path, target: Path) -> None:
        if target == content:
            _, _, clean, count, *_ = HEADER.unpack_from(synced[-1])
            assert (clean, count) == (0, table.count)
            assert set(synced[-1][HEADER_SIZE:]) == {ABSENT}
            synced.append(b"replaced")
        rename(source, target)

    monkeypatch.setattr(os, "fdatasync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    await pass_layer(store, made.source, made.layer, made.diff_id)
    assert b"replaced" in synced


def close_pins() -> None:
    """Let go of what this process has filled, as its end does."""
    while full_pass._pins:
        os.close(full_pass._pins.pop())


async def test_without_room_there_are_no_contents(store: Store) -> None:
    made = Made(BIG)
    toc = await pass_layer(store, made.source, made.layer, made.diff_id, is_stored=False)
    assert not (store.layer_path(toc.digest) / "content").exists()
    assert load_spans(store, toc.digest, len(made.blob))


async def test_several_layers_and_the_first_failure(store: Store) -> None:
    layers = [Made([(f"f{number}", words(50_000, number))]) for number in range(5)]
    source = MemorySource({made.layer.digest: made.blob for made in layers})
    wanted = [(made.layer, made.diff_id) for made in layers]
    tocs = await pass_layers(store, source, wanted)
    assert [toc.entries[0].path for toc in tocs] == [b"f0", b"f1", b"f2", b"f3", b"f4"]
    wanted[2] = (wanted[2][0], Digest("sha256", "0" * 64))
    with pytest.raises(DigestMismatch, match="expected diffID"):
        with trio.fail_after(20):
            await pass_layers(store, source, wanted)
    assert is_empty(store.tmp)
