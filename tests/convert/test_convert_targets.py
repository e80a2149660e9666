"""Converting to zstd:chunked, keeping diffIDs, and what else a target decides."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from lazyfs.convert.convert import Conversion, ConvertOptions, convert_image
from lazyfs.convert.convert_index import ConvertedIndex, convert_index
from lazyfs.digest import Digest, DigestMismatch, digest_of, parse_digest
from lazyfs.errors import UsageError
from lazyfs.formats.layers import Format, LayerToc, find_layer_toc, read_layer_toc
from lazyfs.formats.tars.verbatim import CannotKeep
from lazyfs.formats.tocs.claims import claims_of
from lazyfs.formats.writer import Target, WriterOptions
from lazyfs.image.layers.toc_image import LAYER_DIGEST_KEY
from lazyfs.image.profiled import NoProfile
from lazyfs.oci.platforms import parse_platform
from lazyfs.registry.layout import ImageLayout
from tests.support.formats.images import (
    OCI_CONFIG,
    OCI_MANIFEST,
    OCI_ZSTD,
    directory,
    estargz_layer,
    file,
    host_platform,
    layer_from_fixture,
    make_layout,
    plain_layer,
    put_blob,
    read_blob,
    tagged,
    tar_bytes,
)

pytestmark = pytest.mark.anyio

TAR = tar_bytes([directory("d"), file("d/a", b"1" * 9000), file("d/b", b"2")])
TWICE = tar_bytes([file("a", b"1"), file("a", b"2")])
ZSTD = WriterOptions(target=Target.ZSTD_CHUNKED)


async def convert(folder: Path, name: str = "made", **changes: object) -> Conversion:
    options: dict = {"platform": parse_platform(host_platform()), "writer": ZSTD, **changes}
    return await convert_image(
        ImageLayout(str(folder / "source")),
        "latest",
        ImageLayout(str(folder / name), create=True),
        "latest",
        ConvertOptions(**options),
    )


def toc_of(folder: Path, conversion: Conversion, number: int = 0) -> LayerToc:
    """Read a layer of the result as a mount does."""
    layer = conversion.layers[number].result
    blob = read_blob(folder / "made", layer.digest)
    claims = claims_of(layer.annotations)
    assert claims.key == conversion.layers[number].toc_digest
    place = find_layer_toc(blob[-4096:], len(blob), claims)
    return read_layer_toc(blob[place.start : place.end], place, claims)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_plain_layers_become_zstd_chunked(tmp_path: Path, compression: str):
    layers = [plain_layer(tar, compression=compression) for tar in (TAR, TWICE)]
    make_layout(tmp_path / "source", layers)
    conversion = await convert(tmp_path)
    kept, arranged = conversion.layers
    assert kept.result.media_type == arranged.result.media_type == OCI_ZSTD
    assert kept.diff_id == digest_of(TAR), "a tar that can stay does"
    assert arranged.diff_id != digest_of(TWICE)
    found = toc_of(tmp_path, conversion)
    assert found.format is Format.ZSTD_CONTAINERS
    assert [entry.path for entry in found.toc.entries] == [b"d", b"d/a", b"d/b"]
    (only,) = toc_of(tmp_path, conversion, 1).toc.entries
    assert only.digest == digest_of(b"2").raw


async def test_the_same_source_gives_the_same_image_with_any_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_layout(tmp_path / "source", [plain_layer(TAR), plain_layer(TWICE)])
    digests = set()
    for count in (1, 2, 16):
        monkeypatch.setattr("os.cpu_count", lambda count=count: count)
        digests.add((await convert(tmp_path, f"made{count}")).manifest_digest)
    assert len(digests) == 1


async def test_what_is_zstd_chunked_already_is_copied(tmp_path: Path):
    layers = [
        layer_from_fixture("zstdchunked-skopeo-1.18.0/edge-nodup"),
        layer_from_fixture("zstdchunked-go-0.12/edge-default"),  # another dialect
        estargz_layer(TAR),
    ]
    make_layout(tmp_path / "source", layers)
    conversion = await convert(tmp_path)
    assert [layer.is_copied for layer in conversion.layers] == [True, False, False]
    assert conversion.layers[0].result.annotations == layers[0].annotations
    assert set(conversion.layers[1].result.annotations) == set(layers[0].annotations) | {
        "io.github.containers.zstd-chunked.tarsplit-checksum"
    }
    names = [entry.path for entry in toc_of(tmp_path, conversion, 2).toc.entries]
    assert names == [b"d", b"d/a", b"d/b"], "no landmark, no table of contents"
    (tmp_path / "made").rename(tmp_path / "again-source")
    (tmp_path / "source").rename(tmp_path / "old")
    (tmp_path / "again-source").rename(tmp_path / "source")
    assert (await convert(tmp_path)).manifest_digest == conversion.manifest_digest


async def test_diff_ids_are_kept_or_the_layer_is_refused_by_name(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(TAR)])
    conversion = await convert(tmp_path, keeps_diff_ids=True)
    assert conversion.layers[0].diff_id == digest_of(TAR)
    make_layout(tmp_path / "other" / "source", [plain_layer(TAR), plain_layer(TWICE)])
    with pytest.raises(CannotKeep, match=r"layer sha256:.*b'a' is in the tar twice"):
        await convert(tmp_path / "other", keeps_diff_ids=True)
    assert not (tmp_path / "other" / "made").exists()


async def test_a_long_tail_cannot_stay(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(TAR + bytes(9 << 20))])
    with pytest.raises(CannotKeep, match="what follows the last file: got 94"):
        await convert(tmp_path, keeps_diff_ids=True)
    assert (await convert(tmp_path)).layers[0].diff_id != digest_of(TAR)


@pytest.mark.parametrize(
    "changes",
    [
        {"prioritized": ("/d/a",)},
        {"writer": WriterOptions()},
    ],
)
def test_options_that_change_the_tar_do_not_go_with_keeping_it(changes: dict):
    with pytest.raises(UsageError, match=r"--keep-diff-id|eStargz can keep diffIDs only"):
        ConvertOptions(
            **{
                "platform": parse_platform(host_platform()),
                "writer": ZSTD,
                "keeps_diff_ids": True,
                **changes,
            }
        )


async def test_prioritised_files_go_first_in_zstd_too(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(TAR)])
    conversion = await convert(tmp_path, prioritized=("/d/b",))
    names = [entry.path for entry in toc_of(tmp_path, conversion).toc.entries]
    assert names == [b"d", b"d/b", b".prefetch.landmark", b"d/a"]


async def test_a_layer_that_lies_about_its_diff_id_is_refused(tmp_path: Path):
    layer = plain_layer(TAR)
    lying = type(layer)(layer.blob, layer.media_type, {}, Digest("sha256", "0" * 64))
    make_layout(tmp_path / "source", [lying])
    with pytest.raises(DigestMismatch, match="expected diffID"):
        await convert(tmp_path)


# Tables of contents elsewhere


async def test_tocs_go_into_an_image_beside(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(TAR), plain_layer(TWICE)])
    await convert(tmp_path, writer=WriterOptions(is_toc_external=True))
    made = ImageLayout(str(tmp_path / "made"))
    image = await manifest_of(made, "latest")
    tocs = await manifest_of(made, "latest-esgztoc")
    assert [each["annotations"][LAYER_DIGEST_KEY] for each in tocs["layers"]] == [
        each["digest"] for each in image["layers"]
    ]
    for layer, toc in zip(image["layers"], tocs["layers"], strict=True):
        blob = read_blob(tmp_path / "made", layer["digest"])
        assert blob.endswith(b"STARGZEXTERNALTOC" + bytes.fromhex("010000ffff") + bytes(8))
        claims = claims_of(layer["annotations"])
        place = find_layer_toc(blob[-4096:], len(blob), claims)
        assert place.format is Format.EXTERNAL_TOC
        member = read_blob(tmp_path / "made", toc["digest"])
        assert read_layer_toc(member, place, claims).toc.entries
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob))) as archive:
            assert "stargz.index.json" not in archive.getnames()


async def test_estargz_keeps_its_diff_id_with_the_toc_elsewhere(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(TAR)])
    writer = WriterOptions(chunk_size=4096, is_toc_external=True)
    conversion = await convert(tmp_path, writer=writer, keeps_diff_ids=True)
    (layer,) = conversion.layers
    assert layer.diff_id == digest_of(TAR)
    blob = read_blob(tmp_path / "made", layer.result.digest)
    assert gzip.decompress(blob) == TAR


async def read(folder: Path) -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(
        [sys.executable, "-m", "lazyfs", "cat", f"oci:{folder}/made:latest", "/d/b"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={**os.environ, "LAZYFS_CACHE_DIR": str(folder / "cache")},
    )


async def test_the_reader_finds_it(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(TAR)])
    await convert(tmp_path, writer=WriterOptions(is_toc_external=True), keeps_diff_ids=True)
    with trio.fail_after(60):
        done = await read(tmp_path)
    assert (done.returncode, done.stdout) == (0, b"2"), done.stderr


# Whole indexes


async def manifest_of(layout: ImageLayout, name: str | Digest) -> dict:
    return json.loads((await layout.fetch_manifest(name)).data)


async def convert_all(folder: Path, name: str = "made", **changes: object) -> ConvertedIndex:
    options: dict = {"platform": parse_platform(host_platform()), "writer": ZSTD, **changes}
    return await convert_index(
        ImageLayout(str(folder / "source")),
        "latest",
        ImageLayout(str(folder / name), create=True),
        "latest",
        ConvertOptions(**options),
    )


def make_index(folder: Path) -> None:
    make_layout(
        folder / "source",
        [plain_layer(TAR)],
        platform="linux/s390x",
        others={"linux/arm64/v8": [plain_layer(TWICE)]},
    )


def attest(folder: Path) -> dict:
    """Add an attestation to the index, as BuildKit does; return its descriptor."""
    config = put_blob(folder / "source", b"{}")
    statement = put_blob(folder / "source", b"signed")
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": str(config), "size": 2},
            "layers": [
                {"mediaType": "application/vnd.in-toto+json", "digest": str(statement), "size": 6}
            ],
        }
    ).encode()
    descriptor = {
        "mediaType": OCI_MANIFEST,
        "digest": str(put_blob(folder / "source", manifest)),
        "size": len(manifest),
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        "platform": {"os": "unknown", "architecture": "unknown"},
    }
    change_index(folder, lambda index: index["manifests"].append(descriptor))
    return descriptor


def change_index(folder: Path, change: Callable[[dict], object]) -> None:
    """Replace the index that is tagged by a changed one."""
    index = json.loads(read_blob(folder / "source", tagged(folder / "source")["digest"]))
    change(index)
    data = json.dumps(index).encode()
    digest = put_blob(folder / "source", data)
    path = folder / "source" / "index.json"
    listed = json.loads(path.read_text())
    listed["manifests"][0] |= {"digest": str(digest), "size": len(data)}
    path.write_text(json.dumps(listed))


async def test_all_platforms_are_converted_and_the_rest_is_kept(tmp_path: Path):
    make_index(tmp_path)
    attestation = attest(tmp_path)
    converted = await convert_all(tmp_path)
    assert {str(each.platform) for each in converted.images} == {"linux/s390x", "linux/arm64"}
    made = ImageLayout(str(tmp_path / "made"))
    index = await manifest_of(made, "latest")
    assert index["mediaType"].endswith("index.v1+json")
    *images, kept = index["manifests"]
    assert kept == attestation
    assert [each["platform"]["architecture"] for each in images] == ["s390x", "arm64"]
    for each, image in zip(images, converted.images, strict=True):
        assert each["digest"] == str(image.manifest_digest)
        manifest = await manifest_of(made, image.manifest_digest)
        assert manifest["layers"][0]["mediaType"] == OCI_ZSTD
    copied = await manifest_of(made, parse_digest(kept["digest"]))
    assert read_blob(tmp_path / "made", copied["layers"][0]["digest"]) == b"signed"
    assert (await convert_all(tmp_path, "again")).manifest_digest == converted.manifest_digest


async def test_tocs_of_all_platforms_are_in_one_image(tmp_path: Path):
    make_index(tmp_path)
    converted = await convert_all(tmp_path, writer=WriterOptions(is_toc_external=True))
    tocs = await manifest_of(ImageLayout(str(tmp_path / "made")), "latest-esgztoc")
    assert {each["annotations"][LAYER_DIGEST_KEY] for each in tocs["layers"]} == {
        str(image.layers[0].result.digest) for image in converted.images
    }


async def test_a_single_image_is_converted_as_one(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(TAR)])
    converted = await convert_all(tmp_path)
    assert converted.manifest_digest == (await convert(tmp_path, "one")).manifest_digest
    assert len(converted.images) == 1


async def test_a_profile_of_one_platform_is_enough_and_of_none_is_not(tmp_path: Path):
    make_index(tmp_path)
    index = json.loads(read_blob(tmp_path / "source", tagged(tmp_path / "source")["digest"]))
    known = index["manifests"][0]["digest"]

    def advise(digest: Digest) -> tuple[str, ...]:
        if str(digest) != known:
            raise NoProfile("none")
        return ("/d/b",)

    converted = await convert_all(tmp_path, advise=advise)
    blob = read_blob(tmp_path / "made", converted.images[0].layers[0].result.digest)
    claims = claims_of(converted.images[0].layers[0].result.annotations)
    place = find_layer_toc(blob[-4096:], len(blob), claims)
    entries = read_layer_toc(blob[place.start : place.end], place, claims).toc.entries
    assert [entry.path for entry in entries][:3] == [b"d", b"d/b", b".prefetch.landmark"]
    known = "none"
    with pytest.raises(NoProfile):
        await convert_all(tmp_path, "other", advise=advise)
