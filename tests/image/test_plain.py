"""Images with plain layers: one pass, verified; by an index as lazily as any; never by a lie."""

import dataclasses
import functools
import gzip
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from msgspec.structs import replace

from lazyfs.convert.indexing import (
    BuiltIndex,
    NothingToIndex,
    build_index_of,
    published_indexes,
    push_index,
)
from lazyfs.digest import Digest, digest_of, parse_digest
from lazyfs.errors import FormatError, NotFound, VerificationFailed
from lazyfs.fetch.counts import Purpose
from lazyfs.fetch.device import PART_SIZE
from lazyfs.fetch.origins.origin import Offline
from lazyfs.formats.layer_index import decode_index, encode_index
from lazyfs.image.again import prepare_again
from lazyfs.image.describe import describe
from lazyfs.image.layers.indexes import (
    Artifact,
    BadIndex,
    IndexContradicted,
    build_artifact,
)
from lazyfs.image.layers.plain import PlainOptions
from lazyfs.image.open import OpenImage, open_image
from lazyfs.image.prepare import Request, prepare
from lazyfs.image.verify import verify_image
from lazyfs.registry.source import AccessOptions
from lazyfs.rootfs.walk import walk_path
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.check import check_store
from tests.formats.test_layer_pass import FILES, tar_of, words
from tests.support.formats.images import (
    OCI_GZIP,
    OCI_TAR,
    OCI_ZSTD,
    Layer,
    layer_from_fixture,
    make_layout,
    tamper_blob,
)
from tests.support.registries.faults import status
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

ACCESS = AccessOptions(connect_seconds=5, idle_seconds=5)
MANY = [*FILES, ("big", words(3_500_000, 9))]
UPPER = [("a/small", b"above\n"), ("upper", words(1_500_000, 3))]


@functools.cache
def layer(tar: bytes, kind: str = OCI_GZIP) -> Layer:
    pack = {OCI_GZIP: lambda data: gzip.compress(data, mtime=0), OCI_TAR: bytes}
    blob = zstandard.compress(tar) if kind == OCI_ZSTD else pack[kind](tar)
    return Layer(blob, kind, {}, digest_of(tar))


@pytest.fixture(params=[OCI_GZIP, OCI_TAR, OCI_ZSTD])
def plain(request: pytest.FixtureRequest) -> Layer:
    return layer(tar_of(MANY), request.param)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    """An image of an eStargz layer between two plain ones."""
    layers = [layer(tar_of(MANY)), layer_from_fixture("real-gnu"), layer(tar_of(UPPER))]
    make_layout(tmp_path / "layout", layers)
    with FakeRegistry(tmp_path / "layout") as serving:
        serving.list_referrers()
        yield serving


def request(reference: str, folder: Path, **options: object) -> Request:
    return Request(reference, None, folder / "cache", ACCESS, plain=PlainOptions(**options))


async def read(image: OpenImage, path: str) -> bytes:
    extent = image.index.extent(walk_path(image.index, path.encode()))
    if extent is None:
        return b""
    return await image.contents.read(extent.device, extent.offset, extent.size)


async def expect(image: OpenImage, files: dict[str, bytes]) -> None:
    found = await verify_image(image, lambda size: None)
    assert found.errors == []
    for name, content in files.items():
        assert await read(image, name) == content, name


async def test_every_compression(tmp_path: Path, plain: Layer) -> None:
    make_layout(tmp_path / "layout", [plain])
    totals: list[int] = []
    taken: list[int] = []
    wanted = request(
        f"oci:{tmp_path / 'layout'}", tmp_path, progress=taken.append, on_total=totals.append
    )
    prepared = await prepare(wanted)
    assert totals == [plain.size]
    assert sum(taken) == plain.size
    (record,) = prepared.image.layers
    assert record.verified_by == "pass"
    assert record.format == {OCI_GZIP: "gzip", OCI_TAR: "tar", OCI_ZSTD: "zstd"}[plain.media_type]
    async with open_image(prepared, ACCESS) as image:
        await expect(image, dict(MANY))


