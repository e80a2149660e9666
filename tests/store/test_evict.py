"""Keeping the store within a budget, and removing images without what others need."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lazyfs.digest import Digest
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import RESIDENT
from lazyfs.store.images import load_image
from lazyfs.store.names import load_names
from lazyfs.store.paths import Store
from lazyfs.store.profiles import Profile, load_profile, save_profile
from lazyfs.store.upkeep.evict import evict, eviction_lock, remove_unused
from lazyfs.store.upkeep.removal import remove_image
from lazyfs.store.usage import holdings_of, layers_in, resident_size
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.mounts.stores import keep_image, keep_layer

NOW = time.time()
DAYS = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def layer_of(seed: int) -> MadeLayer:
    """Return a layer of 1 MB."""
    return make_layer([300_000, 700_000], seed=seed)


def is_full(store: Store, layer: MadeLayer) -> bool:
    resident, content = resident_size(store, layer.toc.digest)
    assert resident in (0, content)
    return resident == content


def blobs_of(store: Store) -> set[str]:
    return {path.name for path in store.blobs.glob("*/*")}


def hexes(*digests: Digest) -> set[str]:
    return {digest.hex for digest in digests}


def test_nothing_goes_within_the_budget(store: Store) -> None:
    keep_layer(store, layer_of(1), used=100)
    total = holdings_of(store).allocated_size
    assert total > 1_000_000
    done = evict(store, total)
    assert (done.freed_size, done.allocated_size) == (0, total)


def test_the_least_recently_used_layers_are_emptied_first(store: Store) -> None:
    layers = [layer_of(seed) for seed in range(3)]
    for layer, used in zip(layers, (300, 100, 200), strict=True):
        keep_image(store, layer, name=f"image{used}", used=used)
    total = holdings_of(store).allocated_size
    done = evict(store, total - 1_100_000)
    assert done.freed_size >= 1_100_000
    assert done.allocated_size == holdings_of(store).allocated_size == total - done.freed_size
    assert [is_full(store, layer) for layer in layers] == [True, False, False]
    assert len(holdings_of(store).images) == 3


def test_what_is_in_use_stays(store: Store) -> None:
    used, idle = layer_of(1), layer_of(2)
    image = keep_image(store, used, used=100)
    keep_image(store, idle, used=200)
    content = LayerContent(store.layer_path(used.toc.digest), used.table)
    assert evict(store, 0, grace_seconds=-1).freed_size > 1_000_000
    assert content.are_resident(range(used.table.count))
    assert list(holdings_of(store).images) == [str(image.manifest)]
    assert blobs_of(store) == hexes(image.manifest, image.config, image.index)
    content.close()


def test_images_go_when_contents_are_not_enough(store: Store) -> None:
    images = [
        keep_image(store, layer_of(seed), name=f"image{seed}", used=NOW - (10 - seed) * DAYS)
        for seed in range(3)
    ]
    for image in images:
        save_profile(store, image.manifest, Profile(str(image.manifest), 1, (), ()))
    empty = (
        sum(each.allocated_size for each in holdings_of(store).layers.values())
        - evict(store, 200_000).freed_size
    )
    assert empty < 200_000
    held = holdings_of(store)
    assert len(held.images) == 3
    done = evict(store, held.allocated_size - 10_000)
    assert done.allocated_size == holdings_of(store).allocated_size <= held.allocated_size - 10_000
    assert list(holdings_of(store).images) == [str(image.manifest) for image in images[1:]]
    assert blobs_of(store) == {
        digest.hex for image in images[1:] for digest in (image.manifest, image.config, image.index)
    }
    assert not store.layer_path(images[0].layers[0].toc.digest).exists()
    # What makes its next mount fast stays, and the name that it is found by.
    assert load_profile(store, images[0].manifest) is not None
    assert len(load_names(store)) == 3


def test_images_of_the_last_hour_stay(store: Store) -> None:
    keep_image(store, layer_of(1), used=NOW - 60)
    image = keep_image(store, layer_of(2), used=NOW - 2 * DAYS)
    assert load_image(store, image.manifest) is not None  # that is a use, too
    evict(store, 0)
    assert len(holdings_of(store).images) == 2


def test_a_large_mount_does_not_cost_the_indexes_of_others(store: Store) -> None:
    """Emptying what can be emptied is all that helps: a quick mount is not given up for nothing."""
    large, small = layer_of(1), layer_of(2)
    keep_image(store, large, used=NOW - 2 * DAYS)
    keep_image(store, small, used=NOW - 3 * DAYS)
    content = LayerContent(store.layer_path(large.toc.digest), large.table)
    evict(store, 500_000)
    assert not is_full(store, small)
    assert len(holdings_of(store).images) == 2
    content.close()


def test_layers_and_rests_that_belong_to_nothing_go_in_the_end(store: Store) -> None:
    keep_layer(store, layer_of(1), used=NOW - DAYS)
    keep_layer(store, layer_of(2), used=NOW)
    old, new = store.tmp / "1-old", store.tmp / "2-new"
    old.mkdir()
    (old / "index.erofs").write_bytes(bytes(9999))
    new.write_bytes(bytes(9999))
    os.utime(old, (NOW - DAYS, NOW - DAYS))
    evict(store, 0)
    assert [usage.toc_digest for usage in layers_in(store)] == [layer_of(2).toc.digest]
    assert list(store.tmp.iterdir()) == [new]


def test_several_processes_evict_no_more_than_one_would(store: Store) -> None:
    layers = [layer_of(seed) for seed in range(6)]
    for seed, layer in enumerate(layers):
        keep_layer(store, layer, used=NOW - DAYS - seed)
    total = holdings_of(store).allocated_size
    code = (
        "import sys; from pathlib import Path\n"
        "from lazyfs.store.upkeep.evict import evict; from lazyfs.store.paths import Store\n"
        "sys.stdin.readline()\n"
        "print(evict(Store(Path(sys.argv[1])), int(sys.argv[2])).freed_size)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store.root), str(total - 2_500_000)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    freed = [int(process.communicate("\n", timeout=60)[0]) for process in processes]
    assert 2_500_000 <= sum(freed) < 3_500_000
    assert sum(is_full(store, layer) for layer in layers) == 3


def test_who_is_stopped_while_evicting_does_not_stop_others(store: Store) -> None:
    with eviction_lock(store) as is_first:
        assert is_first
        with eviction_lock(store, 0.01) as is_second:
            assert not is_second
    with eviction_lock(store, 0.01) as is_third:
        assert is_third


def test_layers_are_opened_while_they_are_evicted(store: Store) -> None:
    """Whatever comes first, a mount never believes a mark without its bytes."""
    layer = layer_of(1)
    stop = threading.Event()

    def evict_on() -> None:
        while not stop.is_set():
            evict(store, 0)

    keep_layer(store, layer)
    evictor = threading.Thread(target=evict_on)
    evictor.start()
    try:
        for _ in range(50):
            content = LayerContent(store.layer_path(layer.toc.digest), layer.table)
            for chunk in range(layer.table.count):
                if content.states[chunk] == RESIDENT:
                    assert content.check(chunk)
                else:
                    content.write(chunk, list(layer.files.values())[chunk])
            assert all(content.check(chunk) for chunk in range(layer.table.count))
            content.close()
    finally:
        stop.set()
        evictor.join(30)


# Removing images


def test_an_image_goes_with_all_that_only_it_needs(store: Store) -> None:
    shared = layer_of(1)
    one = keep_image(store, shared, layer_of(2), name="one")
    other = keep_image(store, shared, layer_of(3), name="other")
    save_profile(store, one.manifest, Profile(str(one.manifest), 1, (), ()))
    assert remove_image(store, one.manifest) > 0
    assert list(holdings_of(store).images) == [str(other.manifest)]
    assert blobs_of(store) == hexes(other.manifest, other.config, other.index)
    assert load_profile(store, one.manifest) is None
    assert [record.name for record in load_names(store)] == ["other"]
    remove_image(store, other.manifest)
    assert blobs_of(store) == set()


def test_documents_that_images_share_stay_with_the_last(store: Store) -> None:
    """Two manifests with one config, both listed by one index."""
    layer = layer_of(1)
    one = keep_image(store, layer, name="one")
    other = keep_image(store, layer, name="other")
    assert one.config == other.config
    remove_image(store, one.manifest)
    assert blobs_of(store) == hexes(other.manifest, other.config, other.index)


def test_an_image_without_a_record_goes_too(store: Store) -> None:
    image = keep_image(store, layer_of(1))
    (store.image_path(image.manifest) / "record.json").write_bytes(b"{")
    remove_image(store, image.manifest)
    assert blobs_of(store) == set()
    assert list(store.images.iterdir()) == []


def test_what_is_unused_goes_and_the_rest_stays(store: Store) -> None:
    image = keep_image(store, layer_of(1), name="kept")
    gone = keep_image(store, layer_of(2), name="gone")
    profiled = keep_image(store, layer_of(3), name="profiled")
    save_profile(store, profiled.manifest, Profile(str(profiled.manifest), 1, (), ()))
    for each in (gone, profiled):
        (store.image_path(each.manifest) / "record.json").write_bytes(b"of another version")
    assert remove_unused(store) > 2_000_000
    assert list(holdings_of(store).images) == [str(image.manifest)]
    assert [usage.toc_digest for usage in layers_in(store)] == [layer_of(1).toc.digest]
    assert blobs_of(store) == hexes(image.manifest, image.config, image.index)
    assert [record.name for record in load_names(store)] == ["kept", "profiled"]
    assert len(list(store.images.iterdir())) == 1
