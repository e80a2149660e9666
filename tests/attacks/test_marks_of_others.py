"""Marks that one user of a layer does not believe are believed by no other, whoever else has it."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from lazyfs.store.content import presence
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import DOUBTFUL, RESIDENT, read_header, write_header
from lazyfs.store.content.unwritten import ReadOnlyContent
from tests.support.layers import MadeLayer, make_layer

SIZES = [40_000, 50_000, 60_000]


@pytest.fixture
def layer() -> MadeLayer:
    return make_layer(SIZES)


@pytest.fixture
def folder(tmp_path: Path, layer: MadeLayer) -> Path:
    """All of a layer, left clean, and one byte of it changed since."""
    content = LayerContent(tmp_path / "layer", layer.table)
    for chunk, data in enumerate(layer.files.values()):
        content.write(chunk, data)
    content.close()
    with (tmp_path / "layer/content").open("r+b") as file:
        file.write(b"rot")
    return tmp_path / "layer"


@contextmanager
def header_of(folder: Path) -> Iterator[int]:
    fd = os.open(folder / "presence", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def leave_unclean(folder: Path) -> None:
    """Leave the map as a server that was killed does."""
    with header_of(folder) as fd:
        header = read_header(fd)
        assert header is not None
        write_header(fd, replace(header, is_clean=False))


def test_a_part_of_the_marks_is_not_left_believed(
    folder: Path, layer: MadeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1], at))
    content = LayerContent(folder, layer.table)
    assert set(content.states) == {DOUBTFUL}
    content.close()
