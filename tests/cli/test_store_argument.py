"""Stores on the command line that cannot be written to: told before anything is done."""

from pathlib import Path

import pytest

from lazyfs.cli.snapshots.checkpoint import check_writable
from lazyfs.documents.errors import StoreFailed


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match=f"{tmp_path}/file is not a directory"):
        check_writable(f"{tmp_path}/file/store")
    with pytest.raises(StoreFailed, match="is not a directory that this user can write to"):
        check_writable(f"file://{tmp_path}/file")


def test_a_directory_that_can_be_made(tmp_path: Path) -> None:
    check_writable(f"{tmp_path}/a/b")
    check_writable(str(tmp_path))
    check_writable("s3://bucket/prefix")
    assert list(tmp_path.iterdir()) == []
