"""Garbage in a store: what goes, and what never does."""

import json
import os
import time
from pathlib import Path

import pytest

from lazyfs.digest import digest_of
from lazyfs.documents.errors import BaseCorrupt, StoreFailed
from lazyfs.snapshot.stores.collect import collect
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.keys import manifest_key
from lazyfs.snapshot.stores.snapshots import Snapshots
from tests.support.sandboxes.snapshots import FaultyStore, draft, store

DAY = 24 * 3600.0
NOW = 1_800_000_000.0
OLD_ID, YOUNG_ID, CLAIMED_ID, DONE_ID = (
    time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime(NOW - age * DAY)) + f"{number:08x}"
    for number, age in enumerate((3, 0, 3, 3))
)
TYPE = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def objects(tmp_path: Path) -> FaultyStore:
    """A store with four snapshots: old and young ones unfinished, one claimed, one complete."""
    objects = FaultyStore(tmp_path / "store")
    for snapshot_id in (OLD_ID, YOUNG_ID, CLAIMED_ID):
        store(objects, draft(tmp_path, snapshot_id), is_committed=False)
    store(objects, draft(tmp_path, DONE_ID))
    age(objects, "")
    age(objects, f"snapshots/{YOUNG_ID}", NOW - 60)
    return objects


def age(objects: DirectoryStore, prefix: str, moment: float = NOW - 3 * DAY) -> None:
    """Have everything below *prefix* be of that time."""
    for stored in objects.list(prefix):
        os.utime(objects.path / stored.key, (moment, moment))


def test_old_partials_go_and_nothing_else(objects):
    """Scenario 53, F19."""
    (objects.path / ".tmp/1-00000000000000aa").write_bytes(b"")
    os.utime(objects.path / ".tmp/1-00000000000000aa", (NOW - 3 * DAY, NOW - 3 * DAY))
    done = collect(objects, now=NOW, grace=DAY, claimed={CLAIMED_ID}, is_dry_run=True)
    assert [state.id for state in done.partials] == [OLD_ID]
    assert done.uploads is None
    assert len(Snapshots(objects).states()) == 4
    done = collect(objects, now=NOW, grace=DAY, claimed={CLAIMED_ID})
    assert [state.id for state in done.partials] == [OLD_ID]
    assert [(state.id, why) for state, why in done.spared] == [
        (CLAIMED_ID, "claimed"),
        (YOUNG_ID, "young"),
    ]
    assert done.uploads == 1
    assert done.size > 0
    assert {state.id for state in Snapshots(objects).states()} == {DONE_ID, CLAIMED_ID, YOUNG_ID}
    loaded = Snapshots(objects).load(DONE_ID)
    assert Snapshots(objects).verify(loaded, deep=True) == []


def test_no_grace_takes_the_young_but_not_the_claimed(objects):
    done = collect(objects, now=NOW, grace=0, claimed={CLAIMED_ID})
    assert {state.id for state in done.partials} == {OLD_ID, YOUNG_ID}
    assert {state.id for state in Snapshots(objects).states()} == {CLAIMED_ID, DONE_ID}


def test_what_is_committed_meanwhile_stays(objects, monkeypatch):
    """Somebody on another machine goes on with a partial that is old."""
    made = draft(objects.path.parent / "again", OLD_ID)
    size = objects.size

    def size_after_commit(key: str) -> int | None:
        if key == manifest_key(OLD_ID):
            monkeypatch.undo()
            Snapshots(objects).commit(made.manifest)
        return size(key)

    monkeypatch.setattr(objects, "size", size_after_commit)
    done = collect(objects, now=NOW, grace=DAY, claimed={CLAIMED_ID})
    assert done.partials == ()
    assert Snapshots(objects).verify(Snapshots(objects).load(OLD_ID), deep=True) == []


def test_foreign_objects_stay(objects):
    for key in ("snapshots/of-somebody/file", "other/file", "snapshots/file"):
        objects.put_if_absent(key, b"")
    age(objects, "")
    collect(objects, now=NOW, grace=0)
    for key in ("snapshots/of-somebody/file", "other/file", "snapshots/file"):
        assert objects.size(key) == 0


def embed(objects: FaultyStore, snapshot_id: str, *layers: bytes) -> list[str]:
    """Embed an image of these layers; return the names of its blobs."""
    blobs = {str(digest_of(data)): data for data in (b"config", *layers)}
    described = [{"mediaType": "x/y", "digest": d, "size": len(b)} for d, b in blobs.items()]
    document = {"schemaVersion": 2, "config": described[0], "layers": described[1:]}
    manifest = json.dumps(document).encode()
    Snapshots(objects).embed(snapshot_id, manifest, TYPE, blobs)
    return [name.partition(":")[2] for name in (str(digest_of(manifest)), *blobs)]


def blobs_in(objects: DirectoryStore) -> set[str]:
    return {each.key.rpartition("/")[2] for each in objects.list("base/blobs/")}


def test_embedded_images_go_with_their_last_snapshot(objects):
    old = embed(objects, OLD_ID, b"shared", b"old")
    done = embed(objects, DONE_ID, b"shared", b"done")
    young = embed(objects, YOUNG_ID, b"young")
    age(objects, "base/")
    dry = collect(objects, now=NOW, grace=DAY, is_dry_run=True)
    assert blobs_in(objects) == {*old, *done, *young}
    found = collect(objects, now=NOW, grace=DAY)
    assert {each.key for each in found.blobs} == {each.key for each in dry.blobs}
    assert blobs_in(objects) == {*done, *young}
    index = json.loads(objects.get("base/index.json", 1 << 20))
    assert {each["digest"].partition(":")[2] for each in index["manifests"]} == {done[0], young[0]}
    Snapshots(objects).remove(DONE_ID)
    age(objects, "base/")
    collect(objects, now=NOW, grace=DAY)
    assert blobs_in(objects) == set(young)


def test_blobs_that_were_just_stored_stay(objects):
    """Of a snapshot whose first file is still to come."""
    embed(objects, OLD_ID, b"layer")
    age(objects, "base/", NOW - 60)
    collect(objects, now=NOW, grace=DAY)
    assert len(blobs_in(objects)) == 3


def test_a_claim_spares_an_image(objects):
    blobs = embed(objects, CLAIMED_ID, b"layer")
    age(objects, "base/")
    collect(objects, now=NOW, grace=DAY, claimed={CLAIMED_ID})
    assert blobs_in(objects) == set(blobs)


def test_what_cannot_be_read_is_not_collected(objects):
    """Nobody knows what a damaged image needs."""
    blobs = embed(objects, DONE_ID, b"layer")
    (objects.path / "base/blobs/sha256" / blobs[0]).write_bytes(b"damaged")
    age(objects, "base/")
    with pytest.raises(BaseCorrupt):
        collect(objects, now=NOW, grace=DAY)
    (objects.path / "base/index.json").write_bytes(b"{")
    with pytest.raises(StoreFailed):
        collect(objects, now=NOW, grace=DAY)
    assert len(blobs_in(objects)) == 3


def test_an_empty_store(tmp_path):
    done = collect(DirectoryStore(tmp_path / "none"), now=NOW)
    assert (done.partials, done.blobs, done.uploads, done.spared) == ((), (), 0, ())
    assert not (tmp_path / "none").exists()
