"""Whole images of every format: what is asked for, what vouches for it, and what is refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import trio

from lazyfs.convert.convert import ConvertOptions, convert_image
from lazyfs.convert.indexing import build_index_of
from lazyfs.digest import DigestMismatch, digest_of, parse_digest
from lazyfs.errors import FormatError, LazyfsError, VerificationFailed
from lazyfs.fetch.origins.whole import WrongBlob
from lazyfs.formats.tocs.claims import BadAnnotation
from lazyfs.formats.writer import Target, WriterOptions
from lazyfs.image.describe import DescribedLayer, describe
from lazyfs.image.diffid import DiffIdMismatch
from lazyfs.image.layers.plain import EncryptedLayer
from lazyfs.image.layers.tocs import Unverifiable, layer_claims
from lazyfs.image.open import OpenImage, open_image
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.image.verify import verify_image
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.platforms import parse_platform
from lazyfs.registry.layout import ImageLayout
from lazyfs.registry.source import AccessOptions
from lazyfs.rootfs.walk import walk_path
from lazyfs.store.content.unwritten import UnstoredContent
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.check import check_store
from tests.support.formats.images import (
    Layer,
    blob_path,
    estargz_layer,
    file,
    host_platform,
    layer_from_fixture,
    make_layout,
    plain_layer,
    tar_bytes,
    toc_layer_of,
)
from tests.support.formats.stargz import stargz_layer
from tests.support.formats.zstdchunked import contents, zstd_layer
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

ACCESS = AccessOptions(connect_seconds=5, idle_seconds=5)
FILES = {"a": [b"one chunk"], "b": [b"x" * 3000, 100_000, b"y" * 4000], "zeros": [70_000]}


def request(reference: str, tmp_path: Path, verify: str = "toc") -> Request:
    return Request(reference, None, tmp_path / "cache", ACCESS, verify)


def image_of(tmp_path: Path, *layers: Layer, tag: str = "latest", docker: bool = False) -> str:
    make_layout(tmp_path / "layout", layers, tag=tag, docker=docker)
    return f"oci:{tmp_path}/layout:{tag}"


async def read(image: OpenImage, path: str) -> bytes:
    extent = image.index.extent(walk_path(image.index, path.encode()))
    assert extent is not None
    return await image.contents.read(extent.device, extent.offset, extent.size)


async def files_of(prepared: Prepared, names: Iterator[str] | list[str]) -> dict[str, bytes]:
    async with open_image(prepared, ACCESS) as image:
        return {name: await read(image, name) for name in names}


async def described(wanted: Request) -> DescribedLayer:
    (layer,) = (await describe(wanted)).layers
    return layer


@pytest.mark.parametrize("dialect", ["stargz", "containers"])
async def test_contents_holes_and_all(tmp_path: Path, dialect: str) -> None:
    image = image_of(tmp_path, zstd_layer(FILES, dialect=dialect))
    prepared = await prepare(request(image, tmp_path))
    (record,) = prepared.image.layers
    assert (record.format, record.dialect) == ("zstd:chunked", dialect)
    assert await files_of(prepared, list(FILES)) == contents(FILES)
    # Again, from the store alone.
    assert (await prepare(request(image, tmp_path))).image == prepared.image
    assert (
        check_store(Store(tmp_path / "cache"), repair=False, progress=lambda n: None).rotten == []
    )


async def test_holes_are_not_asked_for(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", [zstd_layer(FILES)])
    with FakeRegistry(tmp_path / "layout") as registry:
        prepared = await prepare(request(f"{registry.host}/test/image:latest", tmp_path))
        # The manifest, the config, and from the TOC on the rest of the blob.
        assert registry.count("GET", "/blobs/") == 2
        registry.forget_requests()
        async with open_image(prepared, ACCESS) as image:
            assert await read(image, "zeros") == bytes(70_000)
            assert registry.count("GET") == 0
            assert await read(image, "b") == contents(FILES)["b"]
            statistics = image.statistics()["layers"][0]
        assert registry.count("GET", "/blobs/") == 1
    assert statistics["contentSize"] == sum(map(len, contents(FILES).values()))


async def test_without_room_for_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = await prepare(request(image_of(tmp_path, zstd_layer(FILES)), tmp_path))
    monkeypatch.setattr("lazyfs.image.open.open_content", UnstoredContent)
    assert await files_of(prepared, list(FILES)) == contents(FILES)


async def test_chunks_are_copied_between_formats(tmp_path: Path) -> None:
    data = b"the same in both" * 400
    gz = estargz_layer(tar_bytes([file("f", data)]))
    first = await prepare(request(image_of(tmp_path, gz, tag="gz"), tmp_path))
    async with open_image(first, ACCESS) as image:
        assert await read(image, "f") == data
    zstd = image_of(tmp_path, zstd_layer({"other/name": [data]}), tag="zstd")
    second = await prepare(request(zstd, tmp_path))
    async with open_image(second, ACCESS) as image:
        await trio.to_thread.run_sync(image.contents.twins.search)
        assert await read(image, "other/name") == data
        assert image.contents.statistics.copied_size == len(data)
        assert not image.origin.is_open


# What vouches


async def test_a_layer_that_claims_two_formats(tmp_path: Path) -> None:
    layer = layer_from_fixture("edge-default")
    claims = zstd_layer(FILES).annotations
    image = image_of(tmp_path, replace(layer, annotations={**layer.annotations, **claims}))
    with pytest.raises(BadAnnotation, match="annotations say zstd:chunked"):
        await prepare(request(image, tmp_path))
    found = await described(request(image, tmp_path))
    assert found.format == "estargz"
    assert "annotations" in (found.why or "")


async def test_a_bent_frame(tmp_path: Path) -> None:
    layer = zstd_layer(FILES)
    offset = int(next(v for k, v in layer.annotations.items() if "manifest-position" in k)[:3])
    image = image_of(tmp_path, layer)
    path = blob_path(tmp_path / "layout", layer.digest)
    at = layer.blob.index(b"\x28\xb5\x2f\xfd", layer.blob.index(b"\x50\x2a\x4d\x18")) + 20
    assert at > offset
    path.write_bytes(layer.blob[:at] + bytes([layer.blob[at] ^ 1]) + layer.blob[at + 1 :])
    with pytest.raises(DigestMismatch, match="compressed TOC"):
        await prepare(request(image, tmp_path))


async def test_without_a_digest_a_toc_vouches_for_nothing() -> None:
    layer = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest_of(b""), 100)
    with pytest.raises(Unverifiable, match="has no digest of its TOC") as caught:
        layer_claims(layer)
    assert "--verify=blob" in (caught.value.hint or "")
    assert layer_claims(layer, "blob").key is None


@pytest.mark.parametrize("name", ["estargz-go-0.12/real-gnu", "zstdchunked-go-0.12/real-gnu"])
async def test_the_blob_vouches_where_the_manifest_does_not(tmp_path: Path, name: str) -> None:
    layer = layer_from_fixture(name)
    image = image_of(tmp_path, replace(layer, annotations={}))
    prepared = await prepare(request(image, tmp_path, "blob"))
    (record,) = prepared.image.layers
    assert record.verified_by == "blob"
    stated = layer.annotations["containerd.io/snapshot/stargz/toc.digest"]
    assert record.toc_digest == stated
    async with open_image(prepared, ACCESS) as opened:
        assert (await verify_image(opened, lambda size: None)).errors == []
    # It has been verified: nothing need be read again.
    again = await prepare(request(image, tmp_path))
    assert again.image == prepared.image
    found = await described(request(image, tmp_path, "blob"))
    assert (found.verified_by, found.why) == (("blob",), None)


async def test_the_blob_must_be_what_the_manifest_says(tmp_path: Path) -> None:
    layer = layer_from_fixture("real-gnu")
    image = image_of(tmp_path, replace(layer, annotations={}))
    path = blob_path(tmp_path / "layout", layer.digest)
    path.write_bytes(layer.blob[:1000] + b"?" + layer.blob[1001:])  # far from its TOC
    with pytest.raises(DigestMismatch, match=f"blob: got sha256:.*, expected {layer.digest}"):
        await prepare(request(image, tmp_path, "blob"))
    assert not any((tmp_path / "cache" / "layers").iterdir())


async def test_a_tail_that_changes_under_the_pass(tmp_path: Path) -> None:
    """A registry that sends one tail first and the right blob afterwards."""
    layer = layer_from_fixture("real-gnu")
    other = layer_from_fixture("edge-default")
    make_layout(tmp_path / "layout", [replace(layer, annotations={})])
    path = blob_path(tmp_path / "layout", layer.digest)
    lie = layer.blob[: -len(other.blob[-51:])] + other.blob[-51:]
    path.write_bytes(lie)

    with FakeRegistry(tmp_path / "layout") as registry:
        wanted = request(f"{registry.host}/test/image:latest", tmp_path, "blob")
        with pytest.raises(LazyfsError):
            await prepare(wanted)


@pytest.mark.parametrize("chunk_size", [4 << 20, 1000])
async def test_legacy_stargz(tmp_path: Path, chunk_size: int) -> None:
    files = {"small": b"text", "empty": b"", "large": bytes(range(256)) * 40}
    layer = stargz_layer(files, chunk_size=chunk_size)
    image = image_of(tmp_path, layer)
    assert (await described(request(image, tmp_path))).format == "stargz"
    prepared = await prepare(request(image, tmp_path, "blob"))
    assert prepared.image.layers[0].format == "stargz"
    assert await files_of(prepared, ["small", "large"]) == {
        "small": files["small"], "large": files["large"],
    }  # fmt: skip


async def test_docker_documents_have_no_annotations(tmp_path: Path) -> None:
    image = image_of(tmp_path, layer_from_fixture("real-gnu"), docker=True)
    prepared = await prepare(request(image, tmp_path, "blob"))
    assert prepared.image.layers[0].verified_by == "blob"


async def test_a_table_of_another_compression_is_made_again(tmp_path: Path) -> None:
    """The same TOC promised for blobs that are not compressed alike: neither spoils the other."""
    files = {"a": [b"one chunk"]}
    zstd = zstd_layer(files, dialect="stargz", with_toc_digest=True)
    key = "containerd.io/snapshot/stargz/toc.digest"
    good = replace(zstd, annotations={key: zstd.annotations[key]})
    store = Store(tmp_path / "cache")
    prepared = await prepare(request(image_of(tmp_path, good), tmp_path))
    folder = store.layer_path(parse_digest(zstd.annotations[key]))
    table = bytearray((folder / "table").read_bytes())
    assert table[57] == 3
    # As if another blob with this TOC had been mounted, one of gzip members.
    table[57] = 0
    table[64 + 72] = 0
    table[-32:] = sha256(table[:-32]).digest()
    (folder / "table").write_bytes(table)
    other = image_of(tmp_path, replace(good, annotations={**good.annotations, "x": "y"}), tag="b")
    again = await prepare(request(other, tmp_path))
    assert again.image.layers[0].format == "zstd:chunked"
    assert await files_of(again, ["a"]) == {"a": b"one chunk"}
    assert prepared.image.layers[0].format == "zstd:chunked"


async def test_what_is_stored_must_have_all_digests_too(tmp_path: Path) -> None:
    """What is refused from the registry is refused from the store."""
    layer = zstd_layer({"a": [b"one chunk"]}, dialect="stargz", with_toc_digest=True)
    await prepare(request(image_of(tmp_path, layer), tmp_path))
    key = "io.containers.zstd-chunked.manifest-checksum"
    wrong = replace(layer, annotations={**layer.annotations, key: str(digest_of(b""))})
    with pytest.raises(DigestMismatch, match="compressed TOC"):
        await prepare(request(image_of(tmp_path, wrong, tag="b"), tmp_path))
    # A digest of the frame, stated as one of the JSON.
    swapped = {"containerd.io/snapshot/stargz/toc.digest": layer.annotations[key]}
    swapped |= {key: layer.annotations[key]}
    other = replace(layer, annotations=swapped)
    await prepare(
        request(
            image_of(
                tmp_path,
                replace(
                    layer,
                    annotations={
                        name: value
                        for name, value in layer.annotations.items()
                        if "toc.digest" not in name
                    },
                ),
                tag="c",
            ),
            tmp_path,
        )
    )
    with pytest.raises(DigestMismatch, match="TOC: got"):
        await prepare(request(image_of(tmp_path, other, tag="d"), tmp_path))


# TOCs in another image


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A layout with an image whose TOCs are in another one."""
    names = [f"estargz-ctr-remote-0.14.3/{each}-exttoc" for each in ("real-gnu", "edge", "empty")]
    layout = tmp_path / "layout"
    make_layout(layout, [layer_from_fixture(name) for name in names], tag="v1")
    make_layout(layout, [toc_layer_of(name) for name in reversed(names)], tag="v1-esgztoc")
    return layout


