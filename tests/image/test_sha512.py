"""Images whose digests are sha512: OCI image-spec, descriptor.md, registers it beside sha256."""

import gzip
import json
from pathlib import Path

import pytest
import trio

from lazyfs.convert.convert import ConvertOptions, convert_image
from lazyfs.convert.indexing import build_index_of
from lazyfs.digest import Digest, DigestMismatch, digest_of, parse_digest
from lazyfs.formats.writer import Target, WriterOptions
from lazyfs.image.layers.indexes import build_artifact
from lazyfs.image.layers.plain import PlainOptions
from lazyfs.image.open import open_image
from lazyfs.image.prepare import Request, prepare
from lazyfs.image.verify import verify_image
from lazyfs.oci.platforms import parse_platform
from lazyfs.registry.layout import ImageLayout
from lazyfs.registry.source import AccessOptions
from lazyfs.service.embed import embed_images
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.snapshots import Snapshots
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.check import check_store
from lazyfs.store.upkeep.evict import remove_unused
from tests.formats.test_layer_pass import FILES, tar_of, words
from tests.image.test_plain import expect
from tests.support.formats.images import (
    OCI_GZIP,
    Layer,
    blob_path,
    estargz_layer,
    host_platform,
    make_layout,
    read_blob,
    source_tar,
)
from tests.support.sandboxes.snapshots import ID
from tests.support.sandboxes.snapshots import image as document_image

pytestmark = pytest.mark.anyio

ACCESS = AccessOptions(connect_seconds=5, idle_seconds=5)
PLAIN = [*FILES, ("long", words(900_000, 8))]


def put(path: Path, data: bytes) -> str:
    digest = digest_of(data, "sha512")
    blob_path(path, digest).write_bytes(data)
    return str(digest)


