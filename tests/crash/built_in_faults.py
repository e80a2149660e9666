"""Faults of order, built in on purpose: what finds none of them finds nothing.

Each is what a change could do by mistake: a sync that is missing, two steps that changed places.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.crash.cases import Outcome


def _skip(name: str, is_skipped: Callable[[str], bool]) -> None:
    """Have os.*name* do nothing for files whose path is told to be skipped."""
    real = getattr(os, name)

    def call(fd: int) -> None:
        if not is_skipped(os.readlink(f"/proc/self/fd/{fd}")):
            real(fd)

    setattr(os, name, call)


def content_is_not_synced() -> None:
    """The last close says that a map can be believed, and contents are still in memory."""
    _skip("fdatasync", lambda path: path.endswith("/content"))


def map_stays_clean() -> None:
    """Chunks are marked in a map that says on the disk that it was closed."""
    from lazyfs.store.content.content import LayerContent

    LayerContent._begin_marking = lambda self: None  # type: ignore[method-assign]


def marks_outlive_contents() -> None:
    """A layer is emptied, its contents first."""
    from lazyfs.digest import Digest
    from lazyfs.store.paths import Store
    from lazyfs.store.upkeep import evict

    def empty(store: Store, toc_digest: Digest) -> int:
        folder: Path = store.layer_path(toc_digest)
        (folder / "content").unlink()
        (folder / "presence").unlink()
        return 1 << 20

    evict.empty_layer = empty


def objects_are_not_synced() -> None:
    """Objects of a store get their names before their bytes are on the disk."""
    _skip("fsync", lambda path: "/.tmp/" in path)


def names_are_not_synced() -> None:
    """A snapshot is said to be made while its names are in memory."""
    _skip("fsync", lambda path: "/store" in path and os.path.isdir(path))


def files_before_the_manifest() -> None:
    """A snapshot is removed, and its name last."""
    from lazyfs.snapshot.stores.keys import manifest_key
    from lazyfs.snapshot.stores.snapshots import Snapshots

    def remove(self: Snapshots, snapshot_id: str) -> bool:
        state = self.state(snapshot_id)
        assert state is not None
        for stored in sorted(state.files, key=lambda each: each.key == manifest_key(snapshot_id)):
            self.objects.delete(stored.key)
        return True

    Snapshots.remove = remove  # type: ignore[method-assign]


def pointer_before_the_manifest() -> None:
    """A pointer is written where it can be seen before what it names."""
    from lazyfs.snapshot import publish
    from lazyfs.snapshot.stores.directory_store import DirectoryStore
    from lazyfs.snapshot.stores.pointers import encode_pointer

    real = publish.Snapshots.commit

    def commit(self: publish.Snapshots, manifest: publish.Manifest) -> str:
        digest = str(publish.digest_of(publish.encode_manifest(manifest)))
        pointer = publish.Pointer(manifest.snapshot.id, digest)
        objects = self.objects
        assert isinstance(objects, DirectoryStore)
        objects.put_if_absent("pointers/work.json", encode_pointer(pointer))
        return real(self, manifest)

    publish.Snapshots.commit = commit  # type: ignore[method-assign]


def layouts_are_not_synced() -> None:
    """Files of a layout get their names before their bytes are on the disk."""
    _skip("fsync", lambda path: "/.lazyfs-" in path)


def are_copies_believed(folder: Path) -> bool:
    """Say whether the marks of a layer that was copied are believed, in this run of the machine."""
    from lazyfs.store.content.content import LayerContent
    from lazyfs.store.content.presence import RESIDENT
    from lazyfs.store.paths import Store
    from tests.support.formats.layers import make_layer
    from tests.support.mounts.stores import keep_layer

    store = Store(folder / "cache")
    layer = make_layer([100, 5000])
    keep_layer(store, layer)
    copied = shutil.copytree(store.layer_path(layer.toc.digest), folder / "copied")
    content = LayerContent(copied, layer.table)
    try:
        return all(state == RESIDENT for state in content.states)
    finally:
        content.close()


Fault = Callable[[], None]
FAULTS: dict[str, Fault] = {
    each.__name__: each
    for each in (
        content_is_not_synced,
        map_stays_clean,
        marks_outlive_contents,
        objects_are_not_synced,
        names_are_not_synced,
        files_before_the_manifest,
        pointer_before_the_manifest,
        layouts_are_not_synced,
    )
}
# What a store believes by its order alone: nothing of it shows where copies are doubted.
OF_MARKS = ("content_is_not_synced", "map_stays_clean", "marks_outlive_contents")

# Fault → the case that must find it, and as what.
MUST_BE_FOUND: dict[str, tuple[str, set[Outcome]]] = {
    "content_is_not_synced": ("first use", {Outcome.BELIEVED, Outcome.WRONG}),
    "map_stays_clean": ("fill up", {Outcome.BELIEVED, Outcome.WRONG}),
    "marks_outlive_contents": ("evict", {Outcome.BELIEVED, Outcome.WRONG}),
    "objects_are_not_synced": ("checkpoint, raw", {Outcome.WRONG}),
    "names_are_not_synced": ("checkpoint", {Outcome.LOST}),
    "files_before_the_manifest": ("copy and remove", {Outcome.WRONG}),
    "pointer_before_the_manifest": ("checkpoint", {Outcome.WRONG}),
    "layouts_are_not_synced": ("convert", {Outcome.STUCK, Outcome.WRONG}),
}
