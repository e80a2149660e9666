"""A disk that does not give back some chunks of a live mount: those alone are had elsewhere."""

import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from lazyfs.fetch.device import Device
from lazyfs.fetch.fetch import FetchBroken, Fetcher
from lazyfs.fetch.twins import Twins
from lazyfs.image.again import is_here
from lazyfs.oci.descriptor import Descriptor
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import (
    ABSENT,
    DOUBTFUL,
    HEADER_SIZE,
    OLD_VERSION,
    PREFIX,
    RESIDENT,
    read_header,
    write_header,
)
from lazyfs.store.content.unwritten import ReadOnlyContent
from lazyfs.store.paths import Store
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.registries.sources import MemorySource

SIZES = [40_000, 50_000, 60_000, 70_000]


@pytest.fixture
def layer() -> MadeLayer:
    return make_layer(SIZES)


def whole(layer: MadeLayer) -> bytes:
    """Return the device's bytes."""
    result = bytearray(layer.table.device_size)
    for chunk, data in enumerate(layer.files.values()):
        start = layer.table.device_offset(chunk)
        result[start : start + len(data)] = data
    return bytes(result)


@asynccontextmanager
async def opened(layer: MadeLayer, folder: Path) -> AsyncIterator[tuple[Fetcher, Device]]:
    content = LayerContent(folder / "layer", layer.table)
    device = Device(1, Descriptor("", layer.digest, len(layer.blob)), layer.table, content)
    origin: Any = SimpleNamespace(
        source=MemorySource({layer.digest: layer.blob}),
        is_open=True,
        kind="layout",
        repository="x",
    )
    try:
        async with trio.open_nursery() as nursery:
            twins = Twins(Store(folder / "cache"), [device])
            yield Fetcher([device], origin, twins, nursery, report=lambda _: None), device
            nursery.cancel_scope.cancel()
    finally:
        content.close()


def fail_reads(monkeypatch: pytest.MonkeyPatch, device: Device, bad: Sequence[int]) -> None:
    """Have reads of chunks of the content file fail."""
    real: Callable[[int, int, int], bytes] = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        if fd == device.content.fd and any(
            chunk in bad for chunk in device.table.covering(offset, offset + size)
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)


@pytest.mark.anyio
async def test_chunks_that_cannot_be_read_are_served_from_memory(
    layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = whole(layer)
    with trio.fail_after(60):
        async with opened(layer, tmp_path) as (fetcher, device):
            assert await fetcher.read(1, 0, len(data)) == data
            fail_reads(monkeypatch, device, [0, 2, 3])
            assert fetcher.read_nowait(1, 0, len(data)) is None
            for _ in range(2):
                assert await fetcher.read(1, 0, len(data)) == data
            assert list(device.content.states) == [ABSENT, RESIDENT, ABSENT, ABSENT]
            assert device.content.unreadable == {0, 2, 3}
            start = device.table.device_offset(1)
            assert fetcher.read_nowait(1, start, 50_000) == data[start : start + 50_000]


@pytest.mark.anyio
async def test_a_chunk_that_is_marked_again_and_again_ends(
    layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, whose reads work, may mark what ours cannot read."""
    with trio.fail_after(60):
        async with opened(layer, tmp_path) as (fetcher, device):
            await fetcher.read(1, 0, 40_000)
            fail_reads(monkeypatch, device, [0])
            monkeypatch.setattr(device.content, "forget", lambda chunk: None)
            with pytest.raises(FetchBroken, match="do not stay"):
                await fetcher.read(1, 0, 40_000)


@pytest.mark.anyio
async def test_a_driver_that_cannot_read_says_nothing_of_other_chunks(
    layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(layer, tmp_path) as (fetcher, device):
        await fetcher.read(1, 0, layer.table.device_size)
        fail_reads(monkeypatch, device, [1])
        start = device.table.device_offset(1)
        assert fetcher.lost(1, start, 50_000)
        assert list(device.content.states) == [RESIDENT] * 4, "no hole: the disk fails"
        os.ftruncate(device.content.fd, start)
        assert fetcher.lost(1, start, 50_000)
        assert list(device.content.states) == [DOUBTFUL] * 4, "something else has cut it"
        device.content.holes_tell = False
        assert not fetcher.lost(1, start, 50_000)


@pytest.mark.parametrize("change", ["none", "content", "boot", "version", "marks"])
def test_marks_on_a_read_only_disk_are_believed_as_everywhere(
    layer: MadeLayer, tmp_path: Path, change: str
) -> None:
    content = LayerContent(tmp_path, layer.table)
    for chunk, data in enumerate(layer.files.values()):
        content.write(chunk, data)
    content.close()
    with (tmp_path / "presence").open("r+b") as presence:
        header = read_header(presence.fileno())
        assert header is not None
        if change == "boot":
            marks = os.pread(presence.fileno(), layer.table.count, HEADER_SIZE)
            write_header(presence.fileno(), replace(header, boot=b"another boot id."), marks)
        elif change == "version":
            magic, _, clean, count = PREFIX.unpack(os.pread(presence.fileno(), PREFIX.size, 0))
            os.pwrite(presence.fileno(), PREFIX.pack(magic, OLD_VERSION, clean, count), 0)
        elif change == "marks":
            os.pwrite(presence.fileno(), bytes([ABSENT]), HEADER_SIZE)
    if change == "content":
        os.utime(tmp_path / "content")
    found = ReadOnlyContent(tmp_path, layer.table)
    try:
        if change == "none":
            assert (found.doubted, set(found.states)) == ("", {RESIDENT})
            return
        assert found.doubted
        assert RESIDENT not in set(found.states)
        assert found.confirm(3)
        assert found.states[3] == RESIDENT
    finally:
        found.close()


def test_a_map_that_is_cut_is_marked_for_ourselves(layer: MadeLayer, tmp_path: Path) -> None:
    """A guard has put zeros in place of what is gone; a write to the file is not seen in them."""
    pytest.importorskip("lazyfs._native")
    content = LayerContent(tmp_path, layer.table)
    os.truncate(tmp_path / "presence", 0)
    assert set(content.states) == {ABSENT}, "a guard has put zeros there"
    for chunk, data in enumerate(layer.files.values()):
        content.write(chunk, data)
    assert set(content.states) == {RESIDENT}
    content.forget(2)
    assert list(content.states) == [RESIDENT, RESIDENT, ABSENT, RESIDENT]
    content.close()
    again = LayerContent(tmp_path, layer.table)
    assert RESIDENT not in set(again.states)
    again.close()


def test_a_store_in_memory_that_is_gone_is_not_made_again_by_looking(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    prepared: Any = SimpleNamespace(store_dir=str(folder))
    assert not is_here(prepared)
    assert not folder.exists()
