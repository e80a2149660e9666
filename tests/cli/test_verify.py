"""``lazyfs verify``: every byte, and what is said of those that are wrong."""

import os
import pty
import select
import subprocess
import sys

import pytest

from lazyfs.formats.estargz import find_toc, read_toc
from tests.support.formats.images import (
    estargz_layer,
    file,
    layer_from_fixture,
    make_layout,
    tamper_blob,
    tar_bytes,
)
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry


@pytest.fixture
def layers():
    return [layer_from_fixture("real-gnu"), layer_from_fixture("edge-chunk4k")]


@pytest.fixture
def image(tmp_path, layers) -> str:
    make_layout(tmp_path / "image", layers)
    return f"oci:{tmp_path}/image"


def content_size(layer) -> int:
    location = find_toc(layer.blob, layer.size)
    member = layer.blob[location.start : location.end]
    toc = read_toc(member, expected=None, blob_size=layer.size).toc
    return sum(entry.size for entry in toc.entries)


def test_all_is_right(run, image, layers):
    size = sum(map(content_size, layers))
    found = run("verify", image, "--json").json
    assert found["verified"] is True
    assert found["errors"] == []
    assert (found["contentSize"], found["residentSize"]) == (size, size)
    assert found["storedSize"] == 0
    assert found["resolved"].startswith(f"{image}@sha256:")
    again = run("verify", image, "--json").json
    assert again["storedSize"] == size
    done = run("verify", image)
    assert done.code == 0
    assert done.text.endswith(": verified, 2 layers (2 also by diffID), 302.9 KiB\n")
    assert done.err == ""


def test_a_damaged_layer(run, image, tmp_path, layers):
    tamper_blob(tmp_path / "image", layers[1].digest, 30_000)
    done = run("verify", image)
    assert done.code == 6
    assert done.out == b""
    assert "not verified" in done.err
    assert "sha256" in done.err
    found = run("verify", image, "--json")
    assert found.code == 6
    assert found.json["verified"] is False
    assert found.json["errors"][0]["code"] == "E_VERIFICATION"
    assert 0 < found.json["residentSize"] < found.json["contentSize"]


def test_damage_in_the_cache_is_repaired(run, image, cache_dir):
    assert run("verify", image).code == 0
    damaged = 0
    for path in cache_dir.glob("layers/*/content"):
        with open(path, "r+b") as content:
            content.write(b"\xee")
        damaged += 1
    done = run("verify", image)
    assert done.code == 0
    assert f"{damaged} chunks were damaged" in done.err
    assert run("verify", image, "--json").json["repairedChunks"] == 0


def test_a_registry_that_goes_away(run, tmp_path, layers):
    make_layout(tmp_path / "image", layers)
    with FakeRegistry(tmp_path / "image") as registry:
        assert run("ls", f"{registry.host}/app").code == 0
        registry.faults.add(faults.status(404), path=f"/blobs/{layers[1].digest}", times=None)
        done = run("verify", f"{registry.host}/app", "--json")
        assert done.code == 3
        assert not done.json["verified"]
        registry.faults.clear()
        assert run("verify", f"{registry.host}/app").code == 0


def test_the_gravest_error_decides(run, tmp_path, layers):
    make_layout(tmp_path / "image", layers)
    tamper_blob(tmp_path / "image", layers[1].digest, 30_000)
    with FakeRegistry(tmp_path / "image") as registry:
        assert run("ls", f"{registry.host}/app").code == 0
        registry.faults.add(faults.status(404), path=f"/blobs/{layers[0].digest}", times=None)
        assert run("verify", f"{registry.host}/app").code == 6


def test_a_bar_on_a_terminal(tmp_path):
    make_layout(tmp_path / "image", [estargz_layer(tar_bytes([file("a", os.urandom(5 << 20))]))])
    leader, follower = pty.openpty()
    environment = {
        **os.environ,
        "LAZYFS_CACHE_DIR": str(tmp_path / "cache"),
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    command = [sys.executable, "-m", "lazyfs", "verify", f"oci:{tmp_path}/image"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    try:
        shown = b""
        while select.select([leader], [], [], 20)[0]:
            try:
                shown += os.read(leader, 1000)
            except OSError:
                break
        out = process.communicate(timeout=20)[0]
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    assert b"verify" in shown
    assert b"MiB" in shown
    assert out.endswith(b"verified, 1 layers (1 also by diffID), 5.0 MiB\n")


def test_progress_in_lines(run, image, monkeypatch):
    from lazyfs.cli import progress

    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    done = run("verify", image, "--progress", "plain")
    assert "verify: " in done.err
    assert done.err.splitlines()[-1].endswith("of 310157 bytes")
    assert run("verify", image, "--progress", "none").err == ""
