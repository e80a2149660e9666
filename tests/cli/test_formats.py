"""Every command on a layer of zstd frames, and what ``--verify=blob`` changes."""

import random

import pytest

from tests.support.formats.images import layer_from_fixture, make_layout
from tests.support.formats.stargz import stargz_layer
from tests.support.formats.zstdchunked import contents, zstd_layer

FILES = {
    "a": [b"one chunk"],
    "dir/b": [random.Random(0).randbytes(3000), 100_000, b"y" * 4000],
    "zeros": [70_000],
}


@pytest.fixture(params=["stargz", "containers"])
def image(tmp_path, request):
    make_layout(tmp_path / "image", [zstd_layer(FILES, dialect=request.param)])
    return f"oci:{tmp_path}/image"


def test_reading(run, image):
    assert run("cat", image, "a", "dir/b", "zeros").out == b"".join(contents(FILES).values())
    listed = run("ls", "--json", image, "dir").json["entries"]
    assert [(entry["name"], entry["size"]) for entry in listed] == [("b", 107_000)]


def test_inspect(run, image):
    dialect = "containers" if "containers" in run("inspect", image).text else "stargz"
    (layer,) = run("inspect", "--json", image).json["layers"]
    assert (layer["format"], layer["dialect"], layer["lazy"]) == ("zstd:chunked", dialect, True)
    assert layer["verifiedBy"] == ["compressed-toc"]
    assert layer["tarSplit"] == (dialect == "containers")
    text = run("inspect", image).text
    assert f"zstd:chunked ({dialect})  lazy, verified by its compressed TOC's digest" in text


def test_verify_and_the_cache(run, image):
    found = run("verify", "--json", image).json
    assert found["verified"]
    assert found["residentSize"] == found["contentSize"] == 177_009
    (layer,) = run("inspect", "--json", image).json["layers"]
    assert found["diffIds"] == [layer["diffId"]]
    # Again, all of it from the cache.
    assert run("verify", "--json", image).json["storedSize"] == 177_009
    checked = run("cache", "verify", "--json")
    assert (checked.code, checked.json["rotten"]) == (0, [])


def test_offline_the_tar_is_not_built_again(run, image):
    assert run("verify", image).code == 0
    found = run("verify", "--json", "--offline", image)
    assert (found.code, found.json["verified"]) == (0, True)


def test_the_blob_vouches(run, tmp_path):
    make_layout(tmp_path / "legacy", [stargz_layer({"f": b"text"})])
    legacy = f"oci:{tmp_path}/legacy"
    (layer,) = run("inspect", "--json", "--verify=blob", legacy).json["layers"]
    assert (layer["format"], layer["lazy"], layer["verifiedBy"]) == ("stargz", True, ["blob"])
    assert "its own digest" in run("inspect", "--verify=blob", legacy).text
    assert run("verify", "--verify=blob", legacy).code == 0
    assert run("cat", legacy, "f").out == b"text"


def test_docker_schema_2(run, tmp_path):
    make_layout(tmp_path / "image", [layer_from_fixture("real-gnu")], docker=True)
    assert run("verify", "--verify", "blob", f"oci:{tmp_path}/image").code == 0


def test_other_words(run, tmp_path):
    done = run("inspect", "--verify=nothing", f"oci:{tmp_path}")
    assert done.code == 2
    assert "toc" in done.err
