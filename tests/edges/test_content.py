"""The content store of a layer: what is marked, what is believed, and what a crash leaves."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content import (
    ABSENT,
    DOUBTFUL,
    HEADER_SIZE,
    RESIDENT,
    ContentUnusable,
    LayerContent,
    NotStored,
    UnstoredContent,
)
from tests.support.layers import MadeLayer, make_layer


@pytest.fixture(scope="module")
def layer() -> MadeLayer:
    return make_layer([5000, 1, 70_000, 4096, 12_345], chunk_size=16_384)


def payload(layer: MadeLayer, chunk: int) -> bytes:
    """Return the bytes of a chunk, found by its digest."""
    for entry in layer.toc.entries:
        for piece in entry.chunks:
            if piece.digest == layer.table.digest(chunk):
                data = layer.files[entry.path]
                return data[piece.offset : piece.offset + piece.size]
    raise AssertionError(chunk)


def fill(content: LayerContent, layer: MadeLayer) -> None:
    for chunk in range(layer.table.count):
        content.write(chunk, payload(layer, chunk))


def test_a_chunk_is_resident_once_written(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    assert not content.is_resident(range(1))
    content.write(0, payload(layer, 0))
    assert content.is_resident(range(1))
    assert not content.is_resident(range(2))
    assert content.read(0, 5000) == layer.files[b"file0000"]
    assert content.resident_size() == 5000
    content.close()
    content.close()


def test_a_clean_stop_is_believed(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    fill(content, layer)
    content.close()
    again = LayerContent(tmp_path / "layer", layer.table)
    assert set(again.states) == {RESIDENT}
    assert again.resident_size() == sum(map(len, layer.files.values()))
    again.close()


def crash_after_fill(folder: Path) -> None:
    """Fill a layer in another process and kill that process."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.edges.test_content import fill\n"
        "from tests.support.layers import make_layer\n"
        "from lazyfs.store.content import LayerContent\n"
        "layer = make_layer([5000, 1, 70_000, 4096, 12_345], chunk_size=16_384)\n"
        "fill(LayerContent(Path(sys.argv[1]), layer.table), layer)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_after_a_kill_chunks_are_hashed_again(tmp_path: Path, layer: MadeLayer) -> None:
    crash_after_fill(tmp_path / "layer")
    with open(tmp_path / "layer/content", "r+b") as file:  # as a disk that lost a write would
        file.seek(layer.table.device_offset(2))
        file.write(b"\xff\xff")
    content = LayerContent(tmp_path / "layer", layer.table)
    assert set(content.states) == {DOUBTFUL}
    assert not content.is_resident(range(1))
    assert content.confirm(0)
    assert content.states[0] == RESIDENT
    assert not content.confirm(2)
    assert content.states[2] == ABSENT
    content.close()


def test_a_second_user_does_not_doubt_a_live_one(tmp_path: Path, layer: MadeLayer) -> None:
    first = LayerContent(tmp_path / "layer", layer.table)
    first.write(0, payload(layer, 0))
    second = LayerContent(tmp_path / "layer", layer.table)
    assert second.is_resident(range(1))
    second.write(1, payload(layer, 1))
    assert first.is_resident(range(2))
    first.close()
    third = LayerContent(tmp_path / "layer", layer.table)
    assert third.is_resident(range(2))
    second.close()
    third.close()
    last = LayerContent(tmp_path / "layer", layer.table)
    assert last.is_resident(range(2))
    last.close()


def test_the_header_is_unclean_on_disk_before_the_first_mark(
    tmp_path: Path, layer: MadeLayer
) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    presence = tmp_path / "layer/presence"
    assert presence.read_bytes()[12:16] == b"\x01\0\0\0"
    content.write(0, payload(layer, 0))
    assert presence.read_bytes()[12:16] == b"\0\0\0\0"
    content.close()
    assert presence.read_bytes()[12:16] == b"\x01\0\0\0"


@pytest.mark.parametrize("junk", [b"", b"LFSPRES1", b"\xff" * (HEADER_SIZE + 9), b"x" * 9999])
def test_a_rotten_map_means_nothing_is_resident(
    tmp_path: Path, layer: MadeLayer, junk: bytes
) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    fill(content, layer)
    content.close()
    (tmp_path / "layer/presence").write_bytes(junk)
    again = LayerContent(tmp_path / "layer", layer.table)
    assert set(again.states) == {ABSENT}
    again.close()


def test_a_map_of_another_table_is_not_believed(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    fill(content, layer)
    content.close()
    other = make_layer([5000, 1], seed=1)
    again = LayerContent(tmp_path / "layer", other.table)
    assert set(again.states) == {ABSENT}
    again.close()


def test_a_shortened_content_file_is_found_out(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    fill(content, layer)
    os.truncate(tmp_path / "layer/content", 100)
    with pytest.raises(ContentUnusable, match="expected 5000"):
        content.read(0, 5000)
    content.close()


def test_no_room_is_said_and_nothing_is_marked(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (layer.table.device_offset(2), hard))
    try:
        content.write(0, payload(layer, 0))
        with pytest.raises(NotStored):
            content.write(2, payload(layer, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert content.states[2] == ABSENT
    content.close()


def test_unstored_content_takes_nothing(tmp_path: Path, layer: MadeLayer) -> None:
    content = UnstoredContent(tmp_path, layer.table)
    with pytest.raises(NotStored):
        content.write(0, payload(layer, 0))
    assert not content.is_resident(range(1))
    assert content.resident_size() == 0
    content.close()


def test_a_folder_that_is_a_link_elsewhere_is_not_followed(
    tmp_path: Path, layer: MadeLayer
) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "layer/content").symlink_to(tmp_path / "victim")
    with pytest.raises(ContentUnusable):
        LayerContent(tmp_path / "layer", layer.table)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_empty_layer(tmp_path: Path) -> None:
    layer = make_layer([])
    assert isinstance(layer.table, LayerTable)
    content = LayerContent(tmp_path / "layer", layer.table)
    assert content.resident_size() == 0
    content.close()
