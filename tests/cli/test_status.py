"""``lazyfs status`` of what is not there; and what ``--index`` cannot be."""

import os
from pathlib import Path

import pytest

from lazyfs.cli.mounts.mounting import prepare_shown
from lazyfs.errors import UsageError
from lazyfs.registry.source import AccessOptions


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE", "RUNTIME"):
        monkeypatch.setenv(f"LAZYFS_{name}_DIR", str(tmp_path / name))
    return tmp_path


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_what_is_neither_a_sandbox_nor_a_directory(run, folder, words):
    done = run("status", "counter-9", *words)
    assert done.code == 3
    assert "counter-9 is neither a sandbox nor a directory" in done.err
    assert run("status", folder / "nowhere", *words).code == 3


def test_a_directory_without_a_mount(run, folder):
    done = run("status", folder)
    assert (done.code, done.out) == (0, b"")
    assert done.err == f"lazyfs: nothing is mounted on {folder}\n"
    assert run("status").err == "lazyfs: nothing is mounted\n"
    assert run("status", folder, "--json").json["mounts"] == []


@pytest.mark.parametrize("text", ["", "3004", "sha256:30", f"sha256:{'A' * 64}"])
def test_what_is_no_digest_of_an_index(cache_dir, text):
    with pytest.raises(UsageError, match=r"option --index: .* is not a digest") as caught:
        prepare_shown(f"oci:{os.devnull}", None, cache_dir, AccessOptions(), pinned=text)
    assert "lazyfs index show" in str(caught.value)
