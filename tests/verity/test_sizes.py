"""Sizes and offsets of ``lazyfs verity`` that no tree or file has."""

from pathlib import Path

import pytest

from tests.verity.test_command import run

BLOCK = 4096


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * BLOCK))
    return path


@pytest.mark.parametrize("size", [0, -1, -4096, 1, 256, 1000, 1 << 20, 1 << 40, 10**30])
@pytest.mark.parametrize("name", ["data", "hash"])
def test_block_sizes_that_cannot_be(file: Path, tmp_path: Path, name: str, size: int) -> None:
    tree = tmp_path / "tree"
    words = (f"--{name}-block-size", size)
    for command in (
        ("format", file),
        ("format", file, "--tree", tree),
        ("format", file, "--hash-offset", 3 * BLOCK),
        ("verify", file, "--root", "00"),
        ("verify", file, "--root", "00", "--tree", file),
        ("verify", file, "--root", "00", "--tree", file, "--no-superblock"),
        ("verify", file, "--root", "00", "--hash-offset", BLOCK, "--no-superblock"),
    ):
        said = run(*command, *words, code=2)
        assert said["code"] == "E_VERITY_PARAMETERS"
        assert str(said["message"]).startswith(f"{name} block size {size} is not a power of two")
    assert not tree.exists()
    assert file.stat().st_size == 3 * BLOCK


@pytest.mark.parametrize("offset", [1 << 63, 1 << 64, 10**30 * 4096])
def test_offsets_that_no_file_has(file: Path, tmp_path: Path, offset: int) -> None:
    tree = tmp_path / "tree"
    for command in (
        ("format", file, "--tree", tree),
        ("format", file),
        ("verify", file, "--root", "00", "--tree", file),
        ("verify", file, "--root", "00", "--tree", file, "--no-superblock"),
    ):
        said = run(*command, "--hash-offset", offset, code=2)
        assert said["message"] == (
            f"option --hash-offset: {offset} is more than 4611686018427387904 bytes"
        )
    assert not tree.exists()


def test_offsets_that_this_file_does_not_have(file: Path) -> None:
    words = ("--root", "00" * 32, "--tree", file, "--hash-offset", 1 << 62)
    assert run("verify", file, *words, code=7)["code"] == "E_VERITY_SUPERBLOCK"
    said = run("verify", file, *words, "--no-superblock", code=6)
    assert said["message"] == "hash block 0 has 0 bytes"


@pytest.mark.parametrize("blocks", [1 << 60, 10**30])
def test_more_blocks_than_any_tree_has(file: Path, blocks: int) -> None:
    words = ("--data-blocks", blocks)
    assert run("format", file, *words, code=2)["code"] == "E_VERITY_PARAMETERS"
    assert run("verify", file, *words, "--root", "00", code=2)["code"] == "E_VERITY_PARAMETERS"
    said = run("verify", file, *words, "--root", "00", "--tree", file, "--no-superblock", code=6)
    assert "is too short" in str(said["message"])