async def test_a_second_time_nothing_is_fetched(registry: FakeRegistry, tmp_path: Path) -> None:
    reference = f"{registry.host}/image:latest"
    cold = await prepare(request(reference, tmp_path))
    registry.forget_requests()
    warm = await prepare(request(cold.resolved, tmp_path))
    assert registry.requests == []
    assert warm.image == cold.image
    async with open_image(warm, ACCESS) as image:
        await expect(image, dict(MANY) | dict(UPPER))
        assert registry.count("GET", "/blobs/") <= 2, "only what the lazy layer lacks"
    shutil.rmtree(tmp_path / "cache/images")
    (tmp_path / "cache/images").mkdir()
    registry.forget_requests()
    assert (await prepare(request(cold.resolved, tmp_path))).image == cold.image
    assert registry.requests == [], "a pass is kept by its layer, not by the image"


async def test_what_was_lost_comes_back_by_spans(registry: FakeRegistry, tmp_path: Path) -> None:
    reference = f"{registry.host}/image:latest"
    prepared = await prepare(request(reference, tmp_path))
    for name in ("content", "presence"):
        for path in (tmp_path / "cache/layers").glob(f"*/{name}"):
            path.unlink()
    registry.forget_requests()
    async with open_image(prepared, ACCESS) as image:
        assert await read(image, "upper") == words(1_500_000, 3)
        assert registry.count("GET", "/blobs/") >= 1
        await expect(image, dict(MANY) | dict(UPPER))


async def test_a_cache_with_passes_is_sound(registry: FakeRegistry, tmp_path: Path) -> None:
    await prepare(request(f"{registry.host}/image:latest", tmp_path))
    found = check_store(Store(tmp_path / "cache"), repair=False, progress=lambda size: None)
    assert (found.rotten, found.skipped) == ([], [])


