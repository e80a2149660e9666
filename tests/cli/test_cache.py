"""``lazyfs cache``: what is kept, and how to get rid of it."""

import os
import re
from pathlib import Path

import pytest

from lazyfs.digest import parse_digest
from lazyfs.store.content.content import LayerContent
from lazyfs.store.layers import load_table
from lazyfs.store.paths import Store
from lazyfs.store.pins import remove_pin, save_pin
from tests.support.formats.images import layer_from_fixture, make_layout, tagged

TOC_KEY = "containerd.io/snapshot/stargz/toc.digest"


@pytest.fixture
def images(run, tmp_path) -> list[str]:
    """Two images that share a layer; both are in the cache, with content.  Manifest digests."""
    shared, one, other = map(layer_from_fixture, ("edge-chunk4k", "real-gnu", "real-ustar-level1"))
    digests = []
    for number, layer in enumerate((one, other)):
        folder = tmp_path / f"image{number}"
        digests.append(str(make_layout(folder, [shared, layer])))
        assert run("verify", f"oci:{folder}").code == 0
    return digests


def toc_digest(name: str) -> str:
    return layer_from_fixture(name).annotations[TOC_KEY]


def files_in(folder: Path) -> set[str]:
    return {
        os.path.relpath(Path(where) / name, folder)
        for where, _, names in os.walk(folder)
        for name in names
    }


def test_nothing(run, cache_dir):
    assert run("cache", "ls").out == b""
    assert run("cache", "ls", "--json").json == {
        "cacheDir": str(cache_dir),
        "images": [],
        "layers": [],
    }
    assert run("cache", "rm", "--all").code == 0
    assert run("cache", "rm", "abcdef").code == 3
    assert run("cache", "prune", "--size", "0").code == 0
    assert run("cache", "prune", "--unused", "--json").json["freedSize"] == 0
    assert run("cache", "du", "--json").json["allocatedSize"] == 0
    assert run("cache", "verify").code == 0
    assert not cache_dir.exists()  # looking does not make one


def test_what_a_sandbox_needs_is_not_removed(run, images, cache_dir, tmp_path):
    save_pin(Store(cache_dir), tmp_path, images[:1])
    done = run("cache", "rm", *images)
    assert done.code == 1
    assert f"image {images[0]} is needed by sandbox {tmp_path.name}" in done.err
    held = run("cache", "du", "--json").json
    assert [each["manifestDigest"] for each in held["images"]] == images[:1]
    assert len(held["layers"]) == 2
    assert {tuple(each["pinnedBy"]) for each in held["layers"]} == {(tmp_path.name,)}
    assert f"needed by {tmp_path.name}" in run("cache", "ls").text
    assert f"needed by {tmp_path.name}" in run("cache", "du").text
    done = run("cache", "rm", toc_digest("edge-chunk4k"))
    assert (done.code, "is needed by sandbox" in done.err) == (1, True)
    done = run("cache", "rm", "--all", "--json")
    assert (done.code, done.json["pinned"], done.json["images"]) == (0, images[:1], [])
    remove_pin(Store(cache_dir), tmp_path)
    assert run("cache", "rm", images[0]).code == 0


def test_ls(run, images, cache_dir):
    lines = run("cache", "ls").text.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(images)
    assert all("linux/" in line and "2 layers" in line for line in lines)
    found = run("cache", "ls", "--json").json
    assert {image["manifestDigest"] for image in found["images"]} == set(images)
    assert not any(image["inUse"] for image in found["images"])
    layers = {layer["tocDigest"]: layer for layer in found["layers"]}
    assert len(layers) == 3
    assert layers[toc_digest("edge-chunk4k")]["images"] == sorted(images)
    assert all(layer["allocatedSize"] > 0 for layer in layers.values())


def test_rm_keeps_what_is_shared(run, images, tmp_path):
    done = run("cache", "rm", images[0], "--json")
    assert done.code == 0
    assert done.json["images"] == [images[0]]
    assert done.json["layers"] == [toc_digest("real-gnu")]
    assert done.json["freedSize"] > 0
    found = run("cache", "ls", "--json").json
    assert [image["manifestDigest"] for image in found["images"]] == [images[1]]
    assert len(found["layers"]) == 2
    again = run("verify", f"oci:{tmp_path}/image0", "--json").json
    assert again["verified"]
    assert again["storedSize"] > 0


