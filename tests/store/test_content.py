"""The content store of a layer: what is marked, what is believed, and what a crash leaves."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.content import (
    ContentLost,
    LayerContent,
    NotStored,
)
from lazyfs.store.content.presence import ABSENT, DOUBTFUL, HEADER_SIZE, RESIDENT
from lazyfs.store.content.rows import IOV_MAX, Payload, rows_of
from lazyfs.store.content.unwritten import UnstoredContent
from tests.support.formats.layers import MadeLayer, make_layer


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
    assert not content.are_resident(range(1))
    content.write(0, payload(layer, 0))
    assert content.are_resident(range(1))
    assert not content.are_resident(range(2))
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
        "from tests.store.test_content import fill\n"
        "from tests.support.formats.layers import make_layer\n"
        "from lazyfs.store.content.content import LayerContent\n"
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
    assert not content.are_resident(range(1))
    assert content.confirm(0)
    assert content.states[0] == RESIDENT
    assert not content.confirm(2)
    assert content.states[2] == ABSENT
    content.close()


def test_a_second_user_does_not_doubt_a_live_one(tmp_path: Path, layer: MadeLayer) -> None:
    first = LayerContent(tmp_path / "layer", layer.table)
    first.write(0, payload(layer, 0))
    second = LayerContent(tmp_path / "layer", layer.table)
    assert second.are_resident(range(1))
    second.write(1, payload(layer, 1))
    assert first.are_resident(range(2))
    first.close()
    third = LayerContent(tmp_path / "layer", layer.table)
    assert third.are_resident(range(2))
    second.close()
    third.close()
    last = LayerContent(tmp_path / "layer", layer.table)
    assert last.are_resident(range(2))
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
    with pytest.raises(ContentLost, match="0 to 5000"):
        content.read(0, 5000)
    assert set(content.states) == {DOUBTFUL}
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


def payloads(layer: MadeLayer, chunks: Sequence[int], part_size: int = 1 << 20) -> list[Payload]:
    """Return chunks and their bytes, in parts."""
    found: list[Payload] = []
    for chunk in chunks:
        data = memoryview(payload(layer, chunk))
        found.append((chunk, [data[at : at + part_size] for at in range(0, len(data), part_size)]))
    return found


@pytest.mark.parametrize(
    ("chunks", "calls"),
    [
        ([0, 1, 2, 3, 4], 1),
        ([4, 2, 0, 3, 1], 1),
        ([0, 2, 3], 2),
        ([0, 2, 4], 3),
        ([3], 1),
        ([], 0),
    ],
)
def test_neighbours_are_written_at_once(
    tmp_path: Path,
    layer: MadeLayer,
    chunks: list[int],
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    places: list[int] = []
    pwritev = os.pwritev

    def count(fd: int, parts: Sequence[bytes], place: int) -> int:
        places.append(place)
        return pwritev(fd, parts, place)

    monkeypatch.setattr(os, "pwritev", count)
    assert content.write_all(payloads(layer, chunks)) == []
    assert len(places) == calls
    for chunk in range(layer.table.count):
        assert (content.states[chunk] == RESIDENT) == (chunk in chunks)
        if chunk in chunks:
            assert content.check(chunk)
    data = os.pread(content.fd, layer.table.device_size, 0)
    for chunk in chunks[:-1]:
        end = layer.table.device_offset(chunk) + layer.table.size(chunk)
        assert data[end : -(-end // 4096) * 4096].count(0) == -end % 4096
    content.close()


@pytest.mark.parametrize("most", [1, 3, 4096, 5000, 20_001])
def test_a_write_that_is_cut_short_goes_on(
    tmp_path: Path, layer: MadeLayer, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)

    def write_less(fd: int, parts: Sequence[bytes], place: int) -> int:
        assert len(parts) <= IOV_MAX
        return os.pwrite(fd, b"".join(parts)[:most], place)

    monkeypatch.setattr(os, "pwritev", write_less)
    chunks = range(2 if most < 4096 else layer.table.count)
    assert content.write_all(payloads(layer, chunks, part_size=7)) == []
    assert all(content.check(chunk) for chunk in chunks)
    content.close()


def test_rows_are_no_longer_than_a_call_takes(layer: MadeLayer) -> None:
    chunks = range(layer.table.count)
    for part_size in (1, 10, 100, 1 << 20):
        rows = list(rows_of(layer.table, payloads(layer, chunks, part_size)))
        assert [chunk for row in rows for chunk, _ in row] == list(chunks)
        for row in rows:
            assert len(row) == 1 or sum(len(parts) + 1 for _, parts in row) <= IOV_MAX
    assert len(rows) == 1


def test_what_is_there_is_not_written_again(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    content.write(1, payload(layer, 1))
    bad = [(chunk, [b"x" * layer.table.size(chunk)]) for chunk in (1,)]
    assert content.write_all([*payloads(layer, [0]), *bad, *payloads(layer, [2])]) == []
    assert all(content.check(chunk) for chunk in range(3))
    content.close()


def test_where_there_is_room_for_some_these_are_stored(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (layer.table.device_offset(3) + 10, hard))
    try:
        refused = content.write_all(payloads(layer, range(layer.table.count)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert refused == list(range(3, layer.table.count))
    for chunk in range(layer.table.count):
        assert content.states[chunk] == (ABSENT if chunk in refused else RESIDENT)
        assert chunk in refused or content.check(chunk)
    content.close()


def test_unstored_content_takes_nothing(tmp_path: Path, layer: MadeLayer) -> None:
    content = UnstoredContent(tmp_path, layer.table)
    with pytest.raises(NotStored):
        content.write(0, payload(layer, 0))
    assert content.write_all(payloads(layer, [0, 3])) == [0, 3]
    assert not content.are_resident(range(1))
    assert content.resident_size() == 0
    content.close()


def test_a_folder_that_is_a_link_elsewhere_is_not_followed(
    tmp_path: Path, layer: MadeLayer
) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "layer/content").symlink_to(tmp_path / "victim")
    content = LayerContent(tmp_path / "layer", layer.table)
    fill(content, layer)
    content.close()
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "layer/content").is_symlink()


def test_empty_layer(tmp_path: Path) -> None:
    layer = make_layer([])
    assert isinstance(layer.table, LayerTable)
    content = LayerContent(tmp_path / "layer", layer.table)
    assert content.resident_size() == 0
    content.close()


def test_marks_that_were_changed_at_rest_are_doubted(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    content.write(0, payload(layer, 0))
    content.close()
    with (tmp_path / "layer/presence").open("r+b") as presence:
        presence.seek(HEADER_SIZE + 2)
        presence.write(bytes([RESIDENT]))
    again = LayerContent(tmp_path / "layer", layer.table)
    assert again.states[0] == again.states[2] == DOUBTFUL
    assert again.confirm(0)
    assert not again.confirm(2)
    again.close()


def test_zeros_where_a_chunk_was_are_not_read(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    fill(content, layer)
    os.truncate(tmp_path / "layer/content", 0)
    os.truncate(tmp_path / "layer/content", layer.table.device_size)
    with pytest.raises(ContentLost):
        content.read(0, 5000)
    assert set(content.states) == {DOUBTFUL}
    content.close()


def test_who_writes_to_a_file_that_was_cut_notices(tmp_path: Path, layer: MadeLayer) -> None:
    content = LayerContent(tmp_path / "layer", layer.table)
    content.write(0, payload(layer, 0))
    os.truncate(tmp_path / "layer/content", 3000)
    content.write(2, payload(layer, 2))
    assert content.states[0] == DOUBTFUL
    assert content.states[2] == DOUBTFUL, "the cut may have come behind it"
    assert content.confirm(2)
    assert (tmp_path / "layer/content").stat().st_size == layer.table.device_size
    content.close()
