"""A directory store that others can write to: links, pipes, devices, bombs and names in it.

Nothing of it is followed, waited for, or removed that is not ours; and what is in it is shown so
that a terminal obeys none of it.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import Result

from lazyfs.digest import digest_of, parse_digest
from lazyfs.documents.errors import FileCorrupt, SnapshotError, StoreFailed
from lazyfs.documents.manifest import Layer
from lazyfs.documents.manifest_json import decode_manifest
from lazyfs.snapshot import legacy
from lazyfs.snapshot.extensions import PROFILES, unpack_profiles
from lazyfs.snapshot.golden import generations
from lazyfs.snapshot.legacy import survey
from lazyfs.snapshot.stores import transfer
from lazyfs.snapshot.stores.collect import collect
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.embedding import INDEX_KEY, blob_key, read_index
from lazyfs.snapshot.stores.embedding import verify as verify_images
from lazyfs.snapshot.stores.keys import manifest_key, pointer_key
from lazyfs.snapshot.stores.pointers import Pointer
from lazyfs.snapshot.stores.snapshots import Snapshots
from lazyfs.snapshot.stores.transfer import copy_snapshot
from lazyfs.store.profiles import Profile, encode_profile
from tests.support.mounts.in_process import in_process
from tests.support.sandboxes.hostile import tamper
from tests.support.sandboxes.snapshots import ID, LATER_ID, draft, image, store

OLD = 1_600_000_000.0
NOW = OLD + 30 * 86400
OLD_ID = "20200913T122640Z-0000000a"  # of that time
SECRET = b"what only root may read"
HANGS = 60  # seconds: no test takes long


@pytest.fixture(autouse=True)
def watch() -> Iterator[None]:
    """End a test that waits for somebody at the other end of a pipe."""

    def end(*arguments: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryStore:
    """A store with a snapshot that "latest" names."""
    objects = DirectoryStore(tmp_path / "store")
    made = store(objects, draft(tmp_path))
    Snapshots(objects).move_pointer("latest", Pointer(ID, made.digest), None)
    return objects


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside of the store, with an old file and a secret."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("secret", "1-00000000000000aa", "checkpoint.img"):
        (folder / name).write_bytes(SECRET)
        os.utime(folder / name, (OLD, OLD))
    return folder


@pytest.fixture
def lazyfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run ``lazyfs`` with words, in this process."""
    for name in ("cache", "state", "runtime"):
        monkeypatch.setenv(f"LAZYFS_{name.upper()}_DIR", str(tmp_path / name))
    with in_process() as invoke:
        yield invoke


