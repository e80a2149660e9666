"""A mount that has filled a layer says whether its tar and its table of contents are one tree.

It costs two short requests: what the tar has between payloads is caught while these are decoded.
Nothing vouches for those bytes but the diffID of the whole: who forges them makes nothing look
right, or wrong.
"""

import gzip
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from lazyfs.digest import parse_digest
from lazyfs.fetch.gap_store import GapStore, cut
from lazyfs.formats.decode import RangeDecoder
from lazyfs.formats.streams.stream import Decoded, Piece
from lazyfs.formats.tars.gaps import MAX_GAPS, Gaps
from lazyfs.image.one_tree import compare_trees
from lazyfs.image.open import OpenImage, open_image
from lazyfs.image.prepare import Request, prepare
from lazyfs.image.verify import verify_image
from lazyfs.registry.source import AccessOptions
from lazyfs.store.agreements import load_agreement
from lazyfs.store.paths import Store
from tests.support.formats.contradicting import LIES, bent_estargz, rich_tar
from tests.support.formats.images import (
    Layer,
    estargz_layer,
    file,
    layer_from_fixture,
    make_layout,
    reference_layer_names,
    tar_bytes,
    toc_layer_of,
)
from tests.support.formats.zstdchunked import zstd_layer
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, needs_root, wait_until
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio
ACCESS = AccessOptions()


def request(reference: str, tmp_path: Path, verify: str = "toc") -> Request:
    return Request(reference, None, tmp_path / "cache", ACCESS, verify)


def image_of(tmp_path: Path, *layers: Layer) -> str:
    make_layout(tmp_path / "image", layers)
    return f"oci:{tmp_path}/image:latest"


async def fill(image: OpenImage) -> None:
    """Do what a server does beside its readers."""
    await image.recall_trees()
    await image.prefetch("all")
    await compare_trees(image)


async def filled(
    reference: str, tmp_path: Path, *, verify: str = "toc"
) -> tuple[list[bool | None], str, int]:
    """Return what a mount that was filled says: of its layers, its health, and bytes received."""
    prepared = await prepare(request(reference, tmp_path, verify))
    async with open_image(prepared, ACCESS, catches_gaps=True) as image:
        await fill(image)
        said = [device.agrees for device in image.devices]
        return said, image.health.text, image.origin.statistics.received_size


@pytest.mark.parametrize("name", reference_layer_names())
async def test_layers_of_official_producers(tmp_path: Path, name: str) -> None:
    layer = layer_from_fixture(name)
    reference = image_of(tmp_path, layer)
    if "exttoc" in name:
        make_layout(tmp_path / "image", [toc_layer_of(name)], tag="latest-esgztoc")
    said, health, received = await filled(reference, tmp_path)
    assert (said, health) == ([True], "ok")
    assert received <= layer.size + 100, "no byte of the blob is fetched twice"


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_is_the_mounts_health(tmp_path: Path, lie: str) -> None:
    layer = bent_estargz(LIES[lie][0])
    reference = image_of(tmp_path, estargz_layer(tar_bytes([file("below", b"x")])), layer)
    said, health, _ = await filled(reference, tmp_path)
    assert said == [True, False]
    assert health == f"contradiction {layer.digest}"


@pytest.mark.parametrize("dialect", ["stargz", "containers"])
async def test_zstd_chunked(tmp_path: Path, dialect: str) -> None:
    files = {"a": [b"one"], "b": [b"x" * 5000, b"y" * 400], "c": [b"z" * 100_000]}

    def bend(toc: dict) -> None:
        toc["entries"][-1]["uid"] = 1

    honest = zstd_layer(files, dialect=dialect)
    lying = zstd_layer(files, dialect=dialect, bend=bend)
    said, health, _ = await filled(image_of(tmp_path, honest, lying), tmp_path)
    assert said == [True, False]
    assert health == f"contradiction {lying.digest}"


async def test_it_is_found_once(tmp_path: Path) -> None:
    """The next mount knows, asks for nothing, and says so at once."""
    layer = bent_estargz(LIES["a setuid bit"][0])
    reference = image_of(tmp_path, layer)
    await filled(reference, tmp_path)
    prepared = await prepare(request(reference, tmp_path))
    async with open_image(prepared, ACCESS, catches_gaps=True) as image:
        await image.recall_trees()
        assert image.health.text == f"contradiction {layer.digest}"
        await image.prefetch("all")
        await compare_trees(image)
        assert not image.origin.is_open
        assert image.devices[0].gaps is None


