"""``lazyfs inspect``: what an image is, and why a layer cannot be mounted lazily."""

import json
from dataclasses import replace

import pytest

from tests.support.formats.images import (
    Layer,
    blob_path,
    layer_from_fixture,
    make_layout,
    plain_layer,
    source_tar,
    tagged,
    tamper_blob,
)
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry

FIELDS = {
    "trust",
    "reference",
    "resolved",
    "indexDigest",
    "manifestDigest",
    "configDigest",
    "platform",
    "layers",
}
TOC_KEY = "containerd.io/snapshot/stargz/toc.digest"


@pytest.fixture
def lazy() -> Layer:
    return layer_from_fixture("edge-chunk4k")


def test_a_lazy_image(run, tmp_path, lazy):
    other = layer_from_fixture("real-gnu")
    digest = make_layout(tmp_path / "image", [other, lazy])
    found = run("inspect", f"oci:{tmp_path}/image", "--json").json
    assert set(found) == FIELDS
    assert found["reference"] == f"oci:{tmp_path}/image"
    assert found["resolved"] == f"oci:{tmp_path}/image@{digest}"
    assert found["manifestDigest"] == str(digest)
    assert found["indexDigest"] is None
    assert found["trust"] is None  # no policy is in force
    manifest = json.loads(blob_path(tmp_path / "image", digest).read_text())
    assert found["configDigest"] == manifest["config"]["digest"]
    for shown, layer in zip(found["layers"], (other, lazy), strict=True):
        assert shown == {
            "digest": str(layer.digest),
            "size": layer.size,
            "mediaType": layer.media_type,
            "diffId": str(layer.diff_id),
            "format": "estargz",
            "tocDigest": layer.annotations[TOC_KEY],
            "dialect": None,
            "verifiedBy": ["toc"],
            "tarSplit": False,
            "lazy": True,
            "why": None,
        }


def test_for_people(run, tmp_path, lazy):
    make_layout(tmp_path / "image", [lazy, plain_layer(source_tar("edge"))])
    done = run("inspect", f"oci:{tmp_path}/image")
    assert (done.code, done.err) == (0, "")
    assert "2, 1 lazy" in done.text
    assert "estargz  lazy, verified by its TOC's digest" in done.text
    assert "not lazy (plain gzip); downloaded in full by the first mount" in done.text
    assert "\nhint       `lazyfs convert`" in done.text
    assert str(lazy.digest) in done.text


def test_how_much_is_here(run, tmp_path, lazy):
    image = f"oci:{tmp_path}/image"
    digest = make_layout(tmp_path / "image", [lazy, plain_layer(source_tar("edge"))])
    done = run("inspect", "--content", image, "--json")
    assert (done.code, done.json["complete"]) == (3, False)
    first, plain = done.json["layers"]
    assert (plain["contentSize"], plain["missingSize"], plain["presentSize"]) == (None, None, 0)
    assert first["presentSize"] == 0
    assert "nothing cached" in run("inspect", "--content", image).text
    assert run("inspect", image).code == 0
    assert run("pull", image).code == 0
    names = (image, f"{image}@{digest}", str(digest))
    for words in ([name, word] for name in names for word in ("--content", "--content=hash")):
        done = run("inspect", *words, "--json")
        assert (done.code, done.json["complete"]) == (0, True), done.err
        assert done.json["reference"] == words[0]
        assert done.json["manifestDigest"] == str(digest)
        for layer in done.json["layers"]:
            assert layer["presentSize"] == layer["contentSize"] > 0
            assert layer["missingSize"] == 0
            assert layer["rottenChunks"] == (None if words[1] == "--content" else 0)
    assert "content    complete" in run("inspect", image, "--content").text


def test_what_has_rotted_is_missing(run, tmp_path, lazy, cache_dir):
    image = f"oci:{tmp_path}/image"
    make_layout(tmp_path / "image", [lazy])
    assert run("pull", image).code == 0
    (content,) = cache_dir.glob("layers/*/content")
    with content.open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    assert run("inspect", image, "--content").code == 0  # nothing is hashed
    done = run("inspect", image, "--content=hash", "--json")
    (layer,) = done.json["layers"]
    assert (done.code, layer["rottenChunks"]) == (3, 1)
    assert layer["missingSize"] == layer["contentSize"] - layer["presentSize"] > 0
    assert run("inspect", image, "--content").code == 3
    assert run("inspect", image, "--content=other").code == 2


