"""Chunks that are zeros and nowhere in the blob: resident from the start, and zeros for ever."""

import os
from pathlib import Path

import pytest

from lazyfs.digest import digest_of
from lazyfs.formats.layers import find_layer_toc, read_layer_toc
from lazyfs.formats.tocs.claims import Claims
from lazyfs.rootfs.table import LayerTable, build_table
from lazyfs.store.content.content import ContentUnusable, LayerContent, NotStored
from lazyfs.store.content.presence import ABSENT, DOUBTFUL, HEADER_SIZE, RESIDENT
from lazyfs.store.content.unwritten import UnstoredContent
from lazyfs.store.layers import load_toc, save_layer
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.check import check_store
from tests.support.formats.zstdchunked import zstd_layer

LARGE = 40 << 30
FILES = {"a": [b"data"], "b": [b"x" * 300, 100_000, b"y" * 4000], "zeros": [70_000]}
HOLES = {2, 4}


def made() -> tuple[bytes, LayerTable, bytes]:
    layer = zstd_layer(FILES)
    place = find_layer_toc(layer.blob, layer.size, Claims())
    found = read_layer_toc(layer.blob[place.start : place.end], place, Claims())
    table = build_table(found.toc, found.payload_end, found.format)
    return found.toc_bytes, LayerTable(table), table


@pytest.fixture(scope="module")
def table() -> LayerTable:
    return made()[1]


@pytest.fixture
def content(tmp_path: Path, table: LayerTable):
    opened = LayerContent(tmp_path / "layer", table)
    yield opened
    opened.close()


def states(content: LayerContent) -> list[int]:
    return list(content.states[: content.table.count])


def spoil(content: LayerContent, chunk: int) -> None:
    """Write something into a hole, behind the store's back."""
    os.pwrite(content.fd, b"not zero", content.table.device_offset(chunk) + 10)


def test_they_are_there_from_the_start(content: LayerContent) -> None:
    assert content.table.holes == HOLES
    assert states(content) == [ABSENT, ABSENT, RESIDENT, ABSENT, RESIDENT]
    start = content.table.device_offset(2)
    assert content.read(start, 100_000) == bytes(100_000)
    assert content.resident_size() == 170_000
    assert os.fstat(content.fd).st_blocks == 0
    assert all(content.check(chunk) for chunk in HOLES)


def test_they_cost_nothing_to_open_again(tmp_path: Path, table: LayerTable) -> None:
    for _ in range(2):
        content = LayerContent(tmp_path / "layer", table)
        assert [content.states[chunk] for chunk in HOLES] == [RESIDENT] * 2
        content.close()


@pytest.mark.parametrize("is_spoilt", [False, True])
def test_after_an_unclean_stop(tmp_path: Path, table: LayerTable, is_spoilt: bool) -> None:
    content = LayerContent(tmp_path / "layer", table)
    content.write(0, b"data")
    if is_spoilt:
        spoil(content, 2)
    presence = (tmp_path / "layer" / "presence").read_bytes()
    content.close()
    (tmp_path / "layer" / "presence").write_bytes(presence)
    again = LayerContent(tmp_path / "layer", table)
    try:
        assert again.states[0] == DOUBTFUL
        for chunk in HOLES:  # there is nothing to fetch for them, so they are never in doubt
            assert again.states[chunk] == RESIDENT
            assert again.confirm(chunk)
            assert again.check(chunk)
    finally:
        again.close()


def test_content_of_another_map_is_not_believed(tmp_path: Path, table: LayerTable) -> None:
    folder = tmp_path / "layer"
    content = LayerContent(folder, table)
    spoil(content, 4)
    content.close()
    (folder / "presence").unlink()
    again = LayerContent(folder, table)
    try:
        assert again.states[4] == RESIDENT
        assert again.read(table.device_offset(4), 70_000) == bytes(70_000)
    finally:
        again.close()


def test_what_is_damaged_is_mended_at_once(content: LayerContent) -> None:
    spoil(content, 2)
    assert not content.check(2)
    content.forget(2)
    assert content.states[2] == RESIDENT
    assert content.check(2)
    clean = (content.folder / "presence").read_bytes()[12:16]
    assert int.from_bytes(clean, "little") == 0  # so that a crash now leaves doubt


def test_what_cannot_be_mended_is_said(
    content: LayerContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(content, 2)

    def pwrite(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    content._begin_marking()
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(ContentUnusable, match="No space"):
        content.forget(2)
    assert content.states[2] == ABSENT
    monkeypatch.undo()


def test_large_ones_are_neither_read_nor_written(tmp_path: Path) -> None:
    def bend(toc):
        entry = toc["entries"][0]
        entry["size"] = entry["chunkSize"] = LARGE

    layer = zstd_layer({"zeros": [1]}, bend=bend)
    place = find_layer_toc(layer.blob, layer.size, Claims())
    found = read_layer_toc(layer.blob[place.start : place.end], place, Claims())
    table = LayerTable(build_table(found.toc, found.payload_end, found.format))
    content = LayerContent(tmp_path / "layer", table)
    try:
        assert content.check(0)
        os.pwrite(content.fd, b"x", LARGE // 2)
        assert not content.check(0)
        content.forget(0)
        assert content.check(0)
        assert os.fstat(content.fd).st_blocks * 512 < 1 << 20
    finally:
        content.close()


def test_without_room_for_content(tmp_path: Path, table: LayerTable) -> None:
    content = UnstoredContent(tmp_path / "layer", table)
    assert states(content) == [ABSENT, ABSENT, RESIDENT, ABSENT, RESIDENT]
    assert content.read(table.device_offset(4), 70_000) == bytes(70_000)
    with pytest.raises(NotStored):
        content.write(0, b"data")


def test_a_check_of_the_store(tmp_path: Path) -> None:
    toc, table, table_bytes = made()
    store = Store(tmp_path / "store")
    digest = digest_of(toc)
    save_layer(store, digest, toc, table_bytes)
    assert load_toc(store, digest) == toc
    content = LayerContent(store.layer_path(digest), table)
    content.write(0, b"data")
    spoil(content, 2)
    content.close()
    found = check_store(store, repair=True, progress=lambda size: None)
    assert [(fault.kind, fault.chunk) for fault in found.rotten] == [("chunk", 2)]
    assert "expected zeros" in found.rotten[0].reason
    assert found.chunks == 3
    assert check_store(store, repair=False, progress=lambda size: None).rotten == []
    marks = (store.layer_path(digest) / "presence").read_bytes()[HEADER_SIZE:]
    assert list(marks) == [RESIDENT, ABSENT, RESIDENT, ABSENT, RESIDENT]


def test_a_toc_that_is_known_by_its_frame(tmp_path: Path) -> None:
    toc, _, table_bytes = made()
    layer = zstd_layer(FILES)
    place = find_layer_toc(layer.blob, layer.size, Claims())
    frame = layer.blob[place.start : place.end]
    store = Store(tmp_path / "store")
    save_layer(store, digest_of(frame), toc, table_bytes, frame=frame)
    assert load_toc(store, digest_of(frame)) == toc
    assert check_store(store, repair=False, progress=lambda size: None).rotten == []
    path = store.layer_path(digest_of(frame)) / "toc.zst"
    path.write_bytes(frame[:-1] + bytes([frame[-1] ^ 1]))
    assert load_toc(store, digest_of(frame)) is None