async def test_what_verify_found_is_known_to_mounts(tmp_path: Path) -> None:
    layer = bent_estargz(LIES["a name more"][0])
    prepared = await prepare(request(image_of(tmp_path, layer), tmp_path))
    async with open_image(prepared, ACCESS) as image:
        assert (await verify_image(image, lambda size: None)).errors
    async with open_image(prepared, ACCESS) as image:
        await image.recall_trees()
        assert image.health.text == f"contradiction {layer.digest}"
        assert image.statistics()["layers"][0]["agrees"] is False


async def test_what_was_filled_before_is_caught_up_on(tmp_path: Path) -> None:
    """A few chunks were here already: what lies between them is fetched, once."""
    files = [file(f"f{number:03}", os.urandom(5000)) for number in range(100)]
    reference = image_of(tmp_path, estargz_layer(tar_bytes(files)))
    prepared = await prepare(request(reference, tmp_path))
    async with open_image(prepared, ACCESS) as image:
        await image.contents.read(1, 0, 5000)
    said, health, _ = await filled(reference, tmp_path)
    assert (said, health) == ([True], "ok")


async def test_what_would_be_fetched_twice_is_not(tmp_path: Path) -> None:
    files = [file(f"f{number:03}", os.urandom(40_000)) for number in range(100)]
    reference = image_of(tmp_path, estargz_layer(tar_bytes(files)))
    prepared = await prepare(request(reference, tmp_path))
    async with open_image(prepared, ACCESS) as image:
        await image.prefetch("all")
    async with open_image(prepared, ACCESS, catches_gaps=True) as image:
        await fill(image)
        assert [device.agrees for device in image.devices] == [None]
        assert not image.origin.is_open


@pytest.mark.parametrize("is_lying", [True, False])
async def test_forged_headers_prove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lying: bool
) -> None:
    """They come from whoever serves the blob, and no chunk's digest covers them."""
    bend = LIES["a setuid bit"][0]
    layer = bent_estargz(bend) if is_lying else estargz_layer(rich_tar(), chunk_size=4096)
    prepared = await prepare(request(image_of(tmp_path, layer), tmp_path))
    forged: list[Gaps] = []
    add = GapStore.add

    def forge(store: GapStore, gaps: Sequence[Gaps]) -> None:
        for each in gaps:
            for number, (at, data) in enumerate(each.parts):
                if b"bin/tool\0" in data and not forged:
                    each.parts[number] = (at, with_mode(data, b"bin/tool", 0o4755))
                    forged.append(each)
        add(store, gaps)

    monkeypatch.setattr(GapStore, "add", forge)
    async with open_image(prepared, ACCESS, catches_gaps=True) as image:
        await fill(image)
        assert forged
        assert [device.agrees for device in image.devices] == [None]
        assert image.health.text == "ok"
    found = load_agreement(
        Store(tmp_path / "cache"), parse_digest(prepared.image.layers[0].toc_digest), layer.digest
    )
    assert found is None


def with_mode(tar: bytes, name: bytes, mode: int) -> bytes:
    """Return headers of a tar, the mode of one of them changed."""
    at = tar.index(name + b"\0")
    header = bytearray(tar[at : at + 512])
    header[100:108] = b"%07o\0" % mode
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return tar[:at] + bytes(header) + tar[at + 512 :]


async def test_a_registry_that_goes_away_meanwhile(tmp_path: Path) -> None:
    layer = estargz_layer(rich_tar(), chunk_size=4096)
    make_layout(tmp_path / "image", [layer])
    with FakeRegistry(tmp_path / "image") as registry:
        prepared = await prepare(request(f"{registry.host}/app:latest", tmp_path))
        async with open_image(prepared, ACCESS, catches_gaps=True) as image:
            await image.prefetch("all")
            registry.faults.add(faults.status(404), path="/blobs/", times=None)
            await compare_trees(image)
            assert [device.agrees for device in image.devices] == [None]
            assert image.health.text == "ok"


# Catching gaps