def test_every_reason(run, tmp_path, lazy):
    other = layer_from_fixture("real-gnu")
    wrong = {TOC_KEY: other.annotations[TOC_KEY]}
    layers = {
        "plain gzip": (plain_layer(source_tar("edge")), "gzip"),
        "plain tar": (plain_layer(source_tar("edge"), compression="none"), "tar"),
        "plain zstd": (plain_layer(source_tar("edge"), compression="zstd"), "zstd"),
        "TOC is in another image": (layer_from_fixture("edge-exttoc"), "estargz-external-toc"),
        "no digest of its TOC": (replace(lazy, annotations={}), "estargz"),
        "TOC: got sha256": (replace(lazy, annotations=wrong), "estargz"),
        "is not a digest": (replace(lazy, annotations={TOC_KEY: "x"}), "unknown"),
        "expected at least 51": (Layer(b"tiny", lazy.media_type, {}, lazy.diff_id), "gzip"),
        "got 0 bytes": (Layer(b"", lazy.media_type, {}, lazy.diff_id), "gzip"),
        "damaged": (replace(lazy, blob=lazy.blob[:-1] + b"x"), "estargz-damaged"),
    }
    make_layout(tmp_path / "image", [layer for layer, _ in layers.values()])
    found = run("inspect", f"oci:{tmp_path}/image", "--json").json
    for shown, (why, (_, name)) in zip(found["layers"], layers.items(), strict=True):
        assert not shown["lazy"]
        assert why in shown["why"]
        assert shown["format"] == name


def test_a_missing_blob_is_a_reason(run, tmp_path, lazy):
    make_layout(tmp_path / "image", [lazy, layer_from_fixture("real-gnu")])
    blob_path(tmp_path / "image", lazy.digest).unlink()
    done = run("inspect", f"oci:{tmp_path}/image", "--json")
    assert [layer["lazy"] for layer in done.json["layers"]] == [False, True]
    assert done.code == 0


def test_an_index(run, tmp_path, lazy):
    make_layout(
        tmp_path / "image",
        [lazy],
        platform="linux/amd64",
        others={"linux/arm64/v8": [layer_from_fixture("real-gnu")]},
    )
    found = run("inspect", f"oci:{tmp_path}/image", "--platform", "arm64", "--json").json
    assert found["platform"] == "linux/arm64"
    assert found["indexDigest"] == tagged(tmp_path / "image")["digest"]
    assert found["layers"][0]["digest"] != str(lazy.digest)
    done = run("inspect", f"oci:{tmp_path}/image", "--platform", "linux/s390x")
    assert done.code == 3
    assert "linux/amd64, linux/arm64" in done.err


def test_docker_documents_cannot_vouch(run, tmp_path, lazy):
    make_layout(tmp_path / "image", [lazy], docker=True)
    (shown,) = run("inspect", f"oci:{tmp_path}/image", "--json").json["layers"]
    assert (shown["format"], shown["lazy"]) == ("estargz", False)
    assert "no digest of its TOC" in shown["why"]


class TestRegistry:
    @pytest.fixture
    def image(self, tmp_path, lazy):
        make_layout(tmp_path / "image", [lazy])
        with FakeRegistry(tmp_path / "image") as registry:
            yield registry

    def test_no_content_is_fetched(self, run, image, lazy):
        found = run("inspect", f"{image.host}/app", "--json").json
        assert found["resolved"].startswith(f"{image.host}/app@sha256:")
        assert found["layers"][0]["lazy"]
        assert image.count("GET", f"/blobs/{lazy.digest}") == 2
        requests = image.count()
        again = run("inspect", f"{image.host}/app@{found['manifestDigest']}", "--json").json
        assert again["layers"] == found["layers"]
        assert image.count() == requests  # all of it is kept

    @pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 4), (404, 3), (418, 5)])
    def test_refusals(self, run, image, status, code):
        image.faults.add(faults.status(status), path="/manifests/")
        done = run("inspect", f"{image.host}/app")
        assert done.code == code
        assert not done.out

    def test_errors_as_json(self, run, image):
        done = run("inspect", f"{image.host}/app:nope", "--json")
        assert done.code == 3
        error = json.loads(done.err)
        assert error["type"] == "error"
        assert error["exitCode"] == 3


def test_bad_documents(run, tmp_path, lazy):
    digest = make_layout(tmp_path / "image", [lazy])
    tamper_blob(tmp_path / "image", digest, 5)
    assert run("inspect", f"oci:{tmp_path}/image").code == 6
    assert run("inspect", f"oci:{tmp_path}/nothing").code == 3
    assert run("inspect", "Not A Reference").code == 2
    assert run("inspect").code == 2
