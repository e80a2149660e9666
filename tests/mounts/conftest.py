"""The command with folders of its own, and a folder to mount on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount


@pytest.fixture
def lazyfs(tmp_path: Path) -> Lazyfs:
    return Lazyfs(tmp_path)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    force_unmount(path)