def decode(
    blob: bytes, pieces: Sequence[Piece], step: int, gaps: list[Gaps] | None
) -> list[Decoded]:
    found: list[Decoded] = []
    decoder = RangeDecoder(pieces, pieces[0].blob_offset, gaps=gaps)
    for at in range(pieces[0].blob_offset, len(blob), step):
        decoder.feed(blob[at : at + step], found)
    decoder.finish(found)
    return found


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize(
    "name", ["estargz-ctr-remote-0.14.3/edge-minchunk", "zstdchunked-go-0.12/edge-chunk1000"]
)
async def test_catching_changes_nothing_of_what_is_decoded(name: str, step: int) -> None:
    from tests.formats.test_reference_layers import read_layer
    from tests.support.formats.estargz import pieces_of, reference_layers

    reference = next(each for each in reference_layers() if each.name == name)
    layer = read_layer(reference)
    pieces, _ = pieces_of(layer.toc, layer.payload_end)
    blob = reference.blob[: layer.payload_end]
    gaps: list[Gaps] = []
    with_gaps = {item.key: item.data for item in decode(blob, pieces, step, gaps)}
    assert with_gaps == {item.key: item.data for item in decode(blob, pieces, step, None)}
    assert {each.blob_offset for each in gaps} == {piece.blob_offset for piece in pieces}


def test_a_stream_with_much_between_is_given_up() -> None:
    plain = b"chunk" + bytes(MAX_GAPS + 1) + b"other"
    blob = gzip.compress(plain)

    def piece(key: int, at: int, data: bytes) -> Piece:
        return Piece(key, 0, len(blob), at, len(data), hashlib.sha256(data).digest())

    pieces = [piece(0, 0, b"chunk"), piece(1, len(plain) - 5, b"other")]
    gaps: list[Gaps] = []
    found = decode(blob, pieces, 10_000, gaps)
    assert [item.data for item in found] == [b"chunk", b"other"]
    assert gaps == []


def test_a_damaged_end_costs_no_chunk() -> None:
    blob = gzip.compress(b"chunk" + os.urandom(200_000))[:-100]
    pieces = [Piece(0, 0, len(blob), 0, 5, hashlib.sha256(b"chunk").digest())]
    for step in (100, 1 << 20):
        gaps: list[Gaps] = []
        (item,) = decode(blob, pieces, step, gaps)
        assert item.data == b"chunk"


def test_the_store_of_gaps(tmp_path: Path) -> None:
    store = GapStore(tmp_path)
    store.add([Gaps(number, [(10, b"%d" % number)]) for number in range(100)])
    store.add([Gaps(7, [(0, b"again")])])
    store.index()
    assert store.has(99)
    assert not store.has(100)
    assert store.find(42) == [(10, b"42")]
    assert store.find(7) == [(0, b"again")]
    assert list(tmp_path.iterdir()) == [], "nothing that could be left behind"
    store.close()
    assert not store.has(99)
    assert store.find(42) is None
    store.add([Gaps(1, [])])
    store.close()


def test_a_full_disk_ends_catching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = GapStore(tmp_path)
    monkeypatch.setattr("lazyfs.fetch.gap_store.MAX_SIZE", 100)
    store.add([Gaps(1, [(0, os.urandom(1000))])])
    store.index()
    assert not store.has(1)
    store.add([Gaps(2, [(0, b"x")])])
    store.index()
    assert not store.has(2)


def test_cutting() -> None:
    parts = [(0, b"abc"), (10, b"defg")]
    assert list(cut(parts, 0, 3)) == [b"abc"]
    assert list(cut(parts, 1, 2)) == [b"b"]
    assert list(cut(parts, 5, 5)) == []
    assert list(cut(parts, 11, None)) == [b"efg"]
    assert list(cut([], 7, None)) == []
    for start, end in ((2, 4), (4, 6), (9, None), (5, 3)):
        with pytest.raises(ValueError, match="between the chunks"):
            list(cut(parts, start, end))


# A mount


@needs_fuse[0]
@needs_fuse[1]
@needs_root[0]
@needs_root[1]
async def test_a_mount_says_so(tmp_path: Path) -> None:
    layer = bent_estargz(LIES["a setuid bit"][0])
    reference = image_of(tmp_path, layer)
    lazyfs, point = Lazyfs(tmp_path), tmp_path / "mnt"
    point.mkdir()
    try:
        lazyfs.mount(reference, point, "--no-service")
        wanted = f"contradiction {layer.digest}".encode()
        wait_until(lambda: os.getxattr(point, "user.lazyfs.health") == wanted)
        (status,) = lazyfs.status()
        assert status["health"] == wanted.decode()
        assert status["layers"][0]["agrees"] is False
    finally:
        force_unmount(point)
