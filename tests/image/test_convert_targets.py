"""Converting to zstd:chunked, keeping diffIDs, and what else a target decides."""

from pathlib import Path

import pytest

from lazyfs.digest import Digest, DigestMismatch, digest_of
from lazyfs.errors import UsageError
from lazyfs.formats.claims import claims_of
from lazyfs.formats.layers import Format, LayerToc, find_layer_toc, read_layer_toc
from lazyfs.formats.verbatim import CannotKeep
from lazyfs.formats.writer import Target, WriterOptions
from lazyfs.image.convert import Conversion, ConvertOptions, convert_image
from lazyfs.oci.platforms import parse_platform
from lazyfs.registry.layout import ImageLayout
from tests.support.images import (
    OCI_ZSTD,
    directory,
    estargz_layer,
    file,
    host_platform,
    layer_from_fixture,
    make_layout,
    plain_layer,
    read_blob,
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
    with pytest.raises(CannotKeep, match=r"layer sha256:.*b'a': got it twice"):
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
    with pytest.raises(UsageError, match="expected"):
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
