"""A store that was damaged while nobody used it: each file, each damage.

The next mount hands out the right bytes.  What a disk changes without a trace is found after a
start of the machine, or when it was hashed too long ago.
"""

import os
import random
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lazyfs.errors import StoreError
from lazyfs.fetch.ahead.prefetch import Limits
from lazyfs.fetch.scrub import is_due, scrub
from lazyfs.image.layers import full_pass
from lazyfs.image.open import OpenImage, open_image
from lazyfs.image.prepare import Request, prepare
from lazyfs.registry.source import AccessOptions
from lazyfs.rootfs.table import LayerTable
from lazyfs.rootfs.walk import walk_path
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT, DOUBT_SECONDS, DOUBTFUL, RESIDENT, read_header
from lazyfs.store.images import load_record
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.check import check_store
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    plain_layer,
    tar_bytes,
)
from tests.support.mounts.damage import (
    DAMAGES,
    age,
    forge,
    put_file_over,
    put_folder_over,
    put_link_over,
    put_zeros_over,
    reboot,
    rot,
)

pytestmark = pytest.mark.anyio

ACCESS = AccessOptions(connect_seconds=5, idle_seconds=5)
CHOSEN = random.Random(27)
FILES = {
    b"lazy/small": CHOSEN.randbytes(500),
    b"lazy/page": CHOSEN.randbytes(4096),
    b"lazy/big": CHOSEN.randbytes(300_000),
    b"lazy/zeros": bytes(50_000) + b"end",
    b"plain/small": CHOSEN.randbytes(700),
    b"plain/big": CHOSEN.randbytes(400_000),
}
PATHS = (
    *("layers/*/content", "layers/*/presence", "layers/*/table", "layers/*/toc.zst"),
    *("layers/*/spans", "passes/*", "images/*/index.erofs", "images/*/provenance"),
    *("images/*/record.json", "blobs/*/*", "profiles/*", "names/*", "CACHEDIR.TAG"),
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of an eStargz layer and a plain one."""
    path = tmp_path_factory.mktemp("layout")
    tars = [
        tar_bytes(
            [
                directory(part),
                *(file(name, data) for name, data in FILES.items() if name.startswith(part)),
            ]
        )
        for part in (b"lazy", b"plain")
    ]
    make_layout(path, [estargz_layer(tars[0], chunk_size=64 << 10), plain_layer(tars[1])])
    return path


@asynccontextmanager
async def opened(layout: Path, cache: Path) -> AsyncIterator[OpenImage]:
    """Prepare and open the image, as a command and its server do."""
    prepared = await prepare(Request(f"oci:{layout}", None, cache, ACCESS))
    async with open_image(prepared, ACCESS) as image:
        while full_pass._pins:  # a command lets go of what it has filled when it ends
            os.close(full_pass._pins.pop())
        yield image


async def read_all(image: OpenImage) -> dict[bytes, bytes]:
    found = {}
    for path in FILES:
        extent = image.index.extent(walk_path(image.index, path))
        assert extent is not None
        data = image.contents.read_nowait(extent.device, extent.offset, extent.size)
        if data is None:
            data = await image.contents.read(extent.device, extent.offset, extent.size)
        found[path] = data
    return found


async def use(layout: Path, cache: Path) -> int:
    """Read all of the image; return how many bytes of blobs were fetched for that."""
    async with opened(layout, cache) as image:
        assert await read_all(image) == FILES
        image.save_profile()
        return sum(each.size for each in image.contents.statistics.traffic.values())


def paths_of(cache: Path, pattern: str) -> list[Path]:
    found = sorted(cache.glob(pattern))
    assert found, pattern
    return found


def layers(cache: Path) -> Iterator[Path]:
    yield from (path.parent for path in paths_of(cache, "layers/*/content"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", PATHS)
async def test_every_file_and_damage(
    layout: Path, tmp_path: Path, pattern: str, damage: str
) -> None:
    await use(layout, tmp_path)
    for path in paths_of(tmp_path, pattern):
        DAMAGES[damage](path)
    await use(layout, tmp_path)
    await use(layout, tmp_path)
    assert await use(layout, tmp_path) == 0, "what was mended stays"


FOLDERS = ("blobs", "blobs/sha256", "images", "images/*", "layers", "layers/*", "tmp")


def follow_hint(path: Path, error: StoreError, *, is_file: bool) -> None:
    """See that *path* is named, and do what the hint says."""
    said = ["a file is in the place of a directory", "a directory is in the place of a file"]
    assert error.message == f"store {path}: {said[is_file]}"
    assert (error.hint or "").startswith(f"remove {path}")
    assert is_file == ("mkdir" not in str(error.hint))
    if is_file:
        shutil.rmtree(path)
    else:
        path.unlink()
        path.mkdir(mode=0o700)


@pytest.mark.parametrize("pattern", [*PATHS, "version", *FOLDERS])
async def test_what_somebody_has_put_there_is_named_and_left(
    layout: Path, tmp_path: Path, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory in the place of a file, or the reverse: used around, or told what to do."""
    await use(layout, tmp_path)
    for path in paths_of(tmp_path, pattern):
        is_file = path.is_file()
        put_folder_over(path) if is_file else put_file_over(path)
        for _ in range(2):
            try:
                await use(layout, tmp_path)
            except StoreError as error:
                follow_hint(path, error, is_file=is_file)
        if path.name in ("content", "presence"):
            assert f"{path} is a directory in the place of a file: remove it" in caplog.text
            path.rmdir()
    await use(layout, tmp_path)
    assert await use(layout, tmp_path) == 0


@pytest.mark.parametrize("pattern", PATHS)
async def test_files_of_other_layers(layout: Path, tmp_path: Path, pattern: str) -> None:
    """Each file whole in itself, and not this one's."""
    await use(layout, tmp_path)
    paths = paths_of(tmp_path, pattern)
    data = [path.read_bytes() for path in paths]
    for path, other in zip(paths, data[1:] + data[:1], strict=True):
        path.write_bytes(other)
    await use(layout, tmp_path)


async def test_sound_contents_cost_nothing(layout: Path, tmp_path: Path) -> None:
    await use(layout, tmp_path)
    for folder in layers(tmp_path):
        before = (folder / "presence").read_bytes()
        assert await use(layout, tmp_path) == 0
        assert (folder / "presence").read_bytes() == before, "not even a header was written"


@pytest.mark.parametrize("reason", ["boot", "age", "future", "unknown"])
async def test_what_rotted_without_a_trace(layout: Path, tmp_path: Path, reason: str) -> None:
    await use(layout, tmp_path)
    for folder in layers(tmp_path):
        rot(folder / "content", 8192 + 77)
        rot(folder / "content", 100)
    async with opened(layout, tmp_path) as image:
        assert await read_all(image) != FILES, "nothing tells, yet"
    for folder in layers(tmp_path):
        match reason:
            case "boot":
                reboot(folder)
            case "age":
                age(folder, DOUBT_SECONDS + 1)
            case "future":
                age(folder, -1000)
            case "unknown":
                forge(folder, boot=bytes(16))
    assert await use(layout, tmp_path) > 0
    assert await use(layout, tmp_path) == 0
    for folder in layers(tmp_path):
        with (folder / "presence").open("rb") as presence:
            header = read_header(presence.fileno())
        assert header is not None
        assert header.is_clean


@pytest.mark.parametrize("reason", ["boot", "age"])
async def test_a_sound_store_is_not_fetched_again(
    layout: Path, tmp_path: Path, reason: str
) -> None:
    await use(layout, tmp_path)
    for folder in layers(tmp_path):
        if reason == "boot":
            reboot(folder)
        else:
            age(folder, DOUBT_SECONDS + 1)
    async with opened(layout, tmp_path) as image:
        for device in image.devices:
            assert set(device.content.states) == {DOUBTFUL}
        wanted: list[int] = []

        async def make_room(size: int) -> bool:
            wanted.append(size)
            return True

        # Hashes, asks for nothing, and needs no room for what is here.
        await image.prefetch("all", Limits(make_room=make_room))
        assert not any(wanted)
        for device in image.devices:
            assert set(device.content.states) == {RESIDENT}
        assert not image.origin.is_open
        assert await read_all(image) == FILES


async def test_age_is_counted_from_the_last_hashing(layout: Path, tmp_path: Path) -> None:
    await use(layout, tmp_path)
    for folder in layers(tmp_path):
        age(folder, DOUBT_SECONDS - 100)
    async with opened(layout, tmp_path) as image:
        assert all(DOUBTFUL not in device.content.states for device in image.devices)


async def test_a_mark_that_appears_by_itself(layout: Path, tmp_path: Path) -> None:
    """ABSENT and RESIDENT are one bit apart."""
    async with opened(layout, tmp_path) as image:
        assert {*image.devices[0].content.states} == {ABSENT}
    for path in paths_of(tmp_path, "layers/*/presence"):
        data = bytearray(path.read_bytes())
        data[4096:] = bytes([RESIDENT]) * (len(data) - 4096)
        path.write_bytes(data)
    await use(layout, tmp_path)


async def test_the_map_of_an_older_release(layout: Path, tmp_path: Path) -> None:
    """It does not say of which file it speaks: all is hashed, and nothing fetched."""
    await use(layout, tmp_path)
    for path in paths_of(tmp_path, "layers/*/presence"):
        data = bytearray(path.read_bytes())
        data[8:12] = (1).to_bytes(4, "little")
        data[24:4096] = bytes(4096 - 24)
        path.write_bytes(data)
    rotten = next(layers(tmp_path)) / "content"
    with rotten.open("r+b") as content:
        content.write(b"wrong")
    fetched = await use(layout, tmp_path)
    assert fetched < sum(map(len, FILES.values())) // 2
    assert await use(layout, tmp_path) == 0


async def test_a_folder_in_the_place_of_contents_is_left_alone(
    layout: Path, tmp_path: Path
) -> None:
    await use(layout, tmp_path)
    content = next(layers(tmp_path)) / "content"
    content.unlink()
    content.mkdir()
    async with opened(layout, tmp_path) as image:
        assert await read_all(image) == FILES
        assert "directory" in image.health.text
    assert content.is_dir()
    content.rmdir()
    await use(layout, tmp_path)
    assert await use(layout, tmp_path) == 0


async def test_a_link_is_not_written_through(layout: Path, tmp_path: Path) -> None:
    await use(layout, tmp_path / "cache")
    content = next(layers(tmp_path / "cache")) / "content"
    put_link_over(content)
    (content.parent / "nowhere").write_bytes(b"precious")
    await use(layout, tmp_path / "cache")
    assert (content.parent / "nowhere").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("changes", "was_shown"),
    [({}, True), ({"boot": b"another".ljust(16)}, False), ({"is_clean": True, "since": 1}, False)],
)
async def test_who_may_have_seen_what_is_doubted(
    layout: Path, tmp_path: Path, changes: dict[str, object], was_shown: bool
) -> None:
    """A killed server leaves its mount behind, and with it what the kernel has read of it."""
    await use(layout, tmp_path)
    folder = next(layers(tmp_path))
    forge(folder, **({"is_clean": False} | changes))
    content = LayerContent(folder, LayerTable((folder / "table").read_bytes()))
    try:
        assert content.doubted
        assert content.was_shown == was_shown
    finally:
        content.close()


