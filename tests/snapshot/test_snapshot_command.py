"""``lazyfs snapshot`` and ``lazyfs gc``."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lazyfs.documents.journal import State
from lazyfs.documents.manifest import Layer
from lazyfs.oci.manifest import decode_manifest
from lazyfs.sandbox.sandbox import Sandboxes
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.keys import manifest_key
from lazyfs.snapshot.stores.pointers import Pointer
from lazyfs.snapshot.stores.snapshots import Snapshots
from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.in_process import in_process
from tests.support.sandboxes.snapshots import ID, LATER_ID, FaultyStore, draft, image, store

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"


@pytest.fixture
def lazyfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run ``lazyfs`` with words, in this process."""
    for name in ("cache", "state", "runtime"):
        monkeypatch.setenv(f"LAZYFS_{name.upper()}_DIR", str(tmp_path / name))
    with in_process() as invoke:
        yield invoke


@pytest.fixture
def objects(tmp_path: Path) -> FaultyStore:
    """A store with a committed snapshot that "latest" names, and an old one that is partial."""
    objects = FaultyStore(tmp_path / "store")
    made = store(objects, draft(tmp_path))
    store(objects, draft(tmp_path, "20200101T000000Z-00000000"), is_committed=False)
    Snapshots(objects).move_pointer("latest", Pointer(ID, made.digest), None)
    for stored in objects.list("snapshots/2020"):
        os.utime(objects.path / stored.key, (1577836800, 1577836800))
    return objects


def fields_of(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key not in ("manifest", "details"):  # described elsewhere
                yield from fields_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from fields_of(inner)


def documented(document: object, command: str) -> None:
    """Hold the reference to what a command prints."""
    parts = re.split(r"^## ", REFERENCE.read_text(), flags=re.MULTILINE)
    (section,) = [part for part in parts if part.startswith(f"`lazyfs {command}")]
    assert {name for name in fields_of(document) if f"`{name}`" not in section} == set()


def test_list(lazyfs, objects):
    done = lazyfs("snapshot", "list", objects.path)
    assert done.exit_code == 0
    old, new, pointer = done.stdout.splitlines()
    assert old.startswith("20200101T000000Z-00000000  partial ")
    assert new.startswith(f"{ID}  instance 1 ")
    assert new.endswith("@latest  counter=counter:latest")
    assert pointer == f"@latest  {ID}"


def test_list_as_json(lazyfs, objects):
    document = json.loads(lazyfs("snapshot", "list", f"file://{objects.path}", "--json").stdout)
    documented(document, "snapshot list")
    assert document["store"] == str(objects.path)
    old, new = document["snapshots"]
    assert (old["state"], old["manifestDigest"], old["images"]) == ("partial", None, [])
    assert (new["state"], new["generation"], new["pointers"]) == ("committed", 1, ["latest"])
    assert new["size"] == sum(each.size for each in objects.list(f"snapshots/{ID}/"))
    assert document["pointers"][0]["state"] == "committed"


def test_list_says_that_there_is_nothing(lazyfs, tmp_path):
    (tmp_path / "empty").mkdir()
    done = lazyfs("snapshot", "list", tmp_path / "empty")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert done.stderr == f"lazyfs: store {tmp_path}/empty: no snapshots\n"


def test_list_goes_on_past_what_is_damaged(lazyfs, objects):
    (objects.path / manifest_key(ID)).write_bytes(b"{")
    document = json.loads(lazyfs("snapshot", "list", objects.path, "--json").stdout)
    documented(document, "snapshot list")
    assert document["snapshots"][1]["error"]["code"] == "E_MANIFEST_INVALID"
    (objects.path / manifest_key(ID)).unlink()
    document = json.loads(lazyfs("snapshot", "list", objects.path, "--json").stdout)
    assert document["pointers"][0]["state"] == "missing"


@pytest.mark.parametrize("name", ["{store}/{id}", "{store}@latest", "file://{store}@latest"])
def test_show(lazyfs, objects, name):
    text = name.format(store=objects.path, id=ID)
    done = lazyfs("snapshot", "show", text)
    assert done.exit_code == 0
    assert f"snapshot   {ID}  sha256:" in done.stdout
    assert "image      counter: counter:latest -> docker.io/library/counter@sha256:" in done.stdout
    document = json.loads(lazyfs("snapshot", "show", text, "--json").stdout)
    documented(document, "snapshot show")
    assert document["manifest"] == json.loads(objects.get(manifest_key(ID), 1 << 20))
    assert document["pointers"] == ["latest"]


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (["show", "{store}/20261120T194511Z-00000000"], "E_MANIFEST_MISSING", 10),
        (["show", "{store}@other"], "E_MANIFEST_MISSING", 10),
        (["show", "{store}/20200101T000000Z-00000000"], "E_MANIFEST_MISSING", 10),
        (["show", "nonsense"], "E_STORE_NAME", 2),
        (["list", "{store}/nowhere"], "E_STORE", 42),
        (["list", "ftp://host"], "E_STORE_NAME", 2),
        (["rm", "{store}@other"], "E_MANIFEST_MISSING", 10),
        (["rm", "{store}/20261120T194511Z-00000000"], "E_MANIFEST_MISSING", 10),
        (["rm", "{store}/{id}"], "E_STORE_CONFLICT", 43),
        (["rm", "{store}/nonsense"], "E_KEY", 2),
    ],
)
def test_what_is_not_there(lazyfs, objects, words, code, exit_code):
    words = [word.format(store=objects.path, id=ID) for word in words]
    done = lazyfs("snapshot", *words, "--json")
    assert done.exit_code == exit_code
    assert json.loads(done.stderr)["code"] == code
    assert Snapshots(objects).ids() == [ID]