async def test_external_tocs(tmp_path: Path, external: Path) -> None:
    with FakeRegistry(external) as registry:
        prepared = await prepare(request(f"{registry.host}/test/image:v1", tmp_path))
        assert {layer.format for layer in prepared.image.layers} == {"estargz-external-toc"}
        assert registry.count("GET", "/manifests/v1-esgztoc") == 1
        registry.forget_requests()
        async with open_image(prepared, ACCESS) as image:
            assert (await verify_image(image, lambda size: None)).errors == []
        # By digest everything is here; and with a tag beside the digest everything can be had.
        digest = prepared.image.manifest_digest
        await prepare(request(f"{registry.host}/test/image@{digest}", tmp_path))
        assert registry.count("GET", "-esgztoc") == 0
        fresh = msgspec.structs.replace(
            request(f"{registry.host}/test/image:v1@{digest}", tmp_path),
            cache_dir=tmp_path / "other",
        )
        assert (await prepare(fresh)).image == prepared.image
        # Without a tag the TOCs cannot be found: the layers are fetched whole.
        whole = await prepare(
            msgspec.structs.replace(
                request(f"{registry.host}/test/image@{digest}", tmp_path),
                cache_dir=tmp_path / "third",
            )
        )
        assert {layer.verified_by for layer in whole.image.layers} == {"pass"}
        async with open_image(whole, ACCESS) as image:
            assert (await verify_image(image, lambda size: None)).errors == []