async def test_a_live_mount_hashes_again_what_is_old(layout: Path, tmp_path: Path) -> None:
    await use(layout, tmp_path)
    async with opened(layout, tmp_path) as image:
        assert await read_all(image) == FILES
        told: list[tuple[str, int]] = []
        doubts = image.contents.doubts
        doubts.dropped = lambda dev, chunks: told.extend(
            (dev.content.folder.name, c) for c in chunks
        )
        kept: list[int] = []
        doubts.keep = lambda dev, chunk: kept.append(chunk)
        for device in image.devices:
            assert not is_due(device)
            with (device.content.folder / "content").open("r+b") as content:
                content.seek(device.table.device_offset(1))
                content.write(b"rot")
        assert await read_all(image) != FILES
        for device in image.devices:
            device.content.note_checked(time.time() - DOUBT_SECONDS - 5)
            assert is_due(device)
            assert await scrub(device, doubts, rate=1 << 40) == 1
            assert not is_due(device)
            device.content.note_checked(time.time() + 1e8)  # by a clock that was years ahead
            assert is_due(device)
            assert await scrub(device, doubts, rate=1 << 40) == 0
            assert not is_due(device)
        assert told == [(device.content.folder.name, 1) for device in image.devices]
        assert kept == [1, 1]
        assert await read_all(image) == FILES
    assert await use(layout, tmp_path) == 0


