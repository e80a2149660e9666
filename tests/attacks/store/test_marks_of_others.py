"""Marks that one user of a layer does not believe are believed by no other, whoever else has it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from lazyfs.fetch.device import Device
from lazyfs.fetch.doubts import Doubts
from lazyfs.oci.descriptor import Descriptor
from lazyfs.store.completeness import survey_layer
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import DOUBTFUL, RESIDENT, read_header, write_header
from lazyfs.store.content.unwritten import ReadOnlyContent
from lazyfs.store.paths import Store
from lazyfs.store.upkeep import check
from lazyfs.store.upkeep.check import check_store
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.mounts.stores import keep_layer

SIZES = [40_000, 50_000, 60_000]


@pytest.fixture
def layer() -> MadeLayer:
    return make_layer(SIZES)


@pytest.fixture
def folder(tmp_path: Path, layer: MadeLayer) -> Path:
    """All of a layer, left clean, and one byte of it changed since."""
    content = LayerContent(tmp_path / "layer", layer.table)
    for chunk, data in enumerate(layer.files.values()):
        content.write(chunk, data)
    content.close()
    with (tmp_path / "layer/content").open("r+b") as file:
        file.write(b"rot")
    return tmp_path / "layer"


@contextmanager
def header_of(folder: Path) -> Iterator[int]:
    fd = os.open(folder / "presence", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def leave_unclean(folder: Path) -> None:
    """Leave the map as a server that was killed does."""
    with header_of(folder) as fd:
        header = read_header(fd)
        assert header is not None
        write_header(fd, replace(header, is_clean=False))


def test_a_part_of_the_marks_is_not_left_believed(
    folder: Path, layer: MadeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1], at))
    content = LayerContent(folder, layer.table)
    assert set(content.states) == {DOUBTFUL}
    content.close()


def test_who_checks_the_store_makes_no_mount_believe_what_it_has_not_hashed(
    tmp_path: Path, layer: MadeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    keep_layer(store, layer)
    folder = store.layer_path(layer.toc.digest)
    with (folder / "content").open("r+b") as file:
        file.seek(layer.table.device_offset(2))
        file.write(b"rot")
    mounted: list[LayerContent] = []

    class Interrupted(Exception):
        pass

    def progress(size: int) -> None:
        mounted.append(LayerContent(folder, layer.table))
        raise Interrupted

    monkeypatch.setattr(check, "load_toc", lambda *_: b"{}")
    monkeypatch.setattr(check, "_why_other", lambda *_: None)
    with pytest.raises(Interrupted):
        check_store(store, repair=True, progress=progress)
    (mount,) = mounted
    assert list(mount.states) == [RESIDENT, DOUBTFUL, DOUBTFUL]
    mount.write(0, b"")
    mount.close()
    again = LayerContent(folder, layer.table)
    assert again.states[2] == DOUBTFUL, "nor did the last of them leave it as believed"
    again.close()


def test_what_is_doubted_is_hashed_once(
    tmp_path: Path, layer: MadeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    keep_layer(store, layer)
    hashed: list[int] = []
    real = LayerContent._hash

    def count(self: LayerContent, chunk: int) -> tuple[bool, bool]:
        hashed.append(chunk)
        return real(self, chunk)

    monkeypatch.setattr(LayerContent, "_hash", count)
    monkeypatch.setattr(check, "load_toc", lambda *_: b"{}")
    monkeypatch.setattr(check, "_why_other", lambda *_: None)
    for look in (
        lambda: check_store(store, repair=False, progress=lambda _: None),
        lambda: survey_layer(store, layer.toc.digest),
    ):
        leave_unclean(store.layer_path(layer.toc.digest))
        hashed.clear()
        look()
        assert hashed == [0, 1, 2]


@pytest.mark.parametrize("is_clean", [True, False])
def test_who_only_reads_doubts_for_nobody_else(
    folder: Path, layer: MadeLayer, is_clean: bool
) -> None:
    """The first one doubts in memory: for the map it has done nothing."""
    if not is_clean:
        leave_unclean(folder)
    first = ReadOnlyContent(folder, layer.table)
    second = ReadOnlyContent(folder, layer.table)
    third = LayerContent(folder, layer.table)
    fourth = LayerContent(folder, layer.table)
    fifth = ReadOnlyContent(folder, layer.table)
    for content in (first, second, third, fourth, fifth):
        assert set(content.states) == {DOUBTFUL}
        assert not content.is_right(0)
        content.close()


def test_what_a_user_marks_is_believed_by_those_who_come_while_it_lives(
    folder: Path, layer: MadeLayer
) -> None:
    reading = ReadOnlyContent(folder, layer.table)
    marking = LayerContent(folder, layer.table)
    assert marking.confirm(1)
    pin = marking.open_pin()
    marking.close()  # and who has its locks lives on, as a keeper does
    try:
        for kind in (LayerContent, ReadOnlyContent):
            content = kind(folder, layer.table)
            assert list(content.states) == [DOUBTFUL, RESIDENT, DOUBTFUL]
            content.close()
    finally:
        os.close(pin)
    content = LayerContent(folder, layer.table)  # not alone: one who only reads is there
    assert set(content.states) == {DOUBTFUL}
    content.close()
    reading.close()


@pytest.mark.anyio
async def test_what_another_user_doubts_was_shown(folder: Path, layer: MadeLayer) -> None:
    """Nothing was shown when the layer was opened; but then a chunk was right, and was read."""
    content = LayerContent(folder, layer.table)
    assert not content.was_shown
    device = Device(1, Descriptor("", layer.digest, len(layer.blob)), layer.table, content)
    doubts = Doubts(trio.CapacityLimiter(1))
    told: list[int] = []
    doubts.dropped = lambda _, chunks: told.extend(chunks)
    await doubts.confirm(device, [0])
    assert told == [], "it was wrong before anybody could read it"
    await doubts.confirm(device, [1, 2])
    with (folder / "content").open("r+b") as file:
        file.seek(layer.table.device_offset(2))
        file.write(b"rot")
    other = LayerContent(folder, layer.table)
    other.doubt()
    other.close()
    await doubts.confirm(device, [1, 2])
    assert told == [2]
    content.close()