async def test_a_layer_that_is_not_what_its_digest_says(tmp_path: Path) -> None:
    made = layer(tar_of(MANY))
    make_layout(tmp_path / "layout", [made])
    tamper_blob(tmp_path / "layout", made.digest, made.size // 2)
    with pytest.raises((VerificationFailed, FormatError)):
        await prepare(request(f"oci:{tmp_path / 'layout'}", tmp_path))
    assert not list((tmp_path / "cache/layers").iterdir())


async def test_a_layer_that_is_not_what_the_config_says(tmp_path: Path) -> None:
    made = dataclasses.replace(layer(tar_of(MANY)), diff_id=digest_of(b"other"))
    make_layout(tmp_path / "layout", [made])
    with pytest.raises(VerificationFailed, match="expected diffID"):
        await prepare(request(f"oci:{tmp_path / 'layout'}", tmp_path))


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("is_known", [False, True])
async def test_a_layer_that_is_there_twice_has_one_diff_id(
    tmp_path: Path, position: int, is_known: bool
) -> None:
    honest = layer(tar_of(MANY))
    layers = [honest, honest]
    if is_known:
        make_layout(tmp_path / "layout", layers, tag="honest")
        await prepare(request(f"oci:{tmp_path}/layout:honest", tmp_path))
    layers[position] = dataclasses.replace(honest, diff_id=digest_of(b"other"))
    make_layout(tmp_path / "layout", layers, tag="lying")
    lying = request(f"oci:{tmp_path}/layout:lying", tmp_path)
    for deed in (prepare, build_index_of):
        with pytest.raises(VerificationFailed, match=str(digest_of(b"other"))):
            await deed(lying)


# Indexes


async def published(registry: FakeRegistry, folder: Path) -> Digest:
    reference = f"{registry.host}/image:latest"
    wanted = request(reference, folder)
    built = await build_index_of(wanted)
    assert await push_index(wanted, built) == built.artifact.digest
    return built.artifact.digest


async def test_another_machine_mounts_lazily(registry: FakeRegistry, tmp_path: Path) -> None:
    pinned = await published(registry, tmp_path / "one")
    resolved, found = await published_indexes(
        request(f"{registry.host}/image:latest", tmp_path / "two")
    )
    assert [each.digest for each in found] == [pinned]
    registry.forget_requests()
    prepared = await prepare(request(resolved, tmp_path / "two", pinned=pinned))
    assert [record.verified_by for record in prepared.image.layers] == ["index", "toc", "index"]
    whole = sum(record.size for record in prepared.image.layers)
    assert sum(logged.size for logged in registry.requests) < whole
    async with open_image(prepared, ACCESS) as image:
        assert await read(image, "upper") == words(1_500_000, 3)
        await expect(image, dict(MANY) | dict(UPPER))
    registry.forget_requests()
    again = await prepare(request(resolved, tmp_path / "two", pinned=pinned))
    assert again.image == prepared.image
    assert registry.requests == []


async def test_who_jumps_in_a_large_file_gets_parts_of_it(tmp_path: Path) -> None:
    """A program in a library: every span is missed by itself, and half of them bring the rest."""
    large = words(6_000_000, 5)
    small = [(f"small{number}", words(6_000, number)) for number in range(200)]
    make_layout(tmp_path / "layout", [layer(tar_of([("large", large), *small]))])
    with FakeRegistry(tmp_path / "layout") as serving:
        serving.list_referrers()
        pinned = await published(serving, tmp_path / "one")
        reference = f"{serving.host}/image:latest"
        prepared = await prepare(request(reference, tmp_path / "two", pinned=pinned))
        async with open_image(prepared, ACCESS) as image:
            demand = image.contents.statistics.traffic[Purpose.DEMAND]
            assert await read(image, "small100") == words(6_000, 100)
            assert demand.size < PART_SIZE
            extent = image.index.extent(walk_path(image.index, b"large"))
            assert extent is not None
            offsets = list(range(0, len(large), 128 << 10))
            random.Random(1).shuffle(offsets)
            sizes = []
            for offset in offsets:
                wanted = large[offset : offset + 4096]
                found = await image.contents.read(
                    extent.device, extent.offset + offset, len(wanted)
                )
                assert found == wanted
                sizes.append(demand.size)
            assert sizes[0] <= 3 * PART_SIZE, "a first miss says little"
            assert demand.requests < len(offsets) / 2
            assert demand.size <= prepared.image.layers[0].size


async def test_who_reads_a_large_file_on_gets_ahead(tmp_path: Path) -> None:
    large = words(6_000_000, 5)
    make_layout(tmp_path / "layout", [layer(tar_of([("large", large)]))])
    with FakeRegistry(tmp_path / "layout") as serving:
        serving.list_referrers()
        pinned = await published(serving, tmp_path / "one")
        reference = f"{serving.host}/image:latest"
        prepared = await prepare(request(reference, tmp_path / "two", pinned=pinned))
        async with open_image(prepared, ACCESS) as image:
            extent = image.index.extent(walk_path(image.index, b"large"))
            assert extent is not None
            for offset in range(0, len(large), 128 << 10):
                wanted = large[offset : offset + (128 << 10)]
                at = extent.offset + offset
                found = image.contents.read_nowait(extent.device, at, len(wanted))
                assert (
                    found or await image.contents.read(extent.device, at, len(wanted))
                ) == wanted
            assert image.contents.statistics.traffic[Purpose.AHEAD].requests > 0
            assert image.contents.statistics.requests < 12


async def test_an_index_is_the_same_wherever_it_is_built(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    first = await published(registry, tmp_path / "one")
    assert await published(registry, tmp_path / "two") == first
    assert await published(registry, tmp_path / "two") == first, "from what is here"


async def test_an_index_of_another_image_is_refused(registry: FakeRegistry, tmp_path: Path) -> None:
    pinned = await published(registry, tmp_path / "one")
    make_layout(tmp_path / "layout", [layer(tar_of(FILES))], tag="other")
    with pytest.raises(BadIndex, match=r"got subject sha256:.*, expected sha256:"):
        await prepare(request(f"{registry.host}/image:other", tmp_path / "two", pinned=pinned))


async def test_an_index_that_is_not_there(registry: FakeRegistry, tmp_path: Path) -> None:
    pinned = digest_of(b"a typo")
    with pytest.raises(
        NotFound, match=f"index {pinned} is not in the repository of the image sha256"
    ):
        await prepare(request(f"{registry.host}/image:latest", tmp_path / "two", pinned=pinned))


async def test_what_is_no_index(registry: FakeRegistry, tmp_path: Path) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path / "one"))
    image = parse_digest(prepared.image.manifest_digest)
    with pytest.raises(BadIndex, match="got an image, expected application"):
        await prepare(request(prepared.resolved, tmp_path / "two", pinned=image))