async def test_a_check_that_drops_nothing_serves_nothing_rotten(
    layout: Path, tmp_path: Path
) -> None:
    """Known to be wrong is enough."""
    await use(layout, tmp_path)
    for folder in layers(tmp_path):
        rot(folder / "content", 8192 + 77)
    for _ in range(2):
        found = check_store(Store(tmp_path), repair=False, progress=lambda size: None)
        assert [fault.kind for fault in found.rotten] == ["chunk", "chunk"]
        assert not any(fault.is_dropped for fault in found.rotten)
    assert await use(layout, tmp_path) > 0
    assert check_store(Store(tmp_path), repair=False, progress=lambda size: None).rotten == []


async def test_a_check_does_not_make_believed_what_it_has_not_hashed(
    layout: Path, tmp_path: Path
) -> None:
    """It opens layers without doubting them; broken off, it leaves them as doubtful as before."""
    await use(layout, tmp_path)
    for folder in layers(tmp_path):
        rot(folder / "content", 8192 + 5)
        reboot(folder)

    def broken_off(size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_store(Store(tmp_path), repair=True, progress=broken_off)
    assert await use(layout, tmp_path) > 0


async def test_a_record_that_rotted_is_not_taken_for_another(layout: Path, tmp_path: Path) -> None:
    await use(layout, tmp_path)
    (path,) = paths_of(tmp_path, "images/*/record.json")
    data = path.read_bytes()
    record = load_record(path.parent)
    for place in range(0, len(data), 7):
        bent = bytearray(data)
        bent[place] ^= 1 << place % 8
        path.write_bytes(bent)
        assert load_record(path.parent) in (None, record), bent


async def test_a_table_that_is_another_layers_is_fetched_again(
    layout: Path, tmp_path: Path
) -> None:
    """Prepared, and damaged before it is opened: it is made again, to the same bytes."""
    await use(layout, tmp_path)
    prepared = await prepare(Request(f"oci:{layout}", None, tmp_path, ACCESS))
    for path in paths_of(tmp_path, "layers/*/table"):
        path.write_bytes(b"")
    for path in paths_of(tmp_path, "images/*/index.erofs"):
        path.unlink()
    async with open_image(prepared, ACCESS) as image:
        assert await read_all(image) == FILES


async def test_another_content_file_under_a_live_user(layout: Path, tmp_path: Path) -> None:
    """Its map does not speak of it: who comes then begins another pair, and both are right."""
    await use(layout, tmp_path)
    async with opened(layout, tmp_path) as first:
        for folder in layers(tmp_path):
            (folder / "content").write_bytes(b"")
            put_zeros_over(folder / "content")
        async with opened(layout, tmp_path) as second:
            for one, two in zip(first.devices, second.devices, strict=True):
                assert one.content.is_apart()
                assert not two.content.is_apart()
                assert set(two.content.states) == {ABSENT}
            assert await read_all(second) == FILES
            assert await read_all(first) == FILES
    assert await use(layout, tmp_path) == 0
