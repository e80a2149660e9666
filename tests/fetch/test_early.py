"""What is asked for before an image is open: once, in order, and verified like all the rest."""

import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from msgspec.structs import replace

from lazyfs.digest import parse_digest
from lazyfs.errors import Unavailable
from lazyfs.fetch.counts import Purpose
from lazyfs.fetch.origins.early import EARLY_SIZE, REQUESTS, Early, EarlyRange, Foreseen, open_early
from lazyfs.fetch.origins.pace import Pace
from lazyfs.fetch.profile import replay_alike
from lazyfs.image.open import OpenImage, open_image
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.source import AccessOptions
from lazyfs.rootfs.walk import walk_path
from lazyfs.store.paths import Store
from lazyfs.store.profiles import (
    BadProfile,
    Profile,
    decode_profile,
    load_alike,
    load_profile,
    save_profile,
)
from tests.support.formats.images import estargz_layer, file, make_layout, plain_layer, tar_bytes
from tests.support.formats.layers import make_layer
from tests.support.registries.faults import flip
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer
from tests.support.registries.registry_wire import Request as Asked
from tests.support.registries.sources import MemorySource

pytestmark = pytest.mark.anyio

ACCESS = AccessOptions()
SECONDS = 20
WANTED = ("srv/a", "srv/c", "opt/e")


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


LOWER = {"srv/a": noise(90_000, 1), "srv/b": noise(120_000, 2), "srv/c": noise(60_000, 3)}
UPPER = {"opt/d": noise(80_000, 4), "opt/e": noise(70_000, 5)}
FILES = LOWER | UPPER


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    layers = [
        estargz_layer(tar_bytes([file(name, data) for name, data in files.items()]))
        for files in (LOWER, UPPER)
    ]
    make_layout(tmp_path / "layout", layers)
    with FakeRegistry(tmp_path / "layout") as registry:
        yield registry


def request(registry: FakeRegistry, folder: Path) -> Request:
    return Request(f"{registry.host}/image:latest", None, folder / "cache", ACCESS)


async def read(image: OpenImage, path: str) -> bytes:
    extent = image.index.extent(walk_path(image.index, path.encode()))
    assert extent is not None
    return await image.contents.read(extent.device, extent.offset, extent.size)


async def record(registry: FakeRegistry, folder: Path) -> Prepared:
    """Mount once, read WANTED, and forget all but the profile."""
    prepared = await prepare(request(registry, folder))
    async with open_image(prepared, ACCESS) as image:
        for path in WANTED:
            assert await read(image, path) == FILES[path]
        image.save_profile()
    (folder / "cache/profiles").rename(folder / "profiles")
    shutil.rmtree(folder / "cache")
    (folder / "cache").mkdir()
    (folder / "profiles").rename(folder / "cache/profiles")
    registry.forget_requests()
    return prepared


@asynccontextmanager
async def opened_early(
    registry: FakeRegistry, folder: Path, *, is_profiled: bool = True
) -> AsyncIterator[OpenImage]:
    with trio.fail_after(SECONDS):
        async with open_early() as early:

            def begin(foreseen: Foreseen) -> None:
                foreseen = Foreseen.decode(foreseen.encode())
                early.begin(foreseen, ACCESS, is_profiled=is_profiled)

            prepared = await prepare(request(registry, folder), foresee=begin)
            async with open_image(prepared, ACCESS, early=early) as image:
                yield image


def ranges(registry: FakeRegistry) -> list[str]:
    return [f"{each.path} {each.range}" for each in registry.requests if "/blobs/" in each.path]


# An image whose profile is known


