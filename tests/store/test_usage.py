"""What the store holds, and what uses it."""

import os
from pathlib import Path

import pytest

from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT
from lazyfs.store.layers import load_table, load_toc, save_layer
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.removal import LayerInUse, empty_layer, remove_layer
from lazyfs.store.usage import holdings_of, layers_in, resident_size
from tests.store.test_content import fill
from tests.support.formats.layers import MadeLayer, make_layer


def put(store: Store, seed: int, when: float) -> MadeLayer:
    """Store a full layer of about 1 MB that was last used at *when*."""
    layer = make_layer([300_000, 700_000], seed=seed)
    folder = store.layer_path(layer.toc.digest)
    folder.mkdir()
    content = LayerContent(folder, layer.table)
    fill(content, layer)
    content.close()
    os.utime(folder / "presence", (when, when))
    return layer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_layers_are_listed_least_recently_used_first(store: Store) -> None:
    old, new = put(store, 1, 100.0), put(store, 2, 200.0)
    usages = layers_in(store)
    assert [usage.toc_digest for usage in usages] == [old.toc.digest, new.toc.digest]
    assert [usage.last_used for usage in usages] == [100.0, 200.0]
    assert all(1_000_000 <= usage.allocated_size < 1_100_000 for usage in usages)
    assert not any(usage.is_in_use for usage in usages)


def test_what_is_in_use_is_neither_removed_nor_emptied(store: Store) -> None:
    layer = put(store, 1, 100.0)
    content = LayerContent(store.layer_path(layer.toc.digest), layer.table)
    assert layers_in(store)[0].is_in_use
    with pytest.raises(LayerInUse):
        remove_layer(store, layer.toc.digest)
    with pytest.raises(LayerInUse):
        empty_layer(store, layer.toc.digest)
    assert content.are_resident(range(layer.table.count))
    content.close()
    assert not layers_in(store)[0].is_in_use
    assert remove_layer(store, layer.toc.digest) >= 1_000_000
    assert layers_in(store) == []


def test_an_emptied_layer_is_absent_and_can_be_filled_again(store: Store) -> None:
    layer = put(store, 1, 100.0)
    assert empty_layer(store, layer.toc.digest) >= 1_000_000
    content = LayerContent(store.layer_path(layer.toc.digest), layer.table)
    assert set(content.states) == {ABSENT}
    fill(content, layer)
    assert content.read(0, 300_000) == layer.files[b"file0000"]
    content.close()


def test_a_layer_that_is_opened_becomes_the_most_recent(store: Store) -> None:
    old, _ = put(store, 1, 100.0), put(store, 2, 200.0)
    LayerContent(store.layer_path(old.toc.digest), old.table).close()
    assert layers_in(store)[-1].toc_digest == old.toc.digest


def test_being_emptied_is_no_use(store: Store) -> None:
    layer = put(store, 1, 100.0)
    empty_layer(store, layer.toc.digest)
    assert layers_in(store)[0].last_used == 100.0


def test_layers_without_an_image_are_orphans(store: Store) -> None:
    layer = put(store, 1, 100.0)
    held = holdings_of(store)
    assert [usage.toc_digest for usage in held.orphans()] == [layer.toc.digest]
    assert held.users_of(str(layer.toc.digest)) == []


def test_resident_size(store: Store) -> None:
    layer = make_layer([300_000, 700_000, 5])
    digest = layer.toc.digest
    assert resident_size(store, digest) == (0, 0)
    save_layer(store, digest, b"{}", bytes(layer.table.buffer))
    assert resident_size(store, digest) == (0, 1_000_005)
    content = LayerContent(store.layer_path(digest), layer.table)
    content.write(1, layer.files[b"file0001"])
    assert resident_size(store, digest) == (700_000, 1_000_005)
    fill(content, layer)
    assert resident_size(store, digest) == (1_000_005, 1_000_005)
    content.close()


def test_a_layer_without_content_is_removed_too(store: Store) -> None:
    layer = make_layer([10])
    save_layer(store, layer.toc.digest, b"{}", b"")
    remove_layer(store, layer.toc.digest)
    assert not store.layer_path(layer.toc.digest).exists()
    assert load_toc(store, layer.toc.digest) is None
    assert load_table(store, layer.toc.digest) is None
