"""What a loss of power leaves of single files, by hand: one test for each that was mended."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lazyfs.documents.errors import CheckpointLost, RuntimeFailed, StoreFailed
from lazyfs.documents.journal import SandboxBroken, State
from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.errors import StoreError
from lazyfs.image.open import ImageGone
from lazyfs.sandbox.runtimes import staged
from lazyfs.sandbox.sandbox import Sandbox
from lazyfs.snapshot import recover as recovering
from lazyfs.snapshot.draft import IMAGE, STORED
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.removal import remove_layer
from tests.crash.cases import Place
from tests.crash.store_cases import cache_of, look, make_image
from tests.support.formats.layers import make_layer
from tests.support.mounts.stores import keep_layer
from tests.support.sandboxes import fake_runtime
from tests.support.sandboxes.world import Machine, machine

LOST = [b"", bytes(300), b'{"sandboxId": "c1"' + bytes(200)]
TORN = b'{"sandboxId": "c1", "sta'


@pytest.fixture
def node(tmp_path: Path) -> Machine:
    return machine(tmp_path)


def begun(node: Machine, data: bytes) -> Sandbox:
    """Return a sandbox of whose journal that is left."""
    sandbox = node.sandboxes.create("c1")
    sandbox.journal_path.write_bytes(data)
    return sandbox


@pytest.mark.parametrize("data", LOST)
def test_a_journal_that_was_lost_is_none(node: Machine, data: bytes) -> None:
    for use in (recovering.recover, lambda *words: recovering.delete(*words, force=False)):
        sandbox = begun(node, data)
        with sandbox.lock():
            assert use(sandbox, node.checkpoint_tools()) is None
        assert not sandbox.folder.exists()


def test_a_journal_that_cannot_be_read_is_removed_by_force_only(node: Machine) -> None:
    sandbox = begun(node, TORN)
    tools = node.checkpoint_tools()
    with sandbox.lock():
        with pytest.raises(SandboxBroken) as caught:
            recovering.delete(sandbox, tools, force=False)
        assert caught.value.hint == "lazyfs delete --force c1 removes what is left"
        recovering.delete(sandbox, tools, force=True)
    assert not sandbox.folder.exists()
    node.run("c1")


def interrupted(node: Machine, **fields: Any) -> Sandbox:
    """Return a sandbox whose checkpoint could not be sent."""
    sandbox = node.run("c1")
    node.count()
    node.objects = _Away(Path(node.store))
    with pytest.raises(StoreFailed):
        node.checkpoint("c1", **fields)
    node.objects = None
    return sandbox


class _Away(DirectoryStore):
    def put_if_absent(self, key: str, data: bytes) -> bool:
        raise StoreFailed("store: got no answer")


@pytest.mark.parametrize("data", [*LOST, TORN])
def test_a_draft_that_was_lost_means_a_checkpoint_that_was(node: Machine, data: bytes) -> None:
    """Drafts are synced once the files are compressed; the journal says CHECKPOINTING till then."""
    sandbox = interrupted(node)
    journal = sandbox.journal()
    assert journal is not None
    sandbox.save(msgspec.structs.replace(journal, state=State.CHECKPOINTING))
    sandbox.draft_path.write_bytes(data)
    with pytest.raises(CheckpointLost):
        node.resume()
    assert node.state() is State.FAILED


def test_a_draft_that_was_synced_and_is_damaged_is_told(node: Machine) -> None:
    sandbox = interrupted(node)
    sandbox.draft_path.write_bytes(TORN)
    with pytest.raises(SandboxBroken):
        node.resume()
    assert node.state() is State.UPLOADING


def test_files_that_have_become_others_are_not_compressed_again(node: Machine) -> None:
    """The runtime's are not synced: with the stored ones gone, they are zeros of their sizes."""
    sandbox = interrupted(node)
    (folder,) = (sandbox.folder / "checkpoints").iterdir()
    for path in (folder / STORED).iterdir():
        path.unlink()
    pages = folder / IMAGE / "pages.img"
    os.truncate(pages, 0)
    os.truncate(pages, fake_runtime.PAGES_SIZE)
    with pytest.raises(CheckpointLost, match="as it was saved"):
        node.resume()
    assert node.snapshots.ids() == []


def test_stored_files_that_are_gone_are_made_again(node: Machine) -> None:
    sandbox = interrupted(node)
    (folder,) = (sandbox.folder / "checkpoints").iterdir()
    shutil.rmtree(folder / STORED)
    made = node.resume()
    assert made is not None
    assert node.snapshots.ids() == [made.id]


@pytest.mark.parametrize("data", LOST)
def test_what_was_known_of_a_process_is_gone_with_it(tmp_path: Path, data: bytes) -> None:
    plan = SandboxPlan("c1", tmp_path, tmp_path, ())
    container = ContainerPlan("main", "c1.main", tmp_path, is_root=True)
    path = tmp_path / "c1.main.json"
    path.write_bytes(data)
    assert staged._load(plan, container) is None
    path.write_bytes(TORN)
    with pytest.raises(RuntimeFailed):
        staged._load(plan, container)


# The store


@pytest.mark.parametrize("data", [b"", b"\0\0"])
def test_a_version_that_was_lost_is_written_again(tmp_path: Path, data: bytes) -> None:
    root = tmp_path / "cache"
    Store(root)
    (root / "version").write_bytes(data)
    Store(root)
    assert (root / "version").read_bytes() == b"1\n"
    (root / "version").write_bytes(data)
    (root / "mine").write_bytes(b"somebody's")
    with pytest.raises(StoreError, match="mine"):
        Store(root)


def test_a_layer_table_that_was_lost_is_refused_once_at_most(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.clear()
    place.make_disks()
    make_image(place.outside / "image")
    look(place)
    table = next(cache_of(place).glob("layers/*/table"))
    table.write_bytes(bytes(table.stat().st_size))
    with suppress(ImageGone):
        look(place)
    look(place)


def test_a_layer_is_removed_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle, no marks are left of which the content is gone."""
    store = Store(tmp_path / "cache")
    layer = make_layer([100, 5000])
    keep_layer(store, layer)

    def killed(path: Path, **words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_layer(store, layer.toc.digest)
    assert not store.layer_path(layer.toc.digest).exists()
    assert list(store.tmp.rglob("content"))
    assert not list(store.tmp.rglob("presence"))


def test_a_chunk_that_was_forgotten_is_not_marked_again(tmp_path: Path) -> None:
    """The mark's end is on the disk before anything else says that the map can be believed."""
    store = Store(tmp_path / "cache")
    layer = make_layer([100, 5000])
    keep_layer(store, layer)
    content = LayerContent(store.layer_path(layer.toc.digest), layer.table)
    content.forget(0)
    assert content.states[0] == ABSENT
    map_path = store.layer_path(layer.toc.digest) / "presence"
    before_close = map_path.read_bytes()
    content.close()
    assert before_close[:32] != map_path.read_bytes()[:32]  # it was unclean meanwhile
