"""Layers that are open for their twins only: how long, and never closed under a copy."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.digest import digest_of
from lazyfs.fetch.device import Device
from lazyfs.fetch.twins import Twin, Twins
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.oci.descriptor import Descriptor
from lazyfs.rootfs.table import LayerTable, build_table
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT, RESIDENT
from lazyfs.store.paths import Store
from lazyfs.store.usage import is_in_use
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.mounts.stores import keep_layer

SIZES = [50_000, 60_000, 70_000]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def old(store: Store) -> MadeLayer:
    """A layer that is here."""
    layer = make_layer(SIZES)
    keep_layer(store, layer)
    return layer


@pytest.fixture
def device(store: Store) -> Iterator[Device]:
    """Another layer, with the same chunks and one more; nothing of it is here."""
    layer = make_layer([*SIZES, 5000])
    content = LayerContent(store.layers / ("b" * 64), layer.table)
    yield Device(1, Descriptor("", layer.digest, len(layer.blob)), layer.table, content)
    content.close()


def test_layers_are_open_until_the_last_twin_is_copied(
    store: Store, old: MadeLayer, device: Device
) -> None:
    folder = store.layer_path(old.toc.digest)
    twins = Twins(store, [device])
    twins.search()
    assert is_in_use(folder)
    assert twins.copy(device, [0, 3]) == SIZES[0]
    assert is_in_use(folder)
    assert twins.copy(device, [1, 2]) == SIZES[1] + SIZES[2]
    assert not is_in_use(folder)
    assert list(device.content.states) == [RESIDENT] * 3 + [0]
    twins.close()


def test_layers_without_twins_are_not_kept_open(store: Store, device: Device) -> None:
    other = make_layer([4000], seed=9)
    keep_layer(store, other)
    twins = Twins(store, [device])
    twins.search()
    assert not is_in_use(store.layer_path(other.toc.digest))
    assert not twins.has(device, range(4))


def test_after_close_nothing_is_found_or_copied(
    store: Store, old: MadeLayer, device: Device
) -> None:
    twins = Twins(store, [device])
    twins.search()
    twins.close()
    assert not is_in_use(store.layer_path(old.toc.digest))
    assert not twins.has(device, range(4))
    assert twins.copy(device, [0]) == 0
    twins.search()
    assert not is_in_use(store.layer_path(old.toc.digest))


def claiming(digest: bytes, size: int) -> LayerTable:
    """Return the table of a layer of one file, which claims a digest and a size."""
    chunk = Chunk(0, size, 64, 0, digest, Codec.GZIP)
    entry = TocEntry(
        path=b"f", kind=Kind.REGULAR, mode=0o644, uid=0, gid=0, size=size, chunks=(chunk,)
    )
    return LayerTable(build_table(Toc(digest_of(b"claims"), (entry,)), 10_000))


def copied(store: Store, table: LayerTable) -> int:
    """Return how much of a layer with *table* comes out of other layers of *store*."""
    content = LayerContent(store.layers / ("c" * 64), table)
    twins = Twins(store, [Device(1, Descriptor("", digest_of(b"blob"), 10_000), table, content)])
    try:
        twins.search()
        size = twins.copy(twins._devices[0], [0])
        assert content.states[0] == (RESIDENT if size else ABSENT)
        return size
    finally:
        twins.close()
        content.close()


@pytest.mark.parametrize("more", [-1, 1, 100_000])
def test_a_digest_that_is_claimed_with_another_size_shows_nothing_of_other_layers(
    store: Store, old: MadeLayer, more: int
) -> None:
    """A longer one would get what lies behind the twin: files of an image of somebody else."""
    digest = old.table.digest(0)
    assert copied(store, claiming(digest, SIZES[0] + more)) == 0
    assert copied(store, claiming(digest, SIZES[0])) == SIZES[0]


def test_a_hole_is_no_twin_of_a_chunk_with_its_digest(store: Store) -> None:
    hole = Chunk(0, 8192, 0, 0, bytes(32), Codec.HOLE)
    entry = TocEntry(
        path=b"f", kind=Kind.REGULAR, mode=0o644, uid=0, gid=0, size=8192, chunks=(hole,)
    )
    toc = Toc(digest_of(b"hole"), (entry,))
    keep_layer(store, MadeLayer(b"", toc, LayerTable(build_table(toc, 100)), {}), chunks=range(0))
    assert copied(store, claiming(bytes(32), 8192)) == 0


class SlowContent:
    """A layer whose check takes until the test lets it end; knows whether it was closed before."""

    def __init__(self, table: LayerTable) -> None:
        self.states, self.table = [RESIDENT], table
        self.entered, self.goes_on = threading.Event(), threading.Event()
        self.is_closed = self.was_closed_early = False

    def is_right(self, chunk: int) -> bool:
        self.entered.set()
        assert self.goes_on.wait(30)
        self.was_closed_early = self.is_closed
        return False

    def close(self) -> None:
        self.is_closed = True


def test_closing_waits_for_a_copy(store: Store, device: Device) -> None:
    twins = Twins(store, [device])
    content: Any = SlowContent(device.table)
    twins._opened.append(content)
    twins._twins[1, 0] = Twin(content, 0)
    copier = threading.Thread(target=twins.copy, args=(device, [0]))
    copier.start()
    assert content.entered.wait(30)
    closer = threading.Thread(target=twins.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    assert not content.is_closed
    content.goes_on.set()
    closer.join(30)
    copier.join(30)
    assert content.is_closed
    assert not content.was_closed_early