@pytest.mark.parametrize("is_there", [True, False])
async def test_external_tocs_of_other_layers(
    tmp_path: Path, external: Path, is_there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The image of TOCs is of other layers, or is not there: then layers are fetched whole."""
    name = "estargz-ctr-remote-0.14.3/big-exttoc"
    tag = "v1-esgztoc" if is_there else "v1"
    if not is_there:
        described = json.loads((external / "index.json").read_text())
        described["manifests"] = [
            each for each in described["manifests"] if "esgztoc" not in json.dumps(each)
        ]
        (external / "index.json").write_text(json.dumps(described))
    else:
        make_layout(external, [toc_layer_of(name)], tag=tag)
    prepared = await prepare(request(f"oci:{external}:v1", tmp_path))
    assert {layer.verified_by for layer in prepared.image.layers} == {"pass"}
    assert "fetching the whole layer" in caplog.text
    async with open_image(prepared, ACCESS) as image:
        assert (await verify_image(image, lambda size: None)).errors == []


async def test_an_external_toc_that_is_another(tmp_path: Path, external: Path) -> None:
    """Nothing vouches for the TOC image but the main one's manifest."""
    key = "containerd.io/snapshot/stargz/layer.digest"
    layer = layer_from_fixture("estargz-ctr-remote-0.14.3/edge-exttoc")
    wrong = toc_layer_of("estargz-ctr-remote-0.14.3/big-exttoc")
    make_layout(external, [layer], tag="v2")
    make_layout(external, [replace(wrong, annotations={key: str(layer.digest)})], tag="v2-esgztoc")
    with pytest.raises(DigestMismatch, match="TOC: got sha256"):
        await prepare(request(f"oci:{external}:v2", tmp_path))


async def test_no_toc_image(tmp_path: Path) -> None:
    layer = layer_from_fixture("estargz-ctr-remote-0.14.3/edge-exttoc")
    wanted = request(image_of(tmp_path, layer), tmp_path)
    shown = await described(wanted)
    assert "latest-esgztoc" in str(shown.why)
    assert shown.is_plain, "a mount fetches it whole"
    await prepare(wanted)
    shown = await described(wanted)
    assert (shown.why, shown.verified_by) == (None, ("pass",))
    unclaimed = image_of(tmp_path, replace(layer, annotations={}), tag="b")
    with pytest.raises(Unverifiable, match="has no digest of its external TOC"):
        await prepare(request(unclaimed, tmp_path, "blob"))


# diffIDs


async def test_a_diff_id_is_checked(tmp_path: Path) -> None:
    layer = zstd_layer(FILES)
    prepared = await prepare(request(image_of(tmp_path, layer), tmp_path))
    async with open_image(prepared, ACCESS) as image:
        found = await verify_image(image, lambda size: None)
    assert (found.errors, found.diff_ids) == ([], [layer.diff_id])


async def test_a_diff_id_that_is_wrong(tmp_path: Path) -> None:
    layer = replace(zstd_layer(FILES), diff_id=digest_of(b"other"))
    prepared = await prepare(request(image_of(tmp_path, layer), tmp_path))
    async with open_image(prepared, ACCESS) as image:
        found = await verify_image(image, lambda size: None)
    (error,) = found.errors
    assert isinstance(error, DiffIdMismatch)
    assert str(layer.diff_id) in error.message
    assert isinstance(error, VerificationFailed)


@pytest.mark.parametrize("split", [b"not zstd", b"\x28\xb5\x2f\xfd" + bytes(20)])
async def test_a_tar_split_that_is_none(tmp_path: Path, split: bytes) -> None:
    prepared = await prepare(
        request(image_of(tmp_path, zstd_layer(FILES, tar_split=split)), tmp_path)
    )
    async with open_image(prepared, ACCESS) as image:
        found = await verify_image(image, lambda size: None)
        assert await read(image, "a") == b"one chunk"
    (error,) = found.errors
    assert isinstance(error, FormatError)
    assert "tar-split" in error.message


async def test_a_tar_split_that_was_bent(tmp_path: Path) -> None:
    layer = zstd_layer(FILES)
    image = image_of(tmp_path, layer)
    start = layer.blob.rindex(b"\x28\xb5\x2f\xfd") + 30
    path = blob_path(tmp_path / "layout", layer.digest)
    path.write_bytes(layer.blob[:start] + b"?" + layer.blob[start + 1 :])
    prepared = await prepare(request(image, tmp_path))
    async with open_image(prepared, ACCESS) as opened:
        whole, error = (await verify_image(opened, lambda size: None)).errors
    assert isinstance(whole, WrongBlob)
    assert isinstance(error, DigestMismatch)
    assert "tar-split: got sha256" in error.message


async def test_a_record_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    prepared = await prepare(request(image_of(tmp_path, layer_from_fixture("empty")), tmp_path))
    folder = Store(tmp_path / "cache").image_path(parse_digest(prepared.image.manifest_digest))
    record = json.loads((folder / "record.json").read_text())
    for layer in record["layers"]:
        del layer["dialect"], layer["verified_by"]
    (folder / "record.json").write_text(json.dumps(record))
    assert (await prepare(request(f"oci:{tmp_path}/layout:latest", tmp_path))).image == (
        prepared.image
    )


async def test_an_encrypted_layer_is_refused_before_anything_of_it_is_fetched(
    tmp_path: Path,
) -> None:
    good = plain_layer(tar_bytes([file("a", b"a")]))
    secret = replace(good, blob=b"ciphertext", media_type=f"{good.media_type}+encrypted")
    make_layout(tmp_path / "layout", [good, secret])
    with FakeRegistry(tmp_path / "layout") as registry:
        wanted = request(f"{registry.host}/test/image:latest", tmp_path)
        for deed in (prepare(wanted), build_index_of(wanted)):
            with pytest.raises(EncryptedLayer, match=f"layer {secret.digest} is encrypted"):
                await deed
        layers = (await describe(wanted)).layers
        assert [layer.is_plain for layer in layers] == [True, False]
        assert "is encrypted" in str(layers[1].why)
        assert not registry.count("GET", str(secret.digest))
        target = ImageLayout(str(tmp_path / "made"), create=True)
        options = ConvertOptions(parse_platform(host_platform()))
        with pytest.raises(EncryptedLayer):
            await convert_image(
                ImageLayout(str(tmp_path / "layout")), "latest", target, "x", options
            )
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("target", list(Target))
async def test_a_layer_of_no_bytes(tmp_path: Path, target: Target) -> None:
    image = image_of(tmp_path, plain_layer(b"", compression="none"))
    prepared = await prepare(request(image, tmp_path))
    assert await files_of(prepared, []) == {}
    made = ImageLayout(str(tmp_path / "made"), create=True)
    options = ConvertOptions(parse_platform(host_platform()), writer=WriterOptions(target=target))
    await convert_image(ImageLayout(str(tmp_path / "layout")), "latest", made, "latest", options)
    again = await prepare(request(f"oci:{tmp_path}/made", tmp_path))
    assert await files_of(again, []) == {}