async def test_an_index_that_lies_serves_nothing(registry: FakeRegistry, tmp_path: Path) -> None:
    """Restart points are not what is trusted: with wrong ones there are errors, and no bytes."""
    reference = f"{registry.host}/image:latest"
    wanted = request(reference, tmp_path / "one")
    built = await build_index_of(wanted)
    forged = []
    for each in built.layers:
        index = decode_index(each.data)
        spans = tuple(
            span._replace(window=bytes(len(span.window)), bits=(span.bits + 1) % 8)
            for span in index.spans
        )
        forged.append((each.descriptor, encode_index(replace(index, spans=spans))))
    artifact = build_artifact(built.subject, forged)
    await push_index(wanted, replace(built, artifact=artifact))
    prepared = await prepare(request(reference, tmp_path / "two", pinned=artifact.digest))
    async with open_image(prepared, ACCESS) as image:
        with pytest.raises(VerificationFailed) as caught:
            await read(image, "upper")
        assert image.health.text != "ok"
        assert "index build --again" in str(caught.value.hint)


def forged_modes(built: BuiltIndex) -> Artifact:
    """Return an index that says that files may be written by everybody."""
    forged = []
    for each in built.layers:
        index = decode_index(each.data)
        toc = index.toc_json.replace(b'"mode": 420', b'"mode": 511')
        assert toc != index.toc_json
        index = replace(index, toc_json=toc, toc_digest=digest_of(toc))
        forged.append((each.descriptor, encode_index(index)))
    return build_artifact(built.subject, forged)


