"""Files that are written as a whole."""

import os
import stat
from pathlib import Path

import pytest

from lazyfs.documents.durable import put_file


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    put_file(path, b"new", tmp_path / ".part")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """It is removed, not written through: it may be a link by now."""
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / ".part").symlink_to("other")
    put_file(tmp_path / "file", b"new", tmp_path / ".part")
    assert (tmp_path / "other").read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize("is_synced", [True, False])
def test_the_disk_is_waited_for_before_the_name_and_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_synced: bool
) -> None:
    seen = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append(("folder" if is_folder else "file", (tmp_path / "file").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    put_file(tmp_path / "file", b"new", tmp_path / ".part", is_synced=is_synced)
    assert seen == ([("file", False), ("folder", True)] if is_synced else [])


def test_what_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fsync(descriptor: int) -> None:
        raise OSError(28, "no room")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="no room"):
        put_file(path, b"new", tmp_path / ".part")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