@pytest.mark.parametrize("spelling", ["{}", "{:.19}", "docker.io/library/x@{}", "{hex:.6}"])
def test_rm_by_any_name(run, images, spelling):
    text = spelling.format(images[0], hex=images[0].removeprefix("sha256:"))
    assert run("cache", "rm", text).text.splitlines()[0] == images[0]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        *(([], 2), (["abc"], 3), (["zzzzzzzz"], 3), (["ffffffffffff"], 3), (["python:3.12"], 3)),
        *((["Bad Name"], 3), (["x@sha256:" + "0" * 64], 3), (["sha256:" + "0" * 64], 3)),
    ],
)
def test_rm_of_nothing(run, images, words, code):
    assert run("cache", "rm", *words).code == code
    assert len(run("cache", "ls", "--json").json["images"]) == 2


def test_rm_of_a_layer(run, images, tmp_path):
    digest = toc_digest("edge-chunk4k")
    assert run("cache", "rm", digest).text == f"{digest}\n"
    assert len(run("cache", "ls", "--json").json["layers"]) == 2
    assert run("verify", f"oci:{tmp_path}/image0").code == 0  # it comes back


def test_unused_layers(run, images, tmp_path, cache_dir):
    make_layout(tmp_path / "other", [layer_from_fixture("edge-default")])
    assert run("inspect", f"oci:{tmp_path}/other").code == 0  # its TOC is kept, no image
    assert "1 layers that belong to no image" in run("cache", "ls").text
    assert run("cache", "prune", "--unused", "--json").json["freedSize"] > 0
    assert "belong to no image" not in run("cache", "ls").text
    assert len(run("cache", "ls", "--json").json["images"]) == 2
    assert run("verify", f"oci:{tmp_path}/image0", "--json").json["storedSize"] > 0


def test_rm_all(run, images, cache_dir):
    done = run("cache", "rm", "--all")
    assert done.code == 0
    assert len(done.text.splitlines()) == 5
    assert run("cache", "ls").out == b""
    assert files_in(cache_dir) == {"version", "CACHEDIR.TAG"}


class TestInUse:
    @pytest.fixture
    def opened(self, images, cache_dir):
        """Hold the layers of the first image as a mount does."""
        store = Store(cache_dir)
        contents = []
        for name in ("edge-chunk4k", "real-gnu"):
            digest = parse_digest(toc_digest(name))
            contents.append(LayerContent(store.layer_path(digest), load_table(store, digest)))
        yield images[0]
        for content in contents:
            content.close()

    def test_it_stays(self, run, images, opened):
        done = run("cache", "rm", opened)
        assert done.code == 1
        assert opened in done.err
        assert "lazyfs status" in done.err
        found = run("cache", "ls", "--json").json
        assert {i["manifestDigest"]: i["inUse"] for i in found["images"]} == {
            images[0]: True,
            images[1]: False,
        }

    def test_all_but_it(self, run, images, opened, cache_dir):
        done = run("cache", "rm", "--all", "--json")
        assert done.code == 0
        assert done.json["images"] == [images[1]]
        assert opened in done.json["inUse"]
        found = run("cache", "ls", "--json").json
        assert [image["manifestDigest"] for image in found["images"]] == [images[0]]
        assert len(found["layers"]) == 2
        # Its manifest and config are still there.
        blobs = {path.name for path in cache_dir.glob("blobs/sha256/*")}
        assert blobs == {
            digest.removeprefix("sha256:")
            for digest in (images[0], found["images"][0]["configDigest"])
        }