async def test_a_full_pass_that_contradicts_an_index(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    reference = f"{registry.host}/image:latest"
    wanted = request(reference, tmp_path / "one")
    built = await build_index_of(wanted)
    artifact = forged_modes(built)
    await push_index(wanted, replace(built, artifact=artifact))
    there = request(reference, tmp_path / "two", pinned=artifact.digest)
    await prepare(there)
    with pytest.raises(IndexContradicted, match="mode 0644 in the tar, 0777 in the TOC"):
        await build_index_of(there, again=True)
    await push_index(wanted, built)
    honest = request(reference, tmp_path / "three", pinned=built.artifact.digest)
    await prepare(honest)
    await build_index_of(honest, again=True)


def damage_spans(folder: Path, how: str) -> None:
    """Damage the spans of all plain layers in the store below *folder*."""
    paths = list((folder / "cache/layers").glob("*/spans"))
    assert paths
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(data if how == "flipped" else data[:-7])


def forget_contents(folder: Path) -> None:
    for name in ("content", "presence"):
        for path in (folder / "cache/layers").glob(f"*/{name}"):
            path.unlink()


@pytest.mark.parametrize("how", ["gone", "flipped", "cut"])
async def test_spans_that_are_damaged_are_made_again(
    registry: FakeRegistry, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    reference = f"{registry.host}/image:latest"
    first = await prepare(request(reference, tmp_path))
    forget_contents(tmp_path)
    damage_spans(tmp_path, how)
    prepared = await prepare(request(reference, tmp_path))
    assert prepared.image == first.image
    said = [record.message for record in caplog.records if "damaged or" in record.message]
    assert len(said) == 2, "once for each layer"
    async with open_image(prepared, ACCESS) as image:
        await expect(image, dict(MANY) | dict(UPPER))
    forget_contents(tmp_path)
    caplog.clear()
    async with open_image(await prepare(request(reference, tmp_path)), ACCESS) as image:
        await expect(image, dict(MANY) | dict(UPPER))
    assert caplog.records == []


@pytest.mark.parametrize("how", ["gone", "flipped", "cut"])
async def test_spans_that_are_damaged_while_an_image_is_open(
    registry: FakeRegistry, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    forget_contents(tmp_path)
    async with open_image(prepared, ACCESS) as image:
        damage_spans(tmp_path, how)
        await expect(image, dict(MANY) | dict(UPPER))
        assert image.health.text == "ok"
    said = [record.message for record in caplog.records if "fetching them again" in record.message]
    assert len(said) == len(caplog.records) == 2, "once for each layer"
    caplog.clear()
    forget_contents(tmp_path)
    async with open_image(prepared, ACCESS) as image:
        await expect(image, dict(MANY) | dict(UPPER))
    assert caplog.records == []


async def test_an_index_that_is_damaged_while_an_image_is_open_is_fetched_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    pinned = await published(registry, tmp_path / "one")
    there = request(f"{registry.host}/image:latest", tmp_path / "two", pinned=pinned)
    prepared = await prepare(there)
    whole = prepared.image.layers[2].size
    async with open_image(prepared, ACCESS) as image:
        damage_spans(tmp_path / "two", "flipped")
        registry.forget_requests()
        await read(image, "a/small")
        assert sum(logged.size for logged in registry.requests) < whole / 2
        await expect(image, dict(MANY) | dict(UPPER))
    forget_contents(tmp_path / "two")
    async with open_image(prepared, ACCESS) as image:  # and where it is in the registry no more
        damage_spans(tmp_path / "two", "gone")
        registry.faults.add(status(404), path=str(pinned), times=None)
        await expect(image, dict(MANY) | dict(UPPER))
        assert image.health.text == "ok"


async def test_an_index_that_is_found_to_lie_while_its_image_is_open(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    wanted = request(f"{registry.host}/image:latest", tmp_path / "one")
    built = await build_index_of(wanted)
    artifact = forged_modes(built)
    await push_index(wanted, replace(built, artifact=artifact))
    there = request(f"{registry.host}/image:latest", tmp_path / "two", pinned=artifact.digest)
    async with open_image(await prepare(there), ACCESS) as image:
        damage_spans(tmp_path / "two", "gone")
        registry.faults.add(status(404), path=str(artifact.digest), times=None)
        with pytest.raises(IndexContradicted, match="mode 0644 in the tar, 0777 in the TOC"):
            await read(image, "upper")


async def test_spans_are_not_missed_where_all_content_is_here(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    first = await prepare(request(f"{registry.host}/image:latest", tmp_path))
    damage_spans(tmp_path, "gone")
    registry.forget_requests()
    prepared = await prepare(request(first.resolved, tmp_path))
    assert registry.requests == []
    async with open_image(prepared, ACCESS) as image:
        await expect(image, dict(MANY) | dict(UPPER))


async def test_spans_of_an_index_come_from_it_again(registry: FakeRegistry, tmp_path: Path) -> None:
    reference = f"{registry.host}/image:latest"
    wanted = request(reference, tmp_path / "one")
    pinned = await push_index(wanted, await build_index_of(wanted))
    there = request(reference, tmp_path / "two", pinned=pinned)
    await prepare(there)
    damage_spans(tmp_path / "two", "flipped")
    prepared = await prepare(there)
    assert [layer.verified_by for layer in prepared.image.layers] == ["index", "toc", "index"]
    async with open_image(prepared, ACCESS) as image:
        await expect(image, dict(MANY) | dict(UPPER))


async def test_another_index_is_used_where_it_is_asked_for(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    reference = f"{registry.host}/image:latest"
    wanted = request(reference, tmp_path / "one")
    built = await build_index_of(wanted)
    pinned = await push_index(wanted, built)
    other = replace(built, artifact=forged_modes(built))
    assert await push_index(wanted, other) == other.artifact.digest
    digests = []
    for index_digest in (other.artifact.digest, pinned, pinned):
        there = request(reference, tmp_path / "two", pinned=index_digest)
        digests.append([layer.toc_digest for layer in (await prepare(there)).image.layers])
    assert digests[0] != digests[1] == digests[2]


async def test_an_index_vouches_for_its_own_image_only(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever makes an image may put a layer of another one into it, and lie about that."""
    reference = f"{registry.host}/image:latest"
    wanted = request(reference, tmp_path / "one")
    built = await build_index_of(wanted)
    forged = replace(built, artifact=forged_modes(built))
    pinned = await push_index(wanted, forged)
    by_index = await prepare(request(reference, tmp_path / "two", pinned=pinned))
    make_layout(tmp_path / "other", [layer(tar_of(MANY))])
    other = request(f"oci:{tmp_path / 'other'}", tmp_path / "two")
    (described,) = (await describe(other)).layers
    assert described.is_plain
    prepared = await prepare(other)
    assert "is from an index that was given for another image" in caplog.text
    (record,) = prepared.image.layers
    assert record.verified_by == "pass"
    assert record.toc_digest != by_index.image.layers[0].toc_digest
    async with open_image(prepared, ACCESS) as image:
        nid = walk_path(image.index, b"a/small")
        assert image.index.inode(nid).mode & 0o777 == 0o644


async def test_an_image_that_is_built_again_has_its_index_still(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    pinned = await published(registry, tmp_path / "one")
    reference = f"{registry.host}/image:latest"
    before = await prepare(request(reference, tmp_path / "two", pinned=pinned))
    (index,) = (tmp_path / "two/cache").glob("images/*/index.erofs")
    index.write_bytes(b"")
    again = await prepare(request(reference, tmp_path / "two"))
    assert again.image == before.image
    index.parent.joinpath("record.json").unlink()
    anew = await prepare_again(before, ACCESS, cache_dir=tmp_path / "two/cache", patience=0.0)
    assert anew.image == before.image


async def test_an_index_that_is_not_needed_is_told_of(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = f"{registry.host}/image:latest"
    wanted = request(reference, tmp_path)
    pinned = await push_index(wanted, await build_index_of(wanted))
    there = request(reference, tmp_path, pinned=pinned)
    for _ in range(2):
        caplog.clear()
        prepared = await prepare(there)
        assert [layer.verified_by for layer in prepared.image.layers] == ["pass", "toc", "pass"]
        (said,) = caplog.records
        assert f"index {pinned}: not used for 2 of 2 layers" in said.message


async def test_an_image_without_plain_layers_needs_no_index(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", [layer_from_fixture("real-gnu")])
    with pytest.raises(NothingToIndex):
        await build_index_of(request(f"oci:{tmp_path / 'layout'}", tmp_path))


async def test_inspect_says_how_a_layer_is_had(registry: FakeRegistry, tmp_path: Path) -> None:
    wanted = request(f"{registry.host}/image:latest", tmp_path)
    before = await describe(wanted)
    assert [each.why is None for each in before.layers] == [False, True, False]
    assert [each.is_plain for each in before.layers] == [True, False, True]
    await prepare(wanted)
    after = await describe(wanted)
    assert [each.why for each in after.layers] == [None] * 3
    assert [each.verified_by for each in after.layers] == [("pass",), ("toc",), ("pass",)]
    assert [each.format for each in after.layers] == ["gzip", "estargz", "gzip"]


async def test_offline_nothing_is_pushed_or_listed(registry: FakeRegistry, tmp_path: Path) -> None:
    wanted = request(f"{registry.host}/image:latest", tmp_path)
    built = await build_index_of(wanted)
    registry.forget_requests()
    offline = replace(wanted, access=replace(ACCESS, is_offline=True))
    with pytest.raises(Offline):
        await push_index(offline, built)
    with pytest.raises(Offline):
        await published_indexes(offline)
    assert registry.requests == []


async def test_what_a_pass_fetched_is_told(registry: FakeRegistry, tmp_path: Path) -> None:
    reference = f"{registry.host}/image:latest"
    prepared = await prepare(request(reference, tmp_path))
    plain = [layer.size for layer in prepared.image.layers if layer.verified_by == "pass"]
    assert prepared.requests >= 4
    assert prepared.received_size > sum(plain)
    async with open_image(prepared, ACCESS) as image:
        said = image.statistics()["prepared"]
    assert said == {"requests": prepared.requests, "receivedSize": prepared.received_size}
    again = await prepare(request(prepared.resolved, tmp_path))
    assert (again.requests, again.received_size) == (0, 0)