@pytest.mark.parametrize(
    ("how", "code", "exit_code"),
    [(None, None, 0), ("flipped", "E_FILE_CORRUPT", 41), ("gone", "E_FILE_MISSING", 40)],
)
def test_verify(lazyfs, objects, how, code, exit_code):
    """Scenario 56."""
    path = objects.path / "snapshots" / ID / "pages.img.zstd"
    if how == "flipped":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif how == "gone":
        path.unlink()
    done = lazyfs("snapshot", "verify", f"{objects.path}@latest", "--json")
    document = json.loads(done.stdout)
    documented(document, "snapshot verify")
    assert done.exit_code == exit_code
    assert document["verified"] == (how is None)
    assert [each["code"] for each in document["errors"]] == ([] if how is None else [code])
    done = lazyfs("snapshot", "verify", f"{objects.path}/{ID}")
    assert done.exit_code == exit_code
    assert ("pages.img" in done.stdout) == (how is not None)


def embed_real(folder: Path, objects: FaultyStore) -> tuple[str, str]:
    """Store a snapshot with a real image embedded; return the digests of manifest and layer."""
    layer = estargz_layer(tar_bytes([directory("etc"), file("etc/base", b"of the base")]))
    make_layout(folder / "layout", [layer])
    blobs = folder / "layout/blobs/sha256"
    index = json.loads((folder / "layout/index.json").read_bytes())
    digest = index["manifests"][0]["digest"]
    data = (blobs / digest.partition(":")[2]).read_bytes()
    manifest = decode_manifest(data, None)
    config = json.loads((blobs / manifest.config.digest.hex).read_bytes())
    (described,) = manifest.layers
    found = image(
        manifest_digest=digest,
        resolved_ref=f"registry.invalid/counter@{digest}",
        original_ref="registry.invalid/counter:latest",
        config_digest=str(manifest.config.digest),
        layers=(
            Layer(
                str(described.digest),
                config["rootfs"]["diff_ids"][0],
                described.media_type,
                described.size,
            ),
        ),
        embedded=True,
    )
    paths = {str(d.digest): blobs / d.digest.hex for d in (manifest.config, described)}
    Snapshots(objects).embed(LATER_ID, data, manifest.media_type, paths)
    store(objects, draft(folder, LATER_ID, images=(found,)))
    return digest, str(described.digest)