async def test_what_a_profile_names_is_asked_for_before_the_tocs_are_here(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    prepared = await record(registry, tmp_path)
    profile = load_profile(Store(tmp_path / "cache"), parse_digest(prepared.image.manifest_digest))
    assert profile is not None
    spelled = [f"bytes={start}-{end - 1}" for _, start, end in profile.ranges]
    asked = threading.Event()

    def note(request: Asked, answer: Answer) -> Answer:
        if request.headers["range"] in spelled:
            asked.set()
        else:
            assert asked.wait(SECONDS)  # the tails of the layers, with their TOCs
        return answer

    registry.faults.add(note, path="/blobs/", times=None, ranged=True)
    async with opened_early(registry, tmp_path) as image:
        assert asked.is_set()
        for path in WANTED:
            assert await read(image, path) == FILES[path]
        traffic = image.contents.statistics.traffic
        assert traffic[Purpose.DEMAND].requests == 0
        assert traffic[Purpose.PROFILE].requests == len(profile.ranges) > 1
        assert len(set(ranges(registry))) == len(ranges(registry)), "asked for twice"
        assert await read(image, "srv/b") == FILES["srv/b"]
        assert traffic[Purpose.DEMAND].requests == 1


async def test_wrong_bytes_that_came_early_are_fetched_again(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = await record(registry, tmp_path)
    bent: list[str] = []

    def bend(request: Asked, answer: Answer) -> Answer:
        wrong = flip(5000)(request, answer)
        if bent or wrong.body == answer.content():
            return answer
        bent.append(request.headers["range"])
        return wrong

    registry.faults.add(bend, path=prepared.image.layers[0].digest, times=None, ranged=True)
    async with opened_early(registry, tmp_path) as image:
        for path in WANTED:
            assert await read(image, path) == FILES[path]
        assert image.health.text == "ok"
    assert bent
    assert "fetching it again" in caplog.text


async def test_bytes_that_are_wrong_everywhere_are_never_served(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = await record(registry, tmp_path)
    blob = tmp_path / "layout/blobs/sha256" / prepared.image.layers[0].digest.partition(":")[2]
    data = bytearray(blob.read_bytes())
    data[5000] ^= 1
    blob.write_bytes(data)
    async with opened_early(registry, tmp_path) as image:
        with pytest.raises(Exception, match="expected sha256"):
            await read(image, "srv/a")
        assert await read(image, "srv/c") == FILES["srv/c"]
        assert image.health.text.startswith("corrupt")


async def test_what_breaks_off_early_is_asked_for_by_who_reads(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    await record(registry, tmp_path)
    async with trio.open_nursery() as nursery:
        early = Early(nursery)
        await prepare(
            request(registry, tmp_path),
            foresee=lambda foreseen: early.begin(foreseen, ACCESS, is_profiled=True),
        )
        nursery.cancel_scope.cancel()  # whatever has come by then
    prepared = await prepare(request(registry, tmp_path))
    async with open_image(prepared, ACCESS, early=early) as image:
        for path in WANTED:
            assert await read(image, path) == FILES[path]


# An image that is like one whose profile is known


@asynccontextmanager
async def opened_like(
    registry: FakeRegistry, folder: Path, repository: str = "image"
) -> AsyncIterator[OpenImage]:
    """Record the profile of one image; open another one, of which a file has been changed."""
    await record(registry, folder)
    changed = LOWER | {"srv/a": noise(90_000, 6)}
    layers = [
        estargz_layer(tar_bytes([file(name, data) for name, data in files.items()]))
        for files in (changed, UPPER)
    ]
    make_layout(folder / "layout", layers, tag="next")
    wanted = replace(request(registry, folder), reference=f"{registry.host}/{repository}:next")
    with trio.fail_after(SECONDS):
        async with open_early() as early:
            prepared = await prepare(
                wanted, foresee=lambda foreseen: early.begin(foreseen, ACCESS, is_profiled=True)
            )
            async with open_image(prepared, ACCESS, early=early) as image:
                await image.prefetch("profile")
                yield image


def profiled(image: OpenImage, names: Iterable[str]) -> set[str]:
    """Return which of *names* were fetched because of a profile."""
    found = set()
    for name in names:
        extent = image.index.extent(walk_path(image.index, name.encode()))
        assert extent is not None
        device = image.devices[extent.device - 1]
        chunks = device.table.covering(extent.offset, extent.offset + extent.size)
        if {device.fetched[chunk] for chunk in chunks} == {Purpose.PROFILE}:
            found.add(name)
    return found


async def test_what_both_images_have_is_fetched_ahead(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    async with opened_like(registry, tmp_path) as image:
        assert profiled(image, FILES) == {"srv/c", "opt/e"}
        assert await read(image, "srv/c") == FILES["srv/c"]
        assert await read(image, "opt/e") == FILES["opt/e"]
        assert image.contents.statistics.traffic[Purpose.DEMAND].requests == 0
        assert await read(image, "srv/a") != FILES["srv/a"]
        assert len(set(ranges(registry))) == len(ranges(registry)), "asked for twice"


async def test_another_repository_is_no_hint(registry: FakeRegistry, tmp_path: Path) -> None:
    async with opened_like(registry, tmp_path, "other") as image:
        assert profiled(image, FILES) == set()


def test_the_newest_profile_of_a_repository_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number, repository in enumerate(["a", "b", "a", "c"]):
        digest = parse_digest(f"sha256:{number:064}")
        save_profile(store, digest, Profile(str(digest), 1, (), (), (), (), repository))
        os.utime(store.profile_path(digest), (number, number))
    (store.profiles / "broken").write_bytes(b"{")
    found = load_alike(store, "a")
    assert found is not None
    assert found.manifest_digest.endswith("2")
    assert load_alike(store, "d") is None


async def test_digests_of_a_profile_that_name_everything(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """It is a hint that anybody may have made: no more is fetched than a record may hold."""
    prepared = await prepare(request(registry, tmp_path))
    async with open_image(prepared, ACCESS) as image:
        device = image.devices[0]
        short = [digest[:8].hex() for digest in device.table.digests()]
        odd = ("", "no digest", "\0", short[0] * 9, *short, *short)
        profile = Profile("", 1, (), (), (), odd)
        groups = [chunks for _, chunks in replay_alike(profile, image.devices)]
        assert sorted(chunk for chunks in groups for chunk in chunks) == list(
            range(device.table.count)
        )


# Without a profile, or where it may not be used


async def test_without_a_profile_connections_are_made(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    async with opened_early(registry, tmp_path) as image:
        while registry.count("GET", "/blobs/") < REQUESTS + 3:  # with the config and two tails
            await trio.lowlevel.checkpoint()
        assert sum("bytes=0-0" in each for each in ranges(registry)) == REQUESTS
        before = registry.connections
        assert await read(image, "srv/a") == FILES["srv/a"]
        assert registry.connections == before


async def test_a_profile_may_not_be_wanted(registry: FakeRegistry, tmp_path: Path) -> None:
    await record(registry, tmp_path)
    async with opened_early(registry, tmp_path, is_profiled=False) as image:
        assert await read(image, "srv/a") == FILES["srv/a"]
        assert image.contents.statistics.traffic[Purpose.PROFILE].requests == 0


async def test_what_is_here_is_not_foreseen(registry: FakeRegistry, tmp_path: Path) -> None:
    told: list[Foreseen] = []
    prepared = await prepare(request(registry, tmp_path), foresee=told.append)
    (foreseen,) = told
    assert foreseen.manifest_digest == prepared.image.manifest_digest
    assert [layer and layer.digest for layer in foreseen.layers] == [
        layer.digest for layer in prepared.image.layers
    ]
    await prepare(request(registry, tmp_path), foresee=told.append)
    layout = Request(f"oci:{tmp_path}/layout", None, tmp_path / "other", ACCESS)
    await prepare(layout, foresee=told.append)
    assert told == [foreseen]


async def test_plain_layers_and_no_network(registry: FakeRegistry, tmp_path: Path) -> None:
    make_layout(tmp_path / "plain", [plain_layer(tar_bytes([file("a", b"a")]))])
    told: list[Foreseen] = []
    await prepare(request(registry, tmp_path), foresee=told.append)
    with FakeRegistry(tmp_path / "plain") as other:
        await prepare(request(other, tmp_path), foresee=told.append)
    first, plain = told
    assert plain.layers == (None,)
    async with open_early() as early:
        early.begin(plain, ACCESS, is_profiled=True)
        early.begin(first, replace(ACCESS, is_offline=True), is_profiled=True)
        assert early.origin is None


@pytest.mark.parametrize("what", ["layers", "ranges", "here", "large", "broken"])
async def test_a_profile_that_does_not_fit(
    registry: FakeRegistry, tmp_path: Path, what: str
) -> None:
    """It is a hint that anybody may have made: what does not fit is left out."""
    prepared = await record(registry, tmp_path)
    store = Store(tmp_path / "cache")
    digest = parse_digest(prepared.image.manifest_digest)
    profile = load_profile(store, digest)
    assert profile is not None
    first = prepared.image.layers[0]
    if what == "layers":
        others = tuple(f"sha256:{'0' * 63}{number}" for number in range(3))
        profile = msgspec.structs.replace(profile, layers=others)
    elif what == "ranges":
        beyond = tuple((n, start, 1 << 60) for n, start, _ in profile.ranges)
        profile = msgspec.structs.replace(profile, ranges=beyond)
    elif what == "large":
        many = ((0, 0, first.size),) * (EARLY_SIZE // first.size + 9)
        profile = msgspec.structs.replace(profile, ranges=many)
    elif what == "here":
        for layer in prepared.image.layers:
            table = store.layer_path(parse_digest(layer.toc_digest)) / "table"
            table.parent.mkdir(parents=True)
            table.touch()
    save_profile(store, digest, profile)
    if what == "broken":
        store.profile_path(digest).write_bytes(b"{")
    told: list[Foreseen] = []
    await prepare(request(registry, tmp_path / "elsewhere"), foresee=told.append)
    foreseen = msgspec.structs.replace(told[0], store_dir=str(store.root))
    async with open_early() as early:
        early.begin(foreseen, ACCESS, is_profiled=True)
        if what == "large":
            assert len(early._waiting) == EARLY_SIZE // first.size
        else:
            assert not early._waiting


@pytest.mark.parametrize(
    "ranges", [((2, 0, 1),), ((-1, 0, 1),), ((0, 1, 1),), ((0, -1, 1),), ((0, 5, 1),)]
)
def test_profiles_with_wrong_ranges(ranges: tuple[tuple[int, int, int], ...]) -> None:
    layers = tuple(f"sha256:{'0' * 63}{number}" for number in range(2))
    profile = Profile(f"sha256:{'0' * 64}", 1, layers, (), ranges)
    with pytest.raises(BadProfile, match="range"):
        decode_profile(msgspec.json.encode(profile))


# One range


async def test_parts_of_a_range_while_it_comes() -> None:
    layer = make_layer([300_000])
    source = MemorySource({layer.digest: layer.blob}, gate=trio.Event(), piece_size=7_001)
    early = EarlyRange(Descriptor("", layer.digest, len(layer.blob)), 1000, 140_000)
    spans = [(1000, 140_000), (1000, 1001), (7_000, 9_000), (8_001, 120_000), (139_999, 140_000)]
    found: dict[tuple[int, int], bytes] = {}

    async def read_part(start: int, end: int) -> None:
        async with early.open_range(source, start, end) as body:
            found[start, end] = b"".join([data async for data in body])

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for span in spans:
                nursery.start_soon(read_part, *span)
            nursery.start_soon(early.fetch, source, Pace(trio.current_time))
            await trio.testing.wait_all_tasks_blocked()
            assert not found
            assert source.gate is not None
            source.gate.set()
    assert found == {(start, end): layer.blob[start:end] for start, end in spans}
    assert source.requests == [(1000, 140_000)]


async def test_the_rest_of_a_range_that_fails() -> None:
    layer = make_layer([300_000])

    def fail(start: int, end: int) -> None:
        if end == 140_000 and start == 1000:
            raise Unavailable("gone")

    source = MemorySource({layer.digest: layer.blob}, fail=fail)
    early = EarlyRange(Descriptor("", layer.digest, len(layer.blob)), 1000, 140_000)
    await early.fetch(source, Pace(trio.current_time))
    async with early.open_range(source, 5000, 139_000) as body:
        assert b"".join([data async for data in body]) == layer.blob[5000:139_000]
    assert source.requests[1:] == [(5000, 139_000)]