def rename(path: Path) -> None:
    """Give everything in a layout digests of sha512: layers, uncompressed layers, documents."""
    (path / "blobs/sha512").mkdir()
    index = json.loads((path / "index.json").read_text())
    (top,) = index["manifests"]
    manifest = json.loads(read_blob(path, top["digest"]))
    config = json.loads(read_blob(path, manifest["config"]["digest"]))
    blobs = [read_blob(path, layer["digest"]) for layer in manifest["layers"]]
    for layer, blob in zip(manifest["layers"], blobs, strict=True):
        layer["digest"] = put(path, blob)
    tars = [gzip.decompress(blob) for blob in blobs]
    config["rootfs"]["diff_ids"] = [str(digest_of(tar, "sha512")) for tar in tars]
    for descriptor, document in ((manifest["config"], config), (top, manifest)):
        data = json.dumps(document).encode()
        descriptor["digest"], descriptor["size"] = put(path, data), len(data)
    (path / "index.json").write_text(json.dumps(index))
    for old in (path / "blobs/sha256").iterdir():
        old.unlink()


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An image of an eStargz layer and a plain one above it."""
    tar = tar_of(PLAIN)
    plain = Layer(gzip.compress(tar, mtime=0), OCI_GZIP, {}, digest_of(tar))
    make_layout(tmp_path / "layout", [estargz_layer(source_tar("real-gnu")), plain])
    rename(tmp_path / "layout")
    return tmp_path / "layout"


def request(layout: Path, folder: Path, pinned: Digest | None = None) -> Request:
    plain = PlainOptions(pinned=pinned)
    return Request(f"oci:{layout}", None, folder / "cache", ACCESS, plain=plain)


def forget_contents(folder: Path) -> None:
    for name in ("content", "presence"):
        for path in (folder / "cache/layers").glob(f"*/{name}"):
            path.unlink()


async def test_lazy_and_plain_layers(layout: Path, tmp_path: Path) -> None:
    prepared = await prepare(request(layout, tmp_path))
    assert [layer.verified_by for layer in prepared.image.layers] == ["toc", "pass"]
    assert {parse_digest(layer.digest).algorithm for layer in prepared.image.layers} == {"sha512"}
    async with open_image(prepared, ACCESS) as image:
        await expect(image, dict(PLAIN))
    forget_contents(tmp_path)  # by range, from restart points
    async with open_image(await prepare(request(layout, tmp_path)), ACCESS) as image:
        await expect(image, dict(PLAIN))
        assert (await verify_image(image, lambda size: None)).errors == []
    store = Store(tmp_path / "cache")
    remove_unused(store)
    assert check_store(store, repair=False, progress=lambda size: None).rotten == []
    again = Request(prepared.resolved, None, tmp_path / "cache", ACCESS)
    assert (await prepare(again)).requests == 0


async def test_by_an_index(layout: Path, tmp_path: Path) -> None:
    built = await build_index_of(request(layout, tmp_path / "one"))
    artifact = build_artifact(
        built.subject, [(each.descriptor, each.data) for each in built.layers]
    )
    for descriptor, data in artifact.blobs:
        blob_path(layout, descriptor.digest).write_bytes(data)
    blob_path(layout, artifact.digest).write_bytes(artifact.manifest)
    prepared = await prepare(request(layout, tmp_path / "two", artifact.digest))
    assert [layer.verified_by for layer in prepared.image.layers] == ["toc", "index"]
    async with open_image(prepared, ACCESS) as image:
        await expect(image, dict(PLAIN))


@pytest.mark.parametrize("target", list(Target))
async def test_converted(layout: Path, tmp_path: Path, target: Target) -> None:
    options = ConvertOptions(parse_platform(host_platform()), writer=WriterOptions(target=target))
    source, made = ImageLayout(str(layout)), ImageLayout(str(tmp_path / "made"), create=True)
    conversion = await convert_image(source, "latest", made, "latest", options)
    assert [layer.is_copied for layer in conversion.layers] == [target is Target.ESTARGZ, False]
    if target is Target.ZSTD_CHUNKED:  # the tar stays, and so what names it
        assert conversion.layers[1].diff_id == digest_of(tar_of(PLAIN), "sha512")
    prepared = await prepare(request(tmp_path / "made", tmp_path))
    assert [layer.verified_by for layer in prepared.image.layers] == ["toc", "toc"]
    async with open_image(prepared, ACCESS) as image:
        await expect(image, dict(PLAIN))
        assert (await verify_image(image, lambda size: None)).errors == []
    again = await convert_image(made, "latest", made, "again", options)
    assert again.manifest_digest == conversion.manifest_digest


def test_kept_beside_a_snapshot(layout: Path, tmp_path: Path) -> None:
    prepared = trio.run(prepare, request(layout, tmp_path))
    digest = prepared.image.manifest_digest
    named = document_image(
        manifest_digest=digest,
        resolved_ref=f"{prepared.resolved}",
        original_ref=f"oci:{layout}",
        config_digest=prepared.image.config_digest,
    )
    objects = DirectoryStore(tmp_path / "store")
    cache = tmp_path / "cache"
    kept = embed_images([named], Snapshots(objects), ID, cache_dir=cache, access=ACCESS)
    assert kept == {digest}
    beside = Request(f"oci:{objects.path}/base@{digest}", None, tmp_path / "other", ACCESS)
    assert trio.run(prepare, beside).image.manifest_digest == digest


@pytest.mark.parametrize("what", ["blob", "diffID"])
async def test_wrong_ones_are_refused(layout: Path, tmp_path: Path, what: str) -> None:
    index = json.loads((layout / "index.json").read_text())
    (top,) = index["manifests"]
    manifest = json.loads(blob_path(layout, top["digest"]).read_bytes())
    if what == "blob":
        path = blob_path(layout, manifest["layers"][1]["digest"])
        data = bytearray(path.read_bytes())
        data[4] ^= 1  # the time in gzip's header, which changes nothing else
        path.write_bytes(data)
    else:
        config = json.loads(blob_path(layout, manifest["config"]["digest"]).read_bytes())
        config["rootfs"]["diff_ids"][1] = str(digest_of(b"another", "sha512"))
        for descriptor, document in ((manifest["config"], config), (top, manifest)):
            data = json.dumps(document).encode()
            descriptor["digest"], descriptor["size"] = put(layout, data), len(data)
        (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(DigestMismatch, match="got sha512"):
        await prepare(request(layout, tmp_path))
