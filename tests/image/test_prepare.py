"""Preparing and opening whole images: round trips, caching, and every way in which they are bad."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from lazyfs.digest import digest_of
from lazyfs.errors import (
    AccessDenied,
    FormatError,
    LazyfsError,
    NotFound,
    Unavailable,
    VerificationFailed,
)
from lazyfs.fetch.origins.whole import WrongBlob
from lazyfs.fetch.refused import ChunkCorrupt
from lazyfs.image.open import ImageGone, OpenImage, open_image
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.image.verify import verify_image
from lazyfs.registry.source import AccessOptions
from lazyfs.rootfs.walk import walk_path
from lazyfs.store.content.unwritten import UnstoredContent
from tests.support.formats.images import (
    Layer,
    blob_path,
    estargz_layer,
    file,
    layer_from_fixture,
    make_layout,
    plain_layer,
    source_tar,
    tagged,
    tamper_blob,
    tar_bytes,
)
from tests.support.mounts.mounting import needs_root, run
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

ACCESS = AccessOptions(connect_seconds=5, idle_seconds=5)
CONFIG_AND_TAILS = 3
TEXT = b"dir/text64k.txt"


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    return [layer_from_fixture("real-gnu"), layer_from_fixture("edge-default")]


@pytest.fixture
def layout(tmp_path: Path, layers: list[Layer]) -> Path:
    make_layout(tmp_path / "layout", layers)
    return tmp_path / "layout"


@pytest.fixture
def registry(layout: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(layout) as serving:
        yield serving


def request(reference: str, tmp_path: Path, platform: str | None = None) -> Request:
    return Request(reference, platform, tmp_path / "cache", ACCESS)


async def read(image: OpenImage, path: bytes) -> bytes:
    extent = image.index.extent(walk_path(image.index, path))
    assert extent is not None
    return await image.contents.read(extent.device, extent.offset, extent.size)


def expected_text() -> bytes:
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(source_tar("edge"))) as tar:
        found = tar.extractfile(TEXT.decode())
        assert found is not None
        return found.read()


# Round trips and caching


async def test_a_cold_image_takes_a_manifest_then_all_else_at_once(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    paths = [logged.path for logged in registry.requests if logged.path != "/v2/"]
    assert len(paths) == 1 + CONFIG_AND_TAILS
    assert "/manifests/latest" in paths[0]
    assert prepared.source == "registry"
    digest = prepared.image.manifest_digest
    assert prepared.resolved == f"{registry.host}/image@{digest}"
    assert Prepared.decode(prepared.encode()) == prepared


async def test_a_known_digest_takes_no_request(registry: FakeRegistry, tmp_path: Path) -> None:
    cold = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    registry.forget_requests()
    warm = await prepare(request(cold.resolved, tmp_path))
    assert registry.requests == []
    assert warm.source == "cache"
    assert warm.image == cold.image


async def test_a_tag_is_resolved_again_and_the_rest_is_cached(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    await prepare(request(f"{registry.host}/image:latest", tmp_path))
    registry.forget_requests()
    await prepare(request(f"{registry.host}/image:latest", tmp_path))
    assert [logged.path.rsplit("/", 1)[1] for logged in registry.requests] == ["latest"]


async def test_images_share_layers(tmp_path: Path, layers: list[Layer]) -> None:
    make_layout(tmp_path / "layout", layers, tag="one")
    make_layout(tmp_path / "layout", layers[:1], tag="two")
    with FakeRegistry(tmp_path / "layout") as registry:
        await prepare(request(f"{registry.host}/image:one", tmp_path))
        registry.forget_requests()
        await prepare(request(f"{registry.host}/image:two", tmp_path))
        paths = [logged.path for logged in registry.requests if logged.path != "/v2/"]
        assert len(paths) == 2, "manifest and config, but no tail"


async def test_a_rotten_index_is_built_again(registry: FakeRegistry, tmp_path: Path) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    digits = prepared.image.manifest_digest.partition(":")[2]
    index = tmp_path / "cache/images" / digits / "index.erofs"
    data = bytearray(index.read_bytes())
    data[3000] ^= 1
    index.write_bytes(data)
    again = await prepare(request(prepared.resolved, tmp_path))
    assert again.image == prepared.image
    assert index.read_bytes() != data


@pytest.mark.parametrize("name", ["table", "toc.zst"])
async def test_a_lost_or_rotten_layer_file_is_made_again(
    registry: FakeRegistry, tmp_path: Path, name: str
) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    for path in (tmp_path / "cache/layers").glob(f"*/{name}"):
        path.write_bytes(b"rot")
    shutil.rmtree(tmp_path / "cache/images")
    (tmp_path / "cache/images").mkdir()
    again = await prepare(request(prepared.resolved, tmp_path))
    assert again.image == prepared.image
    async with open_image(again, ACCESS) as image:
        assert await read(image, TEXT) == expected_text()


async def test_opening_what_was_removed_prepares_it_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    shutil.rmtree(tmp_path / "cache/layers")
    async with open_image(prepared, ACCESS) as image:
        assert image.prepared.image == prepared.image
        assert await read(image, TEXT) == expected_text()


@pytest.mark.parametrize("is_volatile", [False, True])
@pytest.mark.parametrize("name", ["manifest_digest", "index_digest", "provenance_digest"])
async def test_opening_what_comes_out_differently_is_an_error(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    is_volatile: bool,
) -> None:
    """A live mount's inodes have the numbers of the index that was there first."""
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    shutil.rmtree(tmp_path / "cache/layers")

    async def otherwise(wanted: Request) -> Prepared:
        again = await prepare(wanted)
        made.append(again.store_dir)
        return replace(
            again,
            image=replace(again.image, **{name: f"sha256:{'0' * 64}"}),
            is_volatile=is_volatile,
        )

    made: list[str] = []
    monkeypatch.setattr("lazyfs.image.again.prepare", otherwise)
    with pytest.raises(ImageGone):
        async with open_image(prepared, ACCESS):
            pass
    assert Path(*made).exists() == (not is_volatile)  # what lies in memory is nobody else's