def test_verify_deep_and_the_embedded_image(lazyfs, objects, tmp_path):
    """The registry is not needed, nor there."""
    digest, layer = embed_real(tmp_path, objects)
    words = ("snapshot", "verify", "--deep", f"{objects.path}/{LATER_ID}", "--json")
    done = lazyfs(*words)
    assert json.loads(done.stdout)["errors"] == []
    assert done.exit_code == 0
    done = lazyfs("cat", f"oci:{objects.path}/base@{digest}", "etc/base")
    assert done.stdout == "of the base"
    blob = objects.path / "base/blobs/sha256" / layer.partition(":")[2]
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + b"?")
    done = lazyfs(*words)
    assert done.exit_code == 21
    assert json.loads(done.stdout)["errors"][0]["code"] == "E_BASE_CORRUPT"
    blob.unlink()
    assert lazyfs(*words).exit_code == 20


def test_diff(lazyfs, objects, tmp_path):
    made = draft(tmp_path, LATER_ID)
    changed = msgspec.structs.replace(made.manifest, images=(image(original_ref="counter:2"),))
    Snapshots(objects).upload(LATER_ID, made.files)
    Snapshots(objects).commit(changed)
    names = (f"{objects.path}@latest", f"{objects.path}/{LATER_ID}")
    done = lazyfs("snapshot", "diff", *names)
    assert done.exit_code == 0
    assert "counter:latest" in done.stdout
    assert "counter:2" in done.stdout
    document = json.loads(lazyfs("snapshot", "diff", *names, "--json").stdout)
    documented(document, "snapshot diff")
    assert len(document["differences"]) == 2  # the id, and what the user wrote
    assert lazyfs("snapshot", "diff", names[0], names[0]).stdout == ""


def test_rm(lazyfs, objects):
    name = f"{objects.path}/{ID}"
    assert lazyfs("snapshot", "rm", name).exit_code == 43  # the pointer names it
    assert lazyfs("snapshot", "rm", f"{objects.path}@latest").exit_code == 0
    assert Snapshots(objects).ids() == [ID]
    partial = f"{objects.path}/20200101T000000Z-00000000"
    done = lazyfs("snapshot", "rm", name, partial, "--json")
    documented(json.loads(done.stdout), "snapshot rm")
    assert json.loads(done.stdout) == {"snapshots": [name, partial], "pointers": []}
    assert list(objects.list("")) == []


def test_copy(lazyfs, objects, tmp_path):
    target = tmp_path / "other"
    words = ("snapshot", "copy", f"{objects.path}@latest", target, "--name", "golden")
    done = lazyfs(*words)
    assert (done.exit_code, done.stdout) == (0, f"{target}/{ID}\n")
    other = DirectoryStore(target)
    assert other.get(manifest_key(ID), 1 << 20) == objects.get(manifest_key(ID), 1 << 20)
    assert lazyfs("snapshot", "verify", f"{target}@golden").exit_code == 0
    document = json.loads(lazyfs(*words, "--json").stdout)
    documented(document, "snapshot copy")
    assert document["copied"] is False


def test_gc(lazyfs, objects, tmp_path):
    sandbox = Sandboxes(tmp_path / "state" / "sandboxes").create("counter-1")
    sandbox.begin(State.STARTING, snapshot_id="20200101T000000Z-00000000")
    done = lazyfs("gc", objects.path, "--json")
    documented(json.loads(done.stdout), "gc")
    assert json.loads(done.stdout)["spared"][0]["reason"] == "claimed"
    sandbox.remove()
    document = json.loads(lazyfs("gc", objects.path, "--dry-run", "--json").stdout)
    documented(document, "gc")
    assert [each["id"] for each in document["snapshots"]] == ["20200101T000000Z-00000000"]
    assert document["uploads"] is None
    assert lazyfs("gc", objects.path, "--grace", "36500d").stdout == ""
    assert len(Snapshots(objects).states()) == 2
    done = lazyfs("gc", objects.path)
    assert done.stdout == "20200101T000000Z-00000000\n"
    assert "1 unfinished snapshots" in done.stderr
    assert [state.id for state in Snapshots(objects).states()] == [ID]
    assert lazyfs("gc", objects.path, "--grace", "soon").exit_code == 2
