"""What a sandbox needs stays in the cache through all of its states, until it is removed."""

from pathlib import Path

from lazyfs.documents.journal import State
from lazyfs.snapshot.recover import delete
from lazyfs.store.paths import Store
from lazyfs.store.pins import pinned_images, save_pin
from tests.support.sandboxes.world import TAG, machine


def test_a_sandbox_that_has_stopped_needs_its_images(tmp_path: Path) -> None:
    """Its snapshot, wherever that is, is to go on from them."""
    here = machine(tmp_path)
    store = Store(tmp_path / "cache")
    needed = here.images.tags[f"docker.io/library/{TAG}"].manifest
    here.run(cache_dir=str(store.root))
    made = here.checkpoint(pointer="latest")
    assert here.state() is State.STOPPED
    assert pinned_images(store) == {needed: ["c1"]}
    # Given another one that is restored from it, when its images are looked for, then they are
    # pinned.
    found: list[dict[str, list[str]]] = []

    def look(call: str) -> None:
        if call == "obtain":
            found.append(pinned_images(store))

    here.bases.on_call = look
    here.restore(made.id, "r1", cache_dir=str(store.root))
    assert found == [{needed: ["c1", "r1"]}]
    for name, left in (("c1", {needed: ["r1"]}), ("r1", {})):
        delete(here.sandbox(name), here.checkpoint_tools(), force=True)
        assert pinned_images(store) == left
    assert list(store.pins.iterdir()) == []


def test_a_sandbox_whose_journal_is_damaged_holds_nothing_once_it_is_gone(tmp_path: Path) -> None:
    here = machine(tmp_path)
    store = Store(tmp_path / "cache")
    sandbox = here.sandboxes.create("c1")
    save_pin(store, sandbox.folder, ["sha256:" + "1" * 64])
    sandbox.journal_path.write_bytes(b"{")
    assert pinned_images(store)
    sandbox.remove()
    assert pinned_images(store) == {}
