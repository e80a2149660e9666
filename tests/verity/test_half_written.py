"""``lazyfs verity format`` that fails or is interrupted: nothing of a tree is left."""

import errno
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner

from lazyfs.cli.images import verity_files
from lazyfs.cli.main import cli
from tests.verity.test_command import run

SIZE = 1_000_000
OFFSET = 245 * 4096
HALF = 8192  # of a tree of 12288 bytes, the superblock not counted


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return what runs a command whose files may have so many bytes, and that fails."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which the limit would cut off

    def run_limited(limit: int, *words: object) -> dict[str, Any]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            return run("format", *words, code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return run_limited


@pytest.mark.parametrize("words", [[], ["--no-superblock"]])
@pytest.mark.parametrize("limit", [100, HALF, HALF + 100])
def test_no_part_of_a_tree_stays(
    file: Path,
    tmp_path: Path,
    limited: Callable[..., dict[str, Any]],
    limit: int,
    words: list[str],
) -> None:
    tree = tmp_path / "tree"
    said = limited(limit, file, "--tree", tree, *words)
    assert said["code"] == "E_STORE"
    assert said["message"] == f"the tree of {file} cannot be written: File too large"
    assert not tree.exists()
    assert run("format", file, "--tree", tree)["treeSize"] == 12288


@pytest.mark.parametrize("words", [[], ["--no-superblock"]])
def test_a_file_gets_its_size_back(
    file: Path, limited: Callable[..., dict[str, Any]], words: list[str]
) -> None:
    before = file.read_bytes()
    said = limited(OFFSET + HALF, file, "--hash-offset", OFFSET, *words)
    assert said["code"] == "E_STORE"
    assert file.read_bytes() == before
    assert run("format", file, "--hash-offset", OFFSET)["treeSize"] == 12288


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize(
    ("what", "code"), [(KeyboardInterrupt(), 130), (OSError(errno.EIO, "broken"), 1)]
)
def test_interrupted_when_all_was_written(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: BaseException,
    code: int,
    is_inside: bool,
) -> None:
    def fsync(descriptor: int) -> None:
        raise what

    tree, before = tmp_path / "tree", file.read_bytes()
    where = ["--hash-offset", OFFSET] if is_inside else ["--tree", tree]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        done = CliRunner().invoke(cli, ["verity", "format", *map(str, (file, *where))])
    assert done.exit_code == code, done.output
    assert "bug" not in done.stderr
    assert not tree.exists()
    assert file.read_bytes() == before


def unbuffered(path: Path) -> IO[bytes]:
    return open(path, "rb", buffering=0)


def test_a_file_that_shrinks(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no tree then, and of one begun nothing is left."""
    tree = tmp_path / "tree"
    monkeypatch.setattr(verity_files, "PIECE", 600_000)
    update = verity_files.TreeWriter.update

    def shrinking(writer: verity_files.TreeWriter, data: bytes) -> None:
        os.truncate(file, 600_000)
        update(writer, data)

    monkeypatch.setattr(verity_files.TreeWriter, "update", shrinking)
    monkeypatch.setattr(verity_files, "_opened", unbuffered)
    said = run("format", file, "--tree", tree, code=1)
    assert said["message"] == "the file shrank while it was read"
    assert not tree.exists()


def test_what_cannot_be_undone_is_said(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise OSError(errno.EPERM, "not allowed")

    tree = tmp_path / "tree"
    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    said = run("format", file, "--tree", tree, code=1)
    assert said["message"] == f"{tree} keeps a part of a tree: not allowed"
    assert said["hint"] == "remove it"