async def test_opening_what_was_removed_and_cannot_be_had_is_an_error(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    shutil.rmtree(tmp_path / "cache/layers")
    shutil.rmtree(tmp_path / "cache/blobs")
    with pytest.raises(ImageGone):
        async with open_image(prepared, replace(ACCESS, is_offline=True)):
            pass


async def test_errors_leave_an_open_image_as_they_are(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    with pytest.raises(ZeroDivisionError):
        async with open_image(prepared, ACCESS):
            raise ZeroDivisionError


# References and platforms


async def test_a_layout_on_disk(layout: Path, tmp_path: Path) -> None:
    prepared = await prepare(request(f"oci:{layout}:latest", tmp_path))
    assert prepared.source == "layout"
    async with open_image(prepared, ACCESS) as image:
        assert await read(image, TEXT) == expected_text()


async def test_an_index_offers_platforms(tmp_path: Path, layers: list[Layer]) -> None:
    make_layout(
        tmp_path / "layout", layers, platform="linux/amd64", others={"linux/arm64": layers[:1]}
    )
    with FakeRegistry(tmp_path / "layout") as registry:
        reference = f"{registry.host}/image:latest"
        amd64 = await prepare(request(reference, tmp_path, "linux/amd64"))
        arm64 = await prepare(request(reference, tmp_path, "linux/arm64"))
        assert amd64.index_digest == arm64.index_digest == tagged(tmp_path / "layout")["digest"]
        assert len(amd64.image.layers) == 2
        assert len(arm64.image.layers) == 1
        assert arm64.image.platform.startswith("linux/arm64")
        with pytest.raises(NotFound, match="linux/amd64"):
            await prepare(request(reference, tmp_path, "linux/s390x"))


async def test_the_mount_root_says_what_it_is(registry: FakeRegistry, tmp_path: Path) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    async with open_image(prepared, ACCESS, mount_id="f00") as image:
        fixed = image.index.xattrs(image.index.root_nid)
        assert fixed[b"user.lazyfs.schema"] == b"1"
        assert fixed[b"user.lazyfs.manifest.digest"].decode() == prepared.image.manifest_digest
        (first, second) = json.loads(fixed[b"user.lazyfs.layers"])
        assert first.keys() == {"digest", "diffId", "mediaType", "size", "tocDigest"}
        assert first["size"] == prepared.image.layers[0].size
        assert second["digest"] == prepared.image.layers[1].digest
        own = image.attributes
        assert own[b"user.lazyfs.mount.id"] == b"f00"
        assert own[b"user.lazyfs.ref.requested"] == f"{registry.host}/image:latest".encode()
        health = own[b"user.lazyfs.health"]
        assert callable(health)
        assert health() == b"ok"


# Bad images


async def test_a_plain_layer_that_claims_a_toc_is_found_out(tmp_path: Path) -> None:
    plain = plain_layer(source_tar("edge"))
    claim = {"containerd.io/snapshot/stargz/toc.digest": str(digest_of(b"x"))}
    layer = Layer(plain.blob, plain.media_type, claim, plain.diff_id)
    make_layout(tmp_path / "layout", [layer])
    with pytest.raises(FormatError, match="gzip"):
        await prepare(request(f"oci:{tmp_path / 'layout'}", tmp_path))


async def test_another_toc_than_the_annotation_says(tmp_path: Path, layers: list[Layer]) -> None:
    lie = {"containerd.io/snapshot/stargz/toc.digest": str(digest_of(b"another"))}
    layer = Layer(layers[0].blob, layers[0].media_type, lie, layers[0].diff_id)
    make_layout(tmp_path / "layout", [layer])
    with pytest.raises(VerificationFailed, match=str(digest_of(b"another"))):
        await prepare(request(f"oci:{tmp_path / 'layout'}", tmp_path))


@pytest.mark.parametrize("share", [0.97, 0.99, 0.995])
async def test_a_flipped_bit_in_toc_or_footer(
    layout: Path, layers: list[Layer], tmp_path: Path, share: float
) -> None:
    layer = layers[1]
    tamper_blob(layout, layer.digest, int(layer.size * share))
    with pytest.raises((FormatError, VerificationFailed)):
        await prepare(request(f"oci:{layout}", tmp_path))


async def test_a_truncated_blob(layout: Path, layers: list[Layer], tmp_path: Path) -> None:
    path = blob_path(layout, layers[1].digest)
    os.truncate(path, layers[1].size - 100)
    with pytest.raises(LazyfsError):
        await prepare(request(f"oci:{layout}", tmp_path))


async def test_another_manifest_than_its_digest_says(layout: Path, tmp_path: Path) -> None:
    digest = tagged(layout)["digest"]
    tamper_blob(layout, digest, 20)
    with FakeRegistry(layout) as registry, pytest.raises(VerificationFailed):
        await prepare(request(f"{registry.host}/image@{digest}", tmp_path))


async def test_a_chunk_with_a_flipped_bit_is_refused_and_the_rest_is_served(
    layout: Path, layers: list[Layer], tmp_path: Path
) -> None:
    prepared = await prepare(request(f"oci:{layout}", tmp_path))
    async with open_image(prepared, ACCESS) as image:
        extent = image.index.extent(walk_path(image.index, TEXT))
        assert extent is not None
        table = image.devices[extent.device - 1].table
        chunk = table.covering(extent.offset, extent.offset + 1).start
        tamper_blob(layout, layers[1].digest, table.blob_offset(chunk) + 500)
        with pytest.raises(ChunkCorrupt):
            await read(image, TEXT)
        assert image.health.text == f"corrupt sha256:{table.digest(chunk).hex()}"
        assert await read(image, b"dir/small.txt")
        found = await verify_image(image, lambda size: None)
        assert [type(error) for error in found.errors] == [ChunkCorrupt, WrongBlob]


# Bad registries


@pytest.mark.parametrize(
    ("behaviour", "family"),
    [
        (faults.status(401), AccessDenied),
        (faults.status(403), AccessDenied),
        (faults.error(404, "MANIFEST_UNKNOWN", "manifest unknown"), NotFound),
        (faults.status(416), LazyfsError),
        (faults.status(429, {"Retry-After": "0"}), Unavailable),
        (faults.status(500), Unavailable),
        (faults.hang(), Unavailable),
        (faults.cut(10), Unavailable),
    ],
)
async def test_a_registry_that_refuses(
    registry: FakeRegistry, tmp_path: Path, behaviour: faults.Behaviour, family: type[Exception]
) -> None:
    registry.faults.add(behaviour, path="/manifests/", times=None)
    access = AccessOptions(connect_seconds=1, idle_seconds=0.2)
    wanted = Request(f"{registry.host}/image:latest", None, tmp_path / "cache", access)
    with trio.fail_after(60), pytest.raises(family) as caught:
        await prepare(wanted)
    assert registry.host in str(caught.value)


@pytest.mark.parametrize("behaviour", [faults.whole(), faults.short(50), faults.cut(1000)])
async def test_a_registry_that_bends_ranges(
    registry: FakeRegistry, tmp_path: Path, behaviour: faults.Behaviour
) -> None:
    registry.faults.add(behaviour, path="/blobs/", times=2)
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    async with open_image(prepared, ACCESS) as image:
        registry.faults.clear()
        registry.faults.add(behaviour, path="/blobs/", times=2)
        assert await read(image, TEXT) == expected_text()


async def test_reads_fail_while_the_registry_is_away_and_work_when_it_is_back(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    async with open_image(prepared, AccessOptions(connect_seconds=1, idle_seconds=1)) as image:
        registry.faults.add(faults.status(503), path="/blobs/", times=None)
        with trio.fail_after(60), pytest.raises(Unavailable):
            await read(image, TEXT)
        registry.faults.clear()
        assert await read(image, TEXT) == expected_text()


# Full disks


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    """Have a filesystem of *size* bytes on *path*."""
    path.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path, check=True)
    try:
        yield
    finally:
        run("umount", "-l", path, check=True)


@needs_root[0]
@needs_root[1]
async def test_a_full_disk_is_served_without_storing(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", [estargz_layer(source_tar("big"))])
    with small_disk(tmp_path / "cache", 4 << 20):
        prepared = await prepare(request(f"oci:{tmp_path / 'layout'}", tmp_path))
        assert not prepared.is_volatile
        async with open_image(prepared, ACCESS) as image:
            for name in (b"opt/big.txt", b"opt/exact4m.bin", b"opt/rand.bin"):
                data = await read(image, name)
                origin = image.provenance.of(walk_path(image.index, name))
                assert origin is not None
                assert origin.digest == digest_of(data).raw
            assert 0 < image.contents.statistics.unstored_chunks < 5


@needs_root[0]
@needs_root[1]
async def test_a_disk_without_room_for_the_index(tmp_path: Path, layout: Path) -> None:
    with small_disk(tmp_path / "cache", 64 << 10):
        prepared = await prepare(request(f"oci:{layout}", tmp_path))
        assert prepared.is_volatile
        async with open_image(prepared, ACCESS) as image:
            assert await read(image, TEXT) == expected_text()
    assert not Path(prepared.store_dir).exists()


async def test_without_room_for_the_index_nothing_is_left(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lazyfs.image import build as module
    from lazyfs.store.paths import StoreFull

    def full(*arguments: object) -> None:
        raise StoreFull("store: no space left on device")

    saved = module.save_image
    monkeypatch.setattr(
        module,
        "save_image",
        lambda store, *rest: saved(store, *rest) if "shm" in str(store.root) else full(),
    )
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    assert prepared.is_volatile
    async with open_image(prepared, ACCESS) as image:
        assert not Path(prepared.store_dir).exists()
        assert isinstance(image.devices[0].content, UnstoredContent)
        assert await read(image, TEXT) == expected_text()


# Verifying


async def test_verify_fetches_everything_and_finds_rot(layout: Path, tmp_path: Path) -> None:
    prepared = await prepare(request(f"oci:{layout}", tmp_path))
    seen: list[int] = []
    async with open_image(prepared, ACCESS) as image:
        found = await verify_image(image, seen.append)
        total = sum(device.table.payload_size for device in image.devices)
        assert (found.errors, found.stored_size, found.resident_size) == ([], 0, total)
        assert sum(seen) == total
    content = max((tmp_path / "cache/layers").glob("*/content"), key=lambda p: p.stat().st_size)
    with open(content, "r+b") as file:
        file.seek(4096)
        file.write(b"rot")
    async with open_image(prepared, ACCESS) as image:
        found = await verify_image(image, lambda size: None)
        assert (found.errors, found.repaired, found.resident_size) == ([], 1, total)
        assert found.stored_size < total


# Profiles


async def test_first_reads_are_recorded_and_replayed(layout: Path, tmp_path: Path) -> None:
    prepared = await prepare(request(f"oci:{layout}", tmp_path))
    async with open_image(prepared, ACCESS) as image:
        await read(image, TEXT)
        await read(image, b"dir/small.txt")
        image.save_profile()
    shutil.rmtree(tmp_path / "cache/layers")
    shutil.rmtree(tmp_path / "cache/images")
    (tmp_path / "cache/layers").mkdir()
    (tmp_path / "cache/images").mkdir()
    prepared = await prepare(request(f"oci:{layout}", tmp_path))
    async with open_image(prepared, ACCESS) as image:
        await image.prefetch("profile")
        for path in (TEXT, b"dir/small.txt"):
            extent = image.index.extent(walk_path(image.index, path))
            assert extent is not None
            assert image.contents.read_nowait(extent.device, extent.offset, extent.size)
        assert image.contents.statistics.misses == 0
        resident = sum(device.content.resident_size() for device in image.devices)
        assert resident < 200_000


# Other bytes than were asked for


def long_layer(tmp_path: Path) -> Layer:
    """Return a layer whose end is asked for alone; its image is in the layout long/."""
    data = random.Random(1).randbytes(3 << 20)
    layer = estargz_layer(tar_bytes([file(b"big", data)]), chunk_size=1 << 20)
    make_layout(tmp_path / "long", [layer])
    return layer


@pytest.mark.parametrize("times", [1, None])
async def test_bytes_of_another_range(tmp_path: Path, times: int | None) -> None:
    """The end of a layer is not what the manifest says: nobody knows who is wrong."""
    layer = long_layer(tmp_path)
    with FakeRegistry(tmp_path / "long") as registry:
        path = f"blobs/{layer.digest}"
        registry.faults.add(faults.another_range(), path=path, times=times, ranged=True)
        wanted = request(f"{registry.host}/image:latest", tmp_path)
        if times is not None:  # asked again, it is right
            await prepare(wanted)
            return
        with pytest.raises(FormatError, match="not eStargz") as told:
            await prepare(wanted)
    assert told.value.hint == (
        "the bytes do not match the digest in the manifest: registry, mirror or image is wrong"
    )


async def test_an_answer_that_says_that_it_is_another_range(tmp_path: Path) -> None:
    layer = long_layer(tmp_path)
    with FakeRegistry(tmp_path / "long") as registry:
        behaviour = faults.content_range(f"bytes 0-9/{layer.size}")
        registry.faults.add(behaviour, path=f"blobs/{layer.digest}", times=None, ranged=True)
        with pytest.raises(Unavailable, match="answered with other bytes than asked for: Content"):
            await prepare(request(f"{registry.host}/image:latest", tmp_path))