def put(path: Path, kind: str, target: Path) -> None:
    """Put something that is no file in the place of *path*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        folder = os.open(path.parent, os.O_RDONLY)
        try:  # by a short name: longer ones than 108 bytes are none
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("not allowed to make devices")
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        path.mkdir()


KINDS = ("pipe", "socket", "device", "link", "loop", "folder")
ODD = pytest.mark.parametrize("kind", KINDS)


def everything(objects: DirectoryStore, target: Path) -> Iterator[Callable[[], object]]:
    """Yield all that can be done with a store from outside."""
    snapshots = Snapshots(objects)
    other = Snapshots(DirectoryStore(target / "other"))
    yield lambda: snapshots.load("@latest")
    yield lambda: snapshots.load(ID)
    yield snapshots.states
    yield snapshots.pointers
    yield lambda: generations(snapshots)
    yield lambda: snapshots.verify(snapshots.load(ID), deep=True)
    yield lambda: snapshots.download(snapshots.load(ID), target / "files")
    yield lambda: copy_snapshot(snapshots.load(ID), snapshots, other)
    yield lambda: survey(snapshots, ID)
    yield lambda: collect(objects, now=NOW, grace=0)
    yield lambda: snapshots.move_pointer("other", Pointer(ID, snapshots.load(ID).digest), None)
    yield lambda: objects.replace(
        pointer_key("latest"), b"x", objects.get(pointer_key("latest"), 99)
    )
    yield lambda: snapshots.remove(ID)


PLACES = [
    manifest_key(ID),
    pointer_key("latest"),
    f"snapshots/{ID}/pages.img.zstd",
    f"snapshots/{ID}",
    "snapshots",
    "pointers",
    "base",
    "base/blobs/sha256",
    INDEX_KEY,
    ".tmp",
    ".lock",
]


@ODD
@pytest.mark.parametrize("place", PLACES)
def test_nothing_but_files_is_taken_for_one(
    objects: DirectoryStore, victim: Path, tmp_path: Path, place: str, kind: str
) -> None:
    """Whatever is done ends, with our own errors, and nothing outside is touched or read."""
    target = victim / "secret" if "." in Path(place).name else victim
    put(objects.path / place, kind, target)
    before = sorted((path.name, path.read_bytes()) for path in victim.iterdir())
    (tmp_path / "out").mkdir()
    for work in everything(objects, tmp_path / "out"):
        try:
            found = work()
        except SnapshotError:
            continue
        assert SECRET not in repr(found).encode()
    assert sorted((path.name, path.read_bytes()) for path in victim.iterdir()) == before
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or SECRET not in path.read_bytes()


@ODD
def test_a_file_of_a_snapshot_that_is_none_is_told(
    objects: DirectoryStore, victim: Path, kind: str
) -> None:
    snapshots = Snapshots(objects)
    loaded = snapshots.load(ID)
    put(objects.path / f"snapshots/{ID}/pages.img.zstd", kind, victim / "secret")
    with pytest.raises(SnapshotError):
        snapshots.download(loaded, victim.parent / "files")
    assert not (victim.parent / "files").exists()


@pytest.mark.parametrize(
    "place", [manifest_key(ID), pointer_key("latest"), f"snapshots/{ID}/pages.img.zstd"]
)
def test_a_link_is_not_followed_even_to_the_right_bytes(
    objects: DirectoryStore, tmp_path: Path, place: str
) -> None:
    """They are of somebody who can change them after they were verified."""
    shutil.copy(objects.path / place, tmp_path / "same")
    put(objects.path / place, "link", tmp_path / "same")
    with pytest.raises(SnapshotError):
        objects.get(place, 1 << 20)
    with pytest.raises(SnapshotError):
        Snapshots(objects).download(Snapshots(objects).load("@latest"), tmp_path / "files")


def test_a_lock_elsewhere_is_not_made(objects: DirectoryStore, victim: Path) -> None:
    put(objects.path / ".lock", "link", victim / "made")
    key = pointer_key("latest")
    with pytest.raises(SnapshotError):
        objects.replace(key, b"x", objects.get(key, 99))
    assert not (victim / "made").exists()


# Rubbish that is collected


def age(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (OLD, OLD), follow_symlinks=False)


def gc(objects: DirectoryStore) -> Any:
    return collect(objects, now=NOW, grace=86400)


def test_temporary_files_elsewhere_are_not_collected(objects: DirectoryStore, victim: Path) -> None:
    """The folder of temporary files leads to another one, whose files look like ours."""
    put(objects.path / ".tmp", "link", victim)
    with pytest.raises(SnapshotError):
        objects.put_if_absent("a", b"x")
    assert gc(objects).uploads == 0
    assert {path.name for path in victim.iterdir()} == {
        "secret",
        "1-00000000000000aa",
        "checkpoint.img",
    }


def test_files_of_others_among_the_temporary_ones_are_not_collected(
    objects: DirectoryStore,
) -> None:
    folder = objects.path / ".tmp"
    names = {"notes", "1-00", "1-00000000000000aa.txt", "x-00000000000000aa"}
    for name in names:
        (folder / name).write_bytes(b"of somebody")
    (folder / "1-00000000000000aa").write_bytes(b"ours")
    age(folder)
    assert gc(objects).uploads == 1
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("place", ["snapshots", f"snapshots/{OLD_ID}"])
def test_snapshots_elsewhere_are_not_collected(
    objects: DirectoryStore, victim: Path, place: str
) -> None:
    inside = victim if place != "snapshots" else victim / OLD_ID
    inside.mkdir(exist_ok=True)
    (inside / "checkpoint.img").write_bytes(SECRET)
    age(victim)
    put(objects.path / place, "link", victim)
    assert gc(objects).partials == ()
    assert (inside / "checkpoint.img").read_bytes() == SECRET


def test_what_is_no_file_of_ours_is_not_collected(objects: DirectoryStore) -> None:
    partial = objects.path / "snapshots" / OLD_ID
    partial.mkdir()
    (partial / "checkpoint.img").write_bytes(b"x")
    for name in ("notes+old.txt", "folder/below", "a:b"):
        (partial / name).parent.mkdir(exist_ok=True)
        (partial / name).write_bytes(b"of somebody")
        age(partial)
        done = gc(objects)
        assert [(state.id, why) for state, why in done.spared] == [(OLD_ID, "foreign")]
        assert (partial / "checkpoint.img").exists()
        (partial / name).unlink()
    age(partial)
    (partial / "folder").rmdir()
    assert [state.id for state in gc(objects).partials] == [OLD_ID]
    assert not partial.exists()


@ODD
def test_a_snapshot_with_an_odd_manifest_is_not_collected(
    objects: DirectoryStore, victim: Path, kind: str
) -> None:
    partial = objects.path / "snapshots" / OLD_ID
    partial.mkdir()
    (partial / "checkpoint.img").write_bytes(b"x")
    put(objects.path / manifest_key(OLD_ID), kind, victim / "secret")
    age(partial)
    assert gc(objects).partials == ()
    assert (partial / "checkpoint.img").exists()


def test_what_others_keep_beside_the_images_is_not_collected(objects: DirectoryStore) -> None:
    """An image layout is a common form: other programs may have put theirs there."""
    base = objects.path / "base"
    names = ("README.txt", "blobs/sha256/notes", "blobs/md5/" + "a" * 64, "other/" + "b" * 64)
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"of somebody")
    theirs = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": "sha256:" + "c" * 64,
        "size": 9,
        "annotations": {"org.opencontainers.image.ref.name": "theirs"},
    }
    ours = theirs | {"digest": "sha256:" + "d" * 64, "annotations": {"lazyfs.snapshots": OLD_ID}}
    (base / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [theirs, ours]}))
    (base / "blobs/sha256" / ("d" * 64)).write_bytes(b"an image that nobody claims")
    age(base)
    done = gc(objects)
    assert [each.key for each in done.blobs] == ["base/blobs/sha256/" + "d" * 64]
    assert [each.digest for each in read_index(objects)] == [theirs["digest"]]
    assert all((base / name).exists() for name in names)


def test_an_index_that_cannot_be_read_ends_the_collection(objects: DirectoryStore) -> None:
    blob = objects.path / "base/blobs/sha256" / ("d" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x")
    (objects.path / INDEX_KEY).write_bytes(b'{"manifests": [{"digest": "../../x"}]}')
    age(objects.path / "base")
    with pytest.raises(StoreFailed):
        gc(objects)
    assert blob.exists()


def test_folders_below_folders_have_an_end(objects: DirectoryStore) -> None:
    """Each of them would take a frame and a descriptor."""
    folder = os.open(objects.path / "snapshots" / ID, os.O_RDONLY)
    try:
        try:
            for _ in range(3000):
                os.mkdir("d", dir_fd=folder)
                inner = os.open("d", os.O_RDONLY, dir_fd=folder)
                os.close(folder)
                folder = inner
        finally:
            os.close(folder)
        assert [state.id for state in Snapshots(objects).states()] == [ID]
    finally:  # pytest would recurse, and fail at the end of a later run
        deep = objects.path / "snapshots" / ID / "d"
        subprocess.run(["rm", "-rf", deep], timeout=HANGS, check=True)


# Bombs


def bomb(size: int) -> bytes:
    made = zstandard.ZstdCompressor(level=19).compressobj()
    zeros = bytes(1 << 20)
    return b"".join(made.compress(zeros) for _ in range(size >> 20)) + made.flush()


def legacy_store(tmp_path: Path, data: bytes, name: str = "checkpoint.img.zstd") -> Snapshots:
    folder = tmp_path / "store" / "snapshots" / "old"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(data)
    return Snapshots(DirectoryStore(tmp_path / "store"))


def test_a_few_bytes_do_not_fill_the_memory(tmp_path: Path) -> None:
    """A snapshot without a manifest is decompressed once to know what it is."""
    snapshots = legacy_store(tmp_path, bomb(512 << 20))
    tracemalloc.start()
    try:
        (file,) = survey(snapshots, "old")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.raw_size == 512 << 20
    assert file.stored_size < 1 << 20
    assert peak < 32 << 20


def test_what_it_becomes_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "RAW_LIMIT", 8 << 20)
    with pytest.raises(FileCorrupt, match="is larger than"):
        survey(legacy_store(tmp_path / "a", bomb(64 << 20)), "old")
    with pytest.raises(FileCorrupt, match="is larger than"):
        survey(legacy_store(tmp_path / "b", bytes(9 << 20), "checkpoint.img"), "old")


def test_a_window_has_a_bound(tmp_path: Path) -> None:
    frame = bytes.fromhex("28b52ffd") + bytes([0x00, (30 - 10) << 3]) + bytes.fromhex("010000")
    with pytest.raises(FileCorrupt, match="zstd"):
        survey(legacy_store(tmp_path, frame), "old")


def test_several_frames_are_one_file(tmp_path: Path) -> None:
    frames = zstandard.compress(b"one") + zstandard.compress(b"two")
    (file,) = survey(legacy_store(tmp_path, frames), "old")
    assert file.raw_size == 6


@pytest.mark.parametrize("name", ["a+b", "a:b", "x" * 230, "+", "a+b.zstd"])
def test_a_file_of_a_store_is_called_as_files_are(tmp_path: Path, name: str) -> None:
    if name.startswith("+"):
        with pytest.raises(SnapshotError):  # no key: it is not there
            survey(legacy_store(tmp_path, b"", name), "old")
        return
    with pytest.raises(FileCorrupt, match="name"):
        survey(legacy_store(tmp_path, b"", name), "old")


def test_profiles_are_unpacked_for_images_that_are_there_only() -> None:
    """Ten thousand bombs fit into a manifest."""
    profile = Profile("sha256:" + "1" * 64, 1, ("sha256:" + "2" * 64,), ((0, 1),))
    packed = zstandard.ZstdCompressor().compress(encode_profile(profile))
    text = base64.b64encode(packed).decode()
    many = {f"sha256:{number:064x}": text for number in range(5000)}
    found = unpack_profiles({PROFILES: many}, [f"sha256:{7:064x}", "sha256:none"])
    assert list(found) == [f"sha256:{7:064x}"]


# What is shown

ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202e\u2028\x7f"


def check_shown(done: Result) -> None:
    for text in (done.stdout, done.stderr):
        for line in text.split("\n"):
            assert line.isprintable(), repr(line)


def spoilt(document: dict[str, Any], place: str) -> None:
    made, runtime = document["snapshot"], document["runtime"]
    if place == "originalRef":
        document["images"][0]["originalRef"] += ESCAPES
    elif place == "template":
        made["template"] = {"name": ESCAPES, "digest": "sha256:" + "0" * 64}
    elif place == "host":
        document["host"] = {ESCAPES: [ESCAPES]}
    elif place == "arguments":
        container = {"name": "counter", "image": "counter:latest", "command": ["sh", ESCAPES]}
        document["extensions"] = {"template": {"name": "x", "containers": [container]}}
    elif place == "golden":
        made["role"] = "golden"
        document["extensions"] = {"golden": {"name": ESCAPES, "number": 1, "previous": ESCAPES}}
    elif place == "secret":
        reference = {"secretKeyRef": {"name": ESCAPES, "key": ESCAPES}}
        container = {
            "name": "counter",
            "image": "counter:latest",
            "env": [{"name": "A", "valueFrom": reference}],
        }
        document["extensions"] = {"template": {"name": "x", "containers": [container]}}
    elif place in ("version", "arch", "overlay"):
        runtime[place] = ESCAPES
    else:
        document[ESCAPES] = ESCAPES


PLACES_OF_TEXT = (
    *("originalRef", "template", "host", "arguments", "golden", "secret", "version", "arch"),
    *("overlay", "field"),
)


@pytest.mark.parametrize("place", PLACES_OF_TEXT)
def test_a_terminal_obeys_nothing_of_a_snapshot(
    objects: DirectoryStore,
    tmp_path: Path,
    lazyfs: Callable[..., Result],
    place: str,
) -> None:
    store(objects, draft(tmp_path / "later", LATER_ID, images=(image("other"),)))
    tamper(objects.path, "latest", lambda document: spoilt(document, place))
    where = f"{objects.path}@latest"
    for words in (
        ("snapshot", "list", objects.path),
        ("snapshot", "show", where),
        ("snapshot", "verify", where),
        ("snapshot", "diff", where, f"{objects.path}/{LATER_ID}"),
        ("snapshot", "copy", where, tmp_path / "other"),
        ("golden", "list", objects.path),
        ("restore", where, "--dry-run"),
        ("golden", "clone", where, "--id", "x"),
        ("gc", objects.path, "--dry-run"),
    ):
        check_shown(lazyfs(*words))


@pytest.mark.parametrize("place", ["originalRef", "template", "host", "version", "arch", "field"])
def test_text_that_terminals_obey_is_in_no_manifest(objects: DirectoryStore, place: str) -> None:
    tamper(objects.path, "latest", lambda document: spoilt(document, place))
    with pytest.raises(SnapshotError) as told:
        Snapshots(objects).load("@latest")
    assert told.value.exit_code == 11


def test_names_in_a_store_are_shown_escaped(
    objects: DirectoryStore, lazyfs: Callable[..., Result]
) -> None:
    folder = objects.path / "snapshots" / OLD_ID
    folder.mkdir()
    for name in (ESCAPES.replace("/", ""), "plain"):
        (folder / name).write_bytes(b"")
    (objects.path / "pointers" / f"{ESCAPES}.json").write_bytes(b"{}")
    for words in (
        ("snapshot", "list", objects.path),
        ("snapshot", "show", f"{objects.path}/{OLD_ID}"),
        ("snapshot", "show", f"{objects.path}@missing"),
    ):
        check_shown(lazyfs(*words))


@pytest.mark.parametrize(
    ("extension", "is_listed"),
    [
        ({"name": "x", "number": 1, "previous": ID}, True),
        ({"name": "x", "number": 1, "previous": "../../x"}, True),
        ({"name": ESCAPES, "number": 1}, False),
        ({"name": "../x", "number": 1}, False),
        ({"name": "x", "number": True}, False),
        ({"name": "x", "number": 0}, False),
        ({"name": "x", "number": (1 << 53) - 1}, False),  # the next build could not count on
        ({"name": "x", "number": "1"}, False),
    ],
)
def test_a_golden_snapshot_says_what_one_can_say(
    objects: DirectoryStore, extension: dict[str, Any], is_listed: bool
) -> None:
    def change(document: dict[str, Any]) -> None:
        document["snapshot"]["role"] = "golden"
        document["extensions"] = {"golden": extension}

    tamper(objects.path, "latest", change)
    found = generations(Snapshots(objects))
    assert [each.id for each in found] == ([ID] if is_listed else [])
    assert all(each.previous in (None, ID) for each in found)


# Copies

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


def embedded_store(tmp_path: Path) -> tuple[Snapshots, dict[str, bytes]]:
    """Return a store with a snapshot whose image is embedded, and the image's blobs by digest."""
    config, layer = b'{"architecture": "amd64", "os": "linux"}', b"a layer"
    blobs = {str(digest_of(data)): data for data in (config, layer)}
    described = [
        {"mediaType": kind, "digest": str(digest_of(data)), "size": len(data)}
        for kind, data in (
            ("application/vnd.oci.image.config.v1+json", config),
            (LAYER_TYPE, layer),
        )
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described[0],
        "layers": described[1:],
    }
    data = json.dumps(document).encode()
    digest = str(digest_of(data))
    made = image(
        manifest_digest=digest,
        resolved_ref=f"docker.io/library/counter@{digest}",
        config_digest=described[0]["digest"],
        layers=(Layer(described[1]["digest"], described[1]["digest"], LAYER_TYPE, len(layer)),),
        embedded=True,
    )
    objects = DirectoryStore(tmp_path / "embedded")
    snapshots = Snapshots(objects)
    snapshots.embed(ID, data, MANIFEST_TYPE, blobs)
    store(objects, draft(tmp_path / "made", images=(made,)))
    return snapshots, blobs | {digest: data}


