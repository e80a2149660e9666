"""``lazyfs pull``: what a name means, and all of it here."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lazyfs.cli.main import cli
from lazyfs.image import build as module
from lazyfs.store.paths import Store, StoreFull
from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.registries.faults import status
from tests.support.registries.registry import FakeRegistry


def layer_of(text: bytes):
    return estargz_layer(tar_bytes([directory("etc"), file("etc/base", text * 4000)]))


A, B = layer_of(b"old"), layer_of(b"new")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    make_layout(tmp_path / "layout", [A])
    with FakeRegistry(tmp_path / "layout") as serving:
        yield serving


def pull(tmp_path: Path, *words: str) -> tuple[int, dict]:
    done = CliRunner().invoke(
        cli, ["pull", *words, "--json", "--cache-dir", str(tmp_path / "cache")]
    )
    return done.exit_code, json.loads(done.stdout or "{}")


def test_what_is_pulled_is_all_here(registry: FakeRegistry, tmp_path: Path) -> None:
    """C1 and C5: asked for once, then only by force; a name that moves is told of."""
    name = f"{registry.host}/box:latest"
    code, first = pull(tmp_path, name)
    assert (code, first["complete"], first["previous"], first["asked"]) == (0, True, None, True)
    assert first["residentSize"] >= 12000
    registry.forget_requests()
    code, again = pull(tmp_path, name)
    assert (code, again["moved"], again["asked"]) == (0, False, False)
    assert registry.requests == []
    make_layout(tmp_path / "layout", [B])
    code, forced = pull(tmp_path, name, "--force")
    assert (code, forced["moved"], forced["previous"]) == (0, True, first["manifestDigest"])
    old = first["manifestDigest"].removeprefix("sha256:")
    assert (tmp_path / "cache" / "images" / old).is_dir()  # C4: nothing is removed
    assert pull(tmp_path, name, "--force")[1]["moved"] is False


def test_what_has_rotted_is_fetched_again(registry: FakeRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/box:latest"
    pull(tmp_path, name)
    (content,) = tmp_path.glob("cache/layers/*/content")
    data = content.read_bytes()
    content.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    code, found = pull(tmp_path, name)
    assert (code, found["repairedChunks"], found["complete"]) == (0, 1, True)
    assert content.read_bytes() == data


def test_what_cannot_be_had_is_told(registry: FakeRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/box:latest"
    registry.faults.add(status(404), path="/blobs/", skip=2, times=None)
    code, found = pull(tmp_path, name)
    assert (code, found["complete"]) == (3, False)
    assert found["errors"]


def test_what_cannot_be_kept_is_not_here(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of it was right; it is not on this machine all the same."""
    saved = module.save_image

    def save(store: Store, *rest: object) -> object:
        if store.root == tmp_path / "cache":
            raise StoreFull("store: no space left on device")
        return saved(store, *rest)

    monkeypatch.setattr(module, "save_image", save)
    code, found = pull(tmp_path, f"{registry.host}/box:latest")
    assert (code, found["complete"], found["residentSize"]) == (1, False, 0)
    assert "could be stored; the disk may be full" in found["errors"][0]["message"]
