"""What sandboxes need stays in the store until they are gone; rests that nobody needs go."""

import os
import shutil
from pathlib import Path

import pytest

from lazyfs.digest import digest_of
from lazyfs.store.passes import PassRecord, load_pass, save_pass
from lazyfs.store.paths import Store
from lazyfs.store.pins import pinned_images, pinned_layers, remove_pin, save_pin, stale_pins
from lazyfs.store.quarantine import put_aside
from lazyfs.store.upkeep.evict import evict, remove_unused
from lazyfs.store.upkeep.removal import Pinned, empty_layer, remove_image, remove_layer
from lazyfs.store.usage import holdings_of, resident_size
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.mounts.stores import KeptImage, keep_image


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def holder(tmp_path: Path) -> Path:
    """The folder of the sandbox c1."""
    folder = tmp_path / "sandboxes" / "c1"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def image(store: Store, holder: Path) -> KeptImage:
    """An image that c1 needs, used long ago."""
    kept = keep_image(store, make_layer([300_000], seed=1), name="needed", used=100)
    save_pin(store, holder, [str(kept.manifest)])
    return kept


def is_full(store: Store, layer: MadeLayer) -> bool:
    resident, content = resident_size(store, layer.toc.digest)
    return resident == content > 0


def test_what_is_pinned_is_never_evicted(store: Store, image: KeptImage) -> None:
    other = keep_image(store, make_layer([300_000], seed=2), name="other", used=200)
    before = {path for path in store.blobs.glob("*/*") if path.name == image.config.hex}
    evict(store, 0, grace_seconds=-1)
    held = holdings_of(store)
    assert list(held.images) == [str(image.manifest)]
    assert held.images[str(image.manifest)].pinned_by == ("c1",)
    assert is_full(store, image.layers[0])
    assert not store.layer_path(other.layers[0].toc.digest).exists()
    assert all(path.exists() for path in before)
    remove_unused(store)
    assert is_full(store, image.layers[0])
    assert held.idle_size < 300_000 < held.allocated_size


def test_it_is_not_removed_by_name_either(store: Store, image: KeptImage, holder: Path) -> None:
    toc = image.layers[0].toc.digest
    for remove, digest in (
        (remove_image, image.manifest),
        (remove_layer, toc),
        (empty_layer, toc),
    ):
        with pytest.raises(Pinned, match="is needed by sandbox c1"):
            remove(store, digest)
    assert is_full(store, image.layers[0])
    remove_pin(store, holder)
    assert empty_layer(store, toc) >= 300_000
    assert remove_layer(store, toc) > 0
    assert remove_image(store, image.manifest) > 0
    remove_pin(store, holder)


def test_a_pin_that_comes_after_the_look_counts(
    store: Store, image: KeptImage, holder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pins are looked at under the layer's lock, after whoever evicts has made his list."""
    remove_pin(store, holder)
    held = holdings_of(store)

    def slow(_: Store) -> object:
        save_pin(store, holder, [str(image.manifest)])
        return held

    monkeypatch.setattr("lazyfs.store.upkeep.evict.holdings_of", slow)
    evict(store, 0)
    assert is_full(store, image.layers[0])


def test_a_layer_that_is_of_no_use_goes_all_the_same(store: Store, image: KeptImage) -> None:
    toc = image.layers[0].toc.digest
    assert remove_layer(store, toc, is_useless=True) > 0
    assert not store.layer_path(toc).exists()


def test_a_pin_ends_with_its_sandbox(store: Store, image: KeptImage, holder: Path) -> None:
    assert pinned_images(store) == {str(image.manifest): ["c1"]}
    assert pinned_layers(store) == {str(image.layers[0].toc.digest): ["c1"]}
    assert stale_pins(store) == []
    shutil.rmtree(holder)  # by hand
    assert pinned_images(store) == pinned_layers(store) == {}
    remove_unused(store)
    assert list(store.pins.iterdir()) == []
    assert remove_image(store, image.manifest) > 0


def test_sandboxes_of_one_name_hold_their_own(
    store: Store, image: KeptImage, holder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / "c1"
    other.mkdir(parents=True)
    save_pin(store, other, [str(image.manifest)] * 2)
    assert pinned_images(store) == {str(image.manifest): ["c1", "c1"]}
    remove_pin(store, holder)
    assert pinned_images(store) == {str(image.manifest): ["c1"]}
    save_pin(store, other, [])  # it needs something else by now
    assert pinned_images(store) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"holder": 1, "manifests": []}',
        b'{"holder": "/", "manifests": ["sha256:1"], "version": 2}',
        b"\xff\xfe",
    ],
)
def test_files_that_are_no_pins(store: Store, image: KeptImage, data: bytes) -> None:
    (store.pins / "stray").write_bytes(data)
    assert pinned_images(store) == {str(image.manifest): ["c1"]}
    assert stale_pins(store) == [store.pins / "stray"]


def test_a_pin_of_what_is_no_digest(store: Store, image: KeptImage, holder: Path) -> None:
    save_pin(store, holder, ["latest", str(digest_of(b"gone")), str(image.manifest)])
    assert list(pinned_layers(store)) == [str(image.layers[0].toc.digest)]


def test_rests_are_counted_and_go(store: Store, image: KeptImage) -> None:
    layer = image.layers[0]
    kept, lost = digest_of(b"kept"), digest_of(b"lost")
    for blob, toc in ((kept, layer.toc.digest), (lost, digest_of(b"no layer"))):
        save_pass(store, PassRecord(str(blob), 10, str(blob), 10, str(toc)))
    (store.passes / "stray").write_bytes(b"x")
    before = holdings_of(store).other_size
    put_aside(store, "00", b"x" * 100_000)
    assert holdings_of(store).other_size >= before + 100_000
    # by eviction, only what is older than its limit
    remove_unused(store, used_before=1.0)
    assert len(list(store.quarantine.iterdir())) == 1
    assert load_pass(store, lost) is not None
    assert remove_unused(store) >= 100_000
    assert list(store.quarantine.iterdir()) == []
    assert load_pass(store, kept) is not None
    assert [path.name for path in store.passes.iterdir()] == [kept.hex]
    (only,) = os.listdir(store.pins)
    assert only.startswith("c1-")