def test_prune(run, images, tmp_path, monkeypatch):
    before = run("cache", "du", "--json").json
    done = run("cache", "prune", "--size", "0", "--json").json
    assert 0 < done["freedSize"] < before["allocatedSize"]
    assert done["allocatedSize"] == before["allocatedSize"] - done["freedSize"]
    assert len(run("cache", "ls", "--json").json["images"]) == 2
    assert run("verify", f"oci:{tmp_path}/image0", "--json").json["storedSize"] == 0
    assert run("cache", "prune", "--size", "1TiB", "--json").json["freedSize"] == 0
    assert "0 B freed" in run("cache", "prune").err
    monkeypatch.setenv("LAZYFS_CACHE_SIZE", "1")
    done = run("cache", "prune", "--json").json
    assert done["budget"] == 1
    assert done["freedSize"] > 0
    assert run("cache", "prune", "--size", "2GB", "--json").json["budget"] == 2 * 10**9
    assert run("cache", "prune", "--cache-size", "3GB", "--json").json["budget"] == 3 * 10**9
    assert run("cache", "prune", "--size", "lots").code == 2


def test_rm_by_reference(run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name,) = next(
        image["names"]
        for image in run("cache", "ls", "--json").json["images"]
        if image["manifestDigest"] == images[0]
    )
    assert name == f"oci:{tmp_path}/image0"
    assert f"  {name}" in run("cache", "ls").text
    assert run("cache", "rm", "oci:image0").text.splitlines()[0] == images[0]
    assert run("cache", "rm", "oci:image0").code == 3
    assert [i["manifestDigest"] for i in run("cache", "ls", "--json").json["images"]] == [images[1]]


def test_rm_by_the_digest_of_an_index(run, tmp_path, cache_dir):
    make_layout(tmp_path / "image", [layer_from_fixture("edge-chunk4k")], index=True)
    index = tagged(tmp_path / "image")["digest"]
    assert run("verify", f"oci:{tmp_path}/image").code == 0
    (image,) = run("cache", "ls", "--json").json["images"]
    assert image["manifestDigest"] != index
    done = run("cache", "rm", f"anything@{index}", "--json").json
    assert done["images"] == [image["manifestDigest"]]
    assert files_in(cache_dir) == {"version", "CACHEDIR.TAG"}


def test_du(run, images):
    found = run("cache", "du", "--json").json
    layers = {layer["tocDigest"]: layer for layer in found["layers"]}
    shared = layers[toc_digest("edge-chunk4k")]
    assert shared["images"] == sorted(images)
    assert all(0 < each["residentSize"] == each["contentSize"] for each in layers.values())
    for image in found["images"]:
        assert image["sharedSize"] == shared["allocatedSize"]
        own = [layers[each] for each in image["layers"] if each != shared["tocDigest"]]
        assert image["ownSize"] == sum(layer["allocatedSize"] for layer in own)
    parts = sum(layer["allocatedSize"] for layer in layers.values())
    parts += sum(image["indexSize"] for image in found["images"])
    assert found["allocatedSize"] == parts + found["otherSize"]
    text = run("cache", "du").text.splitlines()
    assert [line.split()[0] for line in text[:-1]] == ["image"] * 2 + ["layer"] * 3
    assert "the budget is" in text[-1]


def test_verify(run, images, cache_dir, tmp_path):
    done = run("cache", "verify")
    assert done.code == 0
    assert done.text.startswith("verified: 2 images, 3 layers, 4 documents, ")
    assert done.err == ""
    content = next(cache_dir.glob(f"layers/{toc_digest('real-gnu')[7:]}/content"))
    with content.open("r+b") as file:
        file.write(b"\xee")
    done = run("cache", "verify")
    assert done.code == 6
    assert done.out == b""
    assert f"{content.relative_to(cache_dir)}, chunk 0: wrong bytes" in done.err
    done = run("cache", "verify", "--repair", "--json")
    assert done.code == 6
    assert [fault["dropped"] for fault in done.json["rotten"]] == [True]
    assert run("cache", "verify", "--json").json["verified"] is True
    assert run("verify", f"oci:{tmp_path}/image0", "--json").json["repairedChunks"] == 0


def test_help(run):
    text = run("cache", "--help").text
    assert re.findall(r"^  (\w+) ", text, re.MULTILINE) == ["du", "ls", "prune", "rm", "verify"]
    assert run("cache", "nope").code == 2
