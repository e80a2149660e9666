"""Snapshots in a store: committed last, read first, pointers that move one step at a time."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import trio

from lazyfs.digest import digest_of, parse_digest
from lazyfs.documents.errors import (
    BaseCorrupt,
    BaseUnavailable,
    FileCorrupt,
    FileMissing,
    ManifestInvalid,
    ManifestMissing,
    NoSpace,
    StoreConflict,
    StoreFailed,
    VersionUnsupported,
)
from lazyfs.documents.manifest import Layer
from lazyfs.registry.layout import ImageLayout
from lazyfs.snapshot.stores import embedding
from lazyfs.snapshot.stores.collect import collect
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.keys import BadKey, manifest_key, pointer_key
from lazyfs.snapshot.stores.objects import stopping
from lazyfs.snapshot.stores.pointers import Pointer, decode_pointer
from lazyfs.snapshot.stores.snapshots import ID_RE, Snapshots, new_id
from lazyfs.snapshot.stores.stores import BadStore, open_objects, parse_snapshot_name
from lazyfs.snapshot.stores.transfer import copy_snapshot
from tests.support.sandboxes.snapshots import (
    CONTENTS,
    ID,
    LATER_ID,
    Draft,
    FaultyStore,
    draft,
    image,
    store,
)

SECONDS = 60


@pytest.fixture
def objects(tmp_path: Path) -> FaultyStore:
    return FaultyStore(tmp_path / "store")


@pytest.fixture
def snapshots(objects: FaultyStore) -> Snapshots:
    return Snapshots(objects)


@pytest.fixture
def made(tmp_path: Path) -> Draft:
    return draft(tmp_path)


def test_there_and_back(snapshots, objects, made, tmp_path):
    store(objects, made)
    loaded = snapshots.load(ID)
    assert (loaded.id, loaded.digest, loaded.data) == (ID, made.digest, made.data)
    assert loaded.manifest == made.manifest
    snapshots.download(loaded, tmp_path / "back")
    found = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert found == CONTENTS
    assert snapshots.verify(loaded, deep=True) == []
    assert snapshots.ids() == [ID]


def test_the_layout(snapshots, objects, made):
    store(objects, made)
    snapshots.move_pointer("latest", Pointer(ID, made.digest), None)
    assert [stored.key for stored in objects.list("")] == [
        "pointers/latest.json",
        *(f"snapshots/{ID}/{name}.zstd" for name in sorted(CONTENTS)),
        f"snapshots/{ID}/snapshot-manifest.json",
    ]
    assert json.loads(objects.get("pointers/latest.json", 999)) == {
        "id": ID,
        "manifestDigest": made.digest,
        "version": 1,
    }


def test_the_manifest_is_written_last(objects, made):
    store(objects, made)
    assert objects.writes[-1] == manifest_key(ID)
    assert len(objects.writes) == 4


def test_ids_sort_by_time():
    ids = [new_id(moment) for moment in (0, 1e9, 1.8e9)]
    assert ids == sorted(ids)
    assert ids[0].startswith("19700101T000000Z-")
    assert all(map(ID_RE.fullmatch, [*ids, new_id()]))
    assert len({new_id(0) for _ in range(100)}) == 100


# Writing, interrupted and again


def test_a_failing_store_leaves_no_manifest(snapshots, objects, made):
    """Scenario 23, on the store: what is done again goes on with the same id."""
    objects.fail_put = {"pages.img.zstd"}
    with pytest.raises(StoreFailed):
        snapshots.upload(ID, made.files)
    with pytest.raises(FileMissing):
        snapshots.commit(made.manifest)
    assert snapshots.ids() == []
    assert [state.is_committed for state in snapshots.states()] == [False]
    objects.fail_put = set()
    objects.writes.clear()
    snapshots.upload(ID, made.files)
    assert f"snapshots/{ID}/pages.img.zstd" in objects.writes
    assert f"snapshots/{ID}/checkpoint.img.zstd" not in objects.writes  # it was there
    snapshots.commit(made.manifest)
    assert snapshots.ids() == [ID]


def test_what_is_there_but_wrong_is_sent_again(snapshots, objects, made):
    file, path = made.files[0]
    key = f"snapshots/{ID}/{file.object}"
    objects.put_if_absent(key, bytes(file.stored_size))  # the size fits
    snapshots.upload(ID, made.files)
    assert objects.get(key, 1 << 20) == path.read_bytes()


def test_a_commit_done_twice(snapshots, objects, made):
    """Scenario 24."""
    store(objects, made)
    assert snapshots.commit(made.manifest) == made.digest
    snapshots.upload(ID, made.files)


@pytest.mark.parametrize("is_told_conflict", [False, True])
def test_a_lost_answer(snapshots, objects, made, is_told_conflict):
    """Scenario 28, F24: the manifest was put, and nobody said so."""
    snapshots.upload(ID, made.files)
    if is_told_conflict:  # the client tried again by itself, and was refused
        assert objects.put_if_absent(manifest_key(ID), made.data)
    else:
        objects.lose_answer = 1
    assert snapshots.commit(made.manifest) == made.digest
    assert snapshots.ids() == [ID]


def test_another_manifest_is_there(snapshots, objects, made):
    """F24: never written over."""
    store(objects, made)
    other = msgspec.structs.replace(made.manifest, host={"kernel": "other"})
    with pytest.raises(StoreConflict):
        snapshots.commit(other)
    assert snapshots.load(ID).digest == made.digest
    changed = draft_of(made, b"other bytes")
    with pytest.raises(StoreConflict):
        snapshots.upload(ID, changed.files)
    assert snapshots.verify(snapshots.load(ID), deep=True) == []


def draft_of(made: Draft, data: bytes) -> Draft:
    folder = made.files[0][1].parent.parent / "other"
    return draft(folder, made.id, {"checkpoint.img": data})


def test_a_store_that_is_down_fails_the_commit(snapshots, objects, made, monkeypatch):
    snapshots.upload(ID, made.files)

    def put_if_absent(key: str, data: bytes) -> bool:
        raise StoreFailed("down")

    monkeypatch.setattr(objects, "put_if_absent", put_if_absent)
    with pytest.raises(StoreFailed):
        snapshots.commit(made.manifest)
    assert snapshots.ids() == []


def test_a_truncated_upload_is_not_committed(snapshots, objects, made):
    """I1: sizes are looked at before the manifest is put."""
    snapshots.upload(ID, made.files)
    stored = objects.path / "snapshots" / ID / "pages.img.zstd"
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(FileCorrupt):
        snapshots.commit(made.manifest)
    assert snapshots.ids() == []


# Reading what is not as it should be


def test_no_manifest_but_files(snapshots, objects, made):
    """F1."""
    store(objects, made, is_committed=False)
    with pytest.raises(ManifestMissing, match=r"checkpoint\.img\.zstd") as caught:
        snapshots.load(ID)
    assert "--assume-image" in caught.value.hint
    assert "lazyfs gc" in caught.value.hint
    assert caught.value.exit_code == 10


def test_nothing_there_at_all(snapshots, objects, made):
    """F2: the nearest are named."""
    store(objects, made)
    with pytest.raises(ManifestMissing, match="does not exist") as caught:
        snapshots.load(ID[:-1] + "0")
    assert ID in caught.value.hint
    assert caught.value.details["nearest"] == [ID]


def test_a_store_in_place_of_a_snapshot(objects, made):
    """``restore STORE``: what is above it would be the store, and it the snapshot."""
    store(objects, made)
    above = Snapshots(DirectoryStore(objects.path.parent))
    with pytest.raises(ManifestMissing, match=r"is a store of snapshots.*STORE/ID") as got:
        above.load(objects.path.name)
    assert f"lazyfs snapshot list {objects.path}`" in got.value.hint


@pytest.mark.parametrize("where", [f"snapshots/{ID}", ID])
def test_a_snapshot_of_agent_substrate(snapshots, objects, where):
    """F43: it is named as what it is."""
    objects.put_if_absent(f"{where}/manifest.json", b"{}")
    objects.put_if_absent(f"{where}/checkpoint.img.zstd", b"")
    with pytest.raises(ManifestMissing) as caught:
        snapshots.load(ID)
    assert "looks like a snapshot of agent-substrate" in caught.value.hint


def test_a_manifest_that_changed_after_the_pointer(snapshots, objects, made):
    """F6."""
    store(objects, made)
    snapshots.move_pointer("latest", Pointer(ID, made.digest), None)
    other = msgspec.structs.replace(made.manifest, host={"kernel": "other"})
    path = objects.path / manifest_key(ID)
    path.write_bytes(msgspec.json.encode(other))
    with pytest.raises(ManifestInvalid, match="as pointer latest says"):
        snapshots.load("@latest")


def test_a_pointer_to_what_is_gone(snapshots, objects, made):
    """F40."""
    store(objects, made)
    snapshots.move_pointer("latest", Pointer(ID, made.digest), None)
    shutil.rmtree(objects.path / "snapshots")
    with pytest.raises(ManifestMissing, match=r"^pointer latest: "):
        snapshots.load("@latest")
    with pytest.raises(ManifestMissing) as caught:
        snapshots.load("@other")
    assert caught.value.hint == "the store has these pointers: latest"


def test_the_manifest_of_another(snapshots, objects, made):
    store(objects, made)
    objects.put_if_absent(manifest_key(LATER_ID), made.data)
    with pytest.raises(ManifestInvalid, match=f"has the manifest of {ID}"):
        snapshots.load(LATER_ID)


def test_manifests_that_cannot_be_read(snapshots, objects, made):
    document = json.loads(made.data) | {"version": 2}
    objects.put_if_absent(manifest_key(ID), json.dumps(document).encode())
    with pytest.raises(VersionUnsupported):
        snapshots.load(ID)
    objects.put_if_absent(manifest_key(LATER_ID), b" " * (2 << 20))
    with pytest.raises(ManifestInvalid, match="longer than 1048576 bytes"):
        snapshots.load(LATER_ID)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a/b", "@../x", "@"])
def test_names_that_lead_out(snapshots, name):
    with pytest.raises(BadKey):
        snapshots.load(name)


def damaged(objects: DirectoryStore, name: str, how: str) -> None:
    path = objects.path / "snapshots" / ID / f"{name}.zstd"
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
        return
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-3] if how == "truncated" else data)


@pytest.mark.parametrize(
    ("how", "family"),
    [("flipped", FileCorrupt), ("truncated", FileCorrupt), ("gone", FileMissing)],
)
def test_a_damaged_file(snapshots, objects, made, tmp_path, how, family):
    """Scenarios 39, 40 and 56; F26, F27: nothing is left of the download."""
    store(objects, made)
    damaged(objects, "pages.img", how)
    loaded = snapshots.load(ID)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(family, match=r"pages\.img"):
        snapshots.download(loaded, tmp_path / "back")
    assert sorted(tmp_path.iterdir()) == before
    for deep in (False, True):
        (error,) = snapshots.verify(loaded, deep=deep)
        assert isinstance(error, family)


def test_bytes_that_were_hurt_on_the_way_are_read_once_more(
    snapshots, objects, made, tmp_path, monkeypatch
):
    """F26: one re-read."""
    store(objects, made)
    good, hurt = objects.path / "snapshots" / ID / "pages.img.zstd", [0]
    opened = objects.open

    def open_hurt(key: str):
        if key.endswith("pages.img.zstd") and not hurt[0]:
            hurt[0] = 1
            shutil.copy(good, tmp_path / "kept")
            damaged(objects, "pages.img", "flipped")
        elif key.endswith("pages.img.zstd"):
            shutil.copy(tmp_path / "kept", good)
        return opened(key)

    monkeypatch.setattr(objects, "open", open_hurt)
    snapshots.download(snapshots.load(ID), tmp_path / "back")
    assert (tmp_path / "back/pages.img").read_bytes() == CONTENTS["pages.img"]


def test_too_little_room(snapshots, objects, made, tmp_path, monkeypatch):
    """F29: said before anything is read."""
    store(objects, made)
    loaded = snapshots.load(ID)
    real = os.statvfs(tmp_path)
    needed = sum(map(len, CONTENTS.values()))
    short = os.statvfs_result([*real[:4], (needed - 1) // real.f_frsize, *real[5:]])
    monkeypatch.setattr(os, "statvfs", lambda path: short)
    monkeypatch.setattr(objects, "open", None)
    with pytest.raises(NoSpace, match=f"{needed} bytes needed"):
        snapshots.download(loaded, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_no_room_after_all(snapshots, objects, made, tmp_path, monkeypatch):
    """F29: the disk fills while files come in."""
    store(objects, made)
    loaded = snapshots.load(ID)

    def pwrite(file: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NoSpace):
        snapshots.download(loaded, tmp_path / "back")
    assert sorted(tmp_path.iterdir()) == before


def test_ctrl_c_gives_uploads_up(snapshots, objects, made, monkeypatch):
    """What is under way learns of it, and the manifest is not put."""
    given_up = []

    def put_file(key: str, path: Path) -> None:
        stop = stopping.get()
        assert stop is not None
        if path == made.files[0][1]:
            os.kill(os.getpid(), signal.SIGINT)  # to the main thread, as from a terminal
        given_up.append(stop.wait(SECONDS))
        raise StoreFailed("given up")

    monkeypatch.setattr(objects, "put_file", put_file)
    with pytest.raises(KeyboardInterrupt):
        snapshots.upload(ID, made.files)
    assert given_up
    assert all(given_up)
    assert snapshots.states() == []


# Removing


def test_removed_in_the_other_order(snapshots, objects, made, monkeypatch):
    """Scenario 54: interrupted, it is partial and not restorable."""
    store(objects, made)
    deleted = []
    delete = objects.delete

    def delete_two(key: str) -> None:
        if len(deleted) == 2:
            raise StoreFailed("interrupted")
        deleted.append(key)
        delete(key)

    monkeypatch.setattr(objects, "delete", delete_two)
    with pytest.raises(StoreFailed):
        snapshots.remove(ID)
    assert deleted[0] == manifest_key(ID)
    assert [state.is_committed for state in snapshots.states()] == [False]
    with pytest.raises(ManifestMissing):
        snapshots.load(ID)
    monkeypatch.undo()
    assert snapshots.remove(ID)
    assert not snapshots.remove(ID)
    assert snapshots.states() == []


def test_what_a_pointer_names_stays(snapshots, objects, made):
    """I2, I3."""
    store(objects, made)
    snapshots.move_pointer("latest", Pointer(ID, made.digest), None)
    with pytest.raises(StoreConflict, match="pointer latest"):
        snapshots.remove(ID)
    snapshots.remove_pointer("latest")
    assert snapshots.remove(ID)


# Pointers


@pytest.fixture
def two(snapshots, objects, made, tmp_path) -> tuple[Pointer, Pointer]:
    store(objects, made)
    later = store(objects, draft(tmp_path, LATER_ID))
    return Pointer(ID, made.digest), Pointer(LATER_ID, later.digest)


def test_a_pointer_moves_one_step_at_a_time(snapshots, two):
    """Scenario 27, F23: of two who move it, one is told; both snapshots stay."""
    first, second = two
    assert snapshots.pointer("latest") is None
    snapshots.move_pointer("latest", first, None)
    snapshots.move_pointer("latest", first, None)  # again: nothing to do
    with pytest.raises(StoreConflict) as caught:
        snapshots.move_pointer("latest", second, None)
    assert caught.value.exit_code == 43
    snapshots.move_pointer("latest", second, first)
    with pytest.raises(StoreConflict):
        snapshots.move_pointer("latest", first, Pointer(ID, second.manifest_digest))
    assert snapshots.pointers() == {"latest": second}
    assert snapshots.ids() == [ID, LATER_ID]


def test_a_pointer_moved_by_many_at_once(snapshots, two):
    first, second = two

    def move(to: Pointer) -> bool:
        try:
            snapshots.move_pointer("latest", to, None)
        except StoreConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(move, [first, second] * 8))
    winner = snapshots.pointer("latest")
    assert moved == [each == winner for each in [first, second] * 8]


def test_a_lost_answer_to_a_move(snapshots, objects, two):
    first, second = two
    snapshots.move_pointer("latest", first, None)
    objects.lose_answer = 1
    snapshots.move_pointer("latest", second, first)
    assert snapshots.pointer("latest") == second


def test_a_pointer_names_committed_snapshots_only(snapshots, objects, made):
    """I2."""
    store(objects, made, is_committed=False)
    with pytest.raises(ManifestMissing):
        snapshots.move_pointer("latest", Pointer(ID, made.digest), None)
    snapshots.commit(made.manifest)
    with pytest.raises(ManifestInvalid):
        snapshots.move_pointer("latest", Pointer(ID, str(digest_of(b""))), None)
    assert snapshots.pointers() == {}


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{}", b"[]", b'{"id":"../x","manifestDigest":"sha256:0"}', b"\xff", b"[" * 5000),
        json.dumps({"id": ID, "manifestDigest": "sha256:" + "0" * 63}).encode(),
        json.dumps({"id": ID, "manifestDigest": "sha256:" + "0" * 64, "version": 2}).encode(),
    ],
)
def test_damaged_pointers(snapshots, objects, data):
    with pytest.raises(ManifestInvalid):
        decode_pointer(data, "latest")
    objects.put_if_absent(pointer_key("latest"), data)
    with pytest.raises(ManifestInvalid):
        snapshots.load("@latest")
    assert snapshots.pointers() == {}


# Names


@pytest.mark.parametrize(
    ("text", "store_", "name"),
    [
        ("/a/b/ID", "/a/b", "ID"),
        ("/a@x", "/a", "@x"),
        ("./a/ID", "./a", "ID"),
        ("a@x", "a", "@x"),
        ("/ID", "/", "ID"),
        ("file:///a/b/ID", "file:///a/b", "ID"),
        ("s3://bucket/prefix/ID", "s3://bucket/prefix", "ID"),
        ("s3://bucket@x", "s3://bucket", "@x"),
        ("s3://bucket/p@x", "s3://bucket/p", "@x"),
        ("s3://bucket/ID", "s3://bucket", "ID"),
    ],
)
def test_names_of_snapshots(text, store_, name):
    found = parse_snapshot_name(text)
    assert (found.store, found.name) == (store_, name)


@pytest.mark.parametrize("text", ["", "ID", "/a/", "/a@", "s3://bucket", "/a/@", "@x", "/a/b c"])
def test_names_that_are_none(text):
    with pytest.raises(BadStore):
        parse_snapshot_name(text)


@pytest.mark.parametrize(
    "url",
    [
        *("", "ftp://x/y", "s3:bucket", "s3://", "s3://B", "s3://bucket/../x", "file://host/x"),
        *("file:x", "s3://key:secret@bucket/x", "s3://bucket/x?a=b", "https://bucket/x"),
    ],
)
def test_stores_that_are_none(url):
    with pytest.raises((BadStore, BadKey)) as caught:
        open_objects(url)
    assert "secret" not in str(caught.value)


def test_stores(tmp_path):
    for url in (str(tmp_path), f"file://{tmp_path}", f"{tmp_path}/x/.."):
        assert open_objects(url).url == str(tmp_path)
    assert open_objects("s3://bucket/a/b/").url == "s3://bucket/a/b"
    assert open_objects("s3://bucket").url == "s3://bucket"
    with pytest.raises(StoreFailed):
        open_objects(str(tmp_path / "none"), must_exist=True)


# Embedded images and copies


def oci_image(layers: int = 2, algorithm: str = "sha256") -> tuple[bytes, dict[str, bytes]]:
    """Return the manifest of an image, and its blobs by digest."""
    contents = [b"{}", *(b"layer %d" % number for number in range(layers))]
    blobs = {str(digest_of(data, algorithm)): data for data in contents}
    described = [{"mediaType": "x/y", "digest": d, "size": len(b)} for d, b in blobs.items()]
    document = {"schemaVersion": 2, "config": described[0], "layers": described[1:]}
    return json.dumps(document).encode(), blobs


def embedded_draft(folder: Path, snapshot_id: str, manifest: bytes, blobs: dict) -> Draft:
    digests = list(blobs)
    layers = tuple(Layer(digest, digest, "x/y", len(blobs[digest])) for digest in digests[1:])
    digest = str(digest_of(manifest, parse_digest(digests[0]).algorithm))
    found = image(
        manifest_digest=digest,
        resolved_ref=f"docker.io/library/counter@{digest}",
        config_digest=digests[0],
        layers=layers,
        embedded=True,
    )
    return draft(folder, snapshot_id, images=(found,))


TYPE = "application/vnd.oci.image.manifest.v1+json"


def test_an_embedded_image(snapshots, objects, tmp_path):
    manifest, blobs = oci_image()
    layer = list(blobs)[1]
    (tmp_path / "layer").write_bytes(blobs[layer])
    snapshots.embed(ID, manifest, TYPE, blobs | {layer: tmp_path / "layer"})
    snapshots.embed(LATER_ID, manifest, TYPE, {})  # its blobs are there
    made = store(objects, embedded_draft(tmp_path, ID, manifest, blobs))
    loaded = snapshots.load(made.id)
    layout = snapshots.embedded(loaded, tmp_path / "scratch")
    assert layout == objects.path / "base"
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (listed,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert listed["digest"] == str(digest_of(manifest))
    assert listed["annotations"]["lazyfs.snapshots"] == f"{ID} {LATER_ID}"
    for digest, data in {str(digest_of(manifest)): manifest, **blobs}.items():
        assert (layout / "blobs/sha256" / digest.partition(":")[2]).read_bytes() == data


def test_what_is_not_embedded_has_no_layout(snapshots, objects, made, tmp_path):
    store(objects, made)
    assert snapshots.embedded(snapshots.load(ID), tmp_path / "scratch") is None


def test_blobs_that_are_wrong_or_missing_are_not_embedded(snapshots, objects):
    manifest, blobs = oci_image()
    first, second, *_ = blobs
    with pytest.raises(BaseCorrupt):
        snapshots.embed(ID, manifest, TYPE, blobs | {second: b"LAYER 0"})
    with pytest.raises(BaseUnavailable, match=first):
        snapshots.embed(ID, manifest, TYPE, {second: blobs[second]})
    with pytest.raises(BaseCorrupt):
        snapshots.embed(ID, b"no manifest", TYPE, blobs)
    assert list(objects.list("")) == []


def test_many_embed_at_once(snapshots, objects):
    images = [oci_image(layers) for layers in range(1, 7)]

    def embed(number: int) -> None:
        manifest, blobs = images[number % len(images)]
        snapshots.embed(new_id(number), manifest, TYPE, blobs)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(embed, range(12)))
    listed = json.loads(objects.get("base/index.json", 1 << 20))["manifests"]
    claims = [len(each["annotations"]["lazyfs.snapshots"].split()) for each in listed]
    assert claims == [2] * 6


def test_a_copy_is_the_same(snapshots, objects, tmp_path):
    """Scenario 57: the same bytes, the manifest last, images along."""
    manifest, blobs = oci_image()
    snapshots.embed(ID, manifest, TYPE, blobs)
    store(objects, embedded_draft(tmp_path, ID, manifest, blobs))
    other = FaultyStore(tmp_path / "other")
    assert copy_snapshot(snapshots.load(ID), snapshots, Snapshots(other))
    assert other.writes[-1] == manifest_key(ID)
    copied = Snapshots(other).load(ID)
    assert copied == snapshots.load(ID)
    assert Snapshots(other).verify(copied, deep=True) == []
    keys = [stored.key for stored in objects.list("")]
    assert [stored.key for stored in other.list("")] == keys
    assert not copy_snapshot(snapshots.load(ID), snapshots, Snapshots(other))


def test_images_whose_digests_are_sha512(snapshots, objects, tmp_path):
    manifest, blobs = oci_image(algorithm="sha512")
    snapshots.embed(ID, manifest, TYPE, blobs, algorithm="sha512")
    store(objects, embedded_draft(tmp_path, ID, manifest, blobs))
    loaded = snapshots.load(ID)
    assert embedding.verify(objects, loaded.manifest) == []
    digest = digest_of(manifest, "sha512")
    for kept in (objects, Elsewhere(objects)):
        layout = ImageLayout(str(Snapshots(kept).embedded(loaded, tmp_path / "scratch")))
        assert trio.run(layout.fetch_manifest, digest).data == manifest
        for name, data in blobs.items():
            assert layout.blob_path(parse_digest(name)).read_bytes() == data
    other = FaultyStore(tmp_path / "other")
    assert copy_snapshot(loaded, snapshots, Snapshots(other))
    assert embedding.verify(other, loaded.manifest) == []
    assert set(blobs_of(other)) == {str(digest), *blobs}
    collect(other, now=time.time() + 9, grace=0)
    assert set(blobs_of(other)) == {str(digest), *blobs}


class Elsewhere:
    """A store that is no directory: what is in it has to be copied."""

    def __init__(self, objects: FaultyStore) -> None:
        self._objects = objects

    def __getattr__(self, name: str) -> object:
        return getattr(self._objects, name)


def blobs_of(objects: FaultyStore) -> list[str]:
    """Return the digests of the blobs of embedded images, as their keys have them."""
    return [":".join(each.key.split("/")[-2:]) for each in objects.list("base/blobs/")]


def test_a_copy_of_what_is_damaged(snapshots, objects, made, tmp_path):
    store(objects, made)
    damaged(objects, "pages.img", "flipped")
    other = Snapshots(FaultyStore(tmp_path / "other"))
    with pytest.raises(FileCorrupt):
        copy_snapshot(snapshots.load(ID), snapshots, other)
    assert other.ids() == []
