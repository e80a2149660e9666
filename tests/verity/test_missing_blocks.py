"""``lazyfs verity`` and files that are too short."""

import hashlib
import os
from pathlib import Path

import pytest

from lazyfs.cli.images import verity_files
from tests.verity.test_command import run
from tests.verity.test_half_written import unbuffered

BLOCK = 4096
NO_SALT = ("--salt", "-")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One block at random, then two of zeros."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(BLOCK) + bytes(2 * BLOCK))
    return path


@pytest.mark.parametrize("words", [(), ("--no-superblock",)])
@pytest.mark.parametrize(("size", "present"), [(0, 0), (1, 1), (BLOCK, 1), (2 * BLOCK, 2)])
def test_missing_blocks_are_not_zeros(
    file: Path, tmp_path: Path, size: int, present: int, words: tuple[str, ...]
) -> None:
    tree = tmp_path / "tree"
    root = run("format", file, "--tree", tree, *NO_SALT, *words)["root"]
    named = ("--data-blocks", 3, "--root", root, *NO_SALT, *words)
    assert run("verify", file, "--tree", tree, *named)["dataBlocks"] == 3
    assert run("verify", file, *named)["dataBlocks"] == 3
    os.truncate(file, size)
    expected = f"{file} is too short: it has {present} of 3 blocks of data"
    for where in (("--tree", tree), ()):
        assert run("verify", file, *where, *named, code=6)["message"] == expected


def test_the_last_block_may_be_short(file: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    root = run("format", file, "--tree", tree, *NO_SALT)["root"]
    os.truncate(file, 2 * BLOCK + 1)
    for where in (("--tree", tree), ()):
        assert run("verify", file, *where, "--root", root, *NO_SALT)["dataBlocks"] == 3


def test_an_empty_file_has_no_blocks(tmp_path: Path) -> None:
    file, tree = tmp_path / "file", tmp_path / "tree"
    file.touch()
    tree.touch()
    root = hashlib.sha256(bytes(BLOCK)).hexdigest()
    for where in ((), ("--no-superblock", "--tree", tree)):
        said = run("verify", file, *where, "--root", root, *NO_SALT, code=6)
        assert said["message"] == f"{file} is too short: it has 0 of 1 blocks of data"
    said = run("format", file, code=2)
    assert said["message"] == f"{file} has 0 bytes: fewer than 1 blocks of data"


def test_a_tree_inside_that_was_cut_off(file: Path) -> None:
    words = ("--hash-offset", 3 * BLOCK, "--no-superblock", *NO_SALT)
    root = run("format", file, *words)["root"]
    assert run("verify", file, *words, "--root", root)["dataBlocks"] == 3
    os.truncate(file, BLOCK)
    said = run("verify", file, *words, "--root", root, code=6)
    assert said["message"] == f"{file} is too short: it has 1 of 3 blocks of data"


def test_a_tree_inside_is_no_padding(tmp_path: Path) -> None:
    """What a kernel would read as data has to be verified, or nothing is."""
    file = tmp_path / "file"
    data = os.urandom(512)
    root = hashlib.sha256(data.ljust(BLOCK, b"\0")).hexdigest()
    file.write_bytes(data + os.urandom(BLOCK))
    words = ("--hash-offset", 512, "--hash-block-size", 512, "--no-superblock", *NO_SALT)
    said = run("verify", file, *words, "--root", root, code=2)
    assert said["message"] == ("option --hash-offset: 512 lies within the data, which ends at 4096")


def test_a_file_that_shrinks_while_it_is_verified(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    root = run("format", file, "--tree", tree)["root"]
    verify = verity_files.PathVerifier.verify

    def shrinking(verifier: verity_files.PathVerifier, number: int, block: bytes) -> None:
        os.truncate(file, BLOCK)
        verify(verifier, number, block)

    monkeypatch.setattr(verity_files.PathVerifier, "verify", shrinking)
    monkeypatch.setattr(verity_files, "_opened", unbuffered)
    said = run("verify", file, "--tree", tree, "--root", root, code=1)
    assert said["message"] == "the file shrank while it was read"