def test_an_embedded_image_is_copied(tmp_path: Path) -> None:
    snapshots, blobs = embedded_store(tmp_path)
    other = Snapshots(DirectoryStore(tmp_path / "other"))
    assert copy_snapshot(snapshots.load(ID), snapshots, other)
    for digest, data in blobs.items():
        assert other.objects.get(blob_key(parse_digest(digest)), 9999) == data


@pytest.mark.parametrize("number", range(3))
@ODD
def test_a_blob_that_is_no_file_is_not_copied(tmp_path: Path, kind: str, number: int) -> None:
    """Not even where a link leads to the very bytes: they may be other ones a moment later."""
    snapshots, blobs = embedded_store(tmp_path)
    digest = sorted(blobs)[number]
    (tmp_path / "same").write_bytes(blobs[digest])
    assert isinstance(snapshots.objects, DirectoryStore)
    put(snapshots.objects.path / blob_key(parse_digest(digest)), kind, tmp_path / "same")
    other = Snapshots(DirectoryStore(tmp_path / "other"))
    with pytest.raises(SnapshotError):
        copy_snapshot(snapshots.load(ID), snapshots, other)
    assert other.ids() == []


def test_what_was_verified_is_what_is_copied(
    objects: DirectoryStore, victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts a link in the place of a file between the two."""
    check = transfer.check_stored

    def swapped(stream: Any, file: Any, write: Any) -> None:
        check(stream, file, write)
        put(objects.path / f"snapshots/{ID}/{file.object}", "link", victim / "secret")

    monkeypatch.setattr(transfer, "check_stored", swapped)
    other = Snapshots(DirectoryStore(tmp_path / "other"))
    copy_snapshot(Snapshots(objects).load(ID), Snapshots(objects), other)
    assert other.verify(other.load(ID), deep=True) == []


def test_a_blob_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots, _ = embedded_store(tmp_path)
    read = 0

    class Endless:
        def read(self, size: int) -> bytes:
            nonlocal read
            read += size
            assert read < 64 << 20
            return b"x" * size

    monkeypatch.setattr(DirectoryStore, "open", lambda self, key: nullcontext(Endless()))
    loaded = draft(tmp_path / "again", images=snapshots_images(tmp_path)).manifest
    assert len(verify_images(snapshots.objects, loaded)) == 3


def snapshots_images(tmp_path: Path) -> tuple[Any, ...]:
    data = (tmp_path / "embedded" / manifest_key(ID)).read_bytes()
    return decode_manifest(data).images
