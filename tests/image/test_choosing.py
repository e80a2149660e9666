"""Indexes in indexes, entries without a platform, and images that come alone for another one."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from lazyfs.convert.convert import ConvertOptions, convert_image
from lazyfs.convert.convert_index import convert_index
from lazyfs.errors import FormatError, LazyfsError
from lazyfs.image.describe import describe
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.image.resolve import DEPTH, platforms_of
from lazyfs.oci.platforms import NoPlatform, Platform
from lazyfs.registry.layout import ImageLayout
from lazyfs.registry.source import AccessOptions
from tests.support.formats.images import (
    OCI_INDEX,
    blob_path,
    estargz_layer,
    file,
    host_platform,
    make_layout,
    put_blob,
    read_blob,
    tagged,
    tar_bytes,
)

pytestmark = pytest.mark.anyio

FOREIGN = "linux/s390x" if host_platform() != "linux/s390x" else "linux/amd64"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with an image for this machine, ``latest``, and one for another, ``foreign``."""
    path = tmp_path / "layout"
    for tag, platform in (("latest", host_platform()), ("foreign", FOREIGN)):
        layer = estargz_layer(tar_bytes([file("name", tag.encode())]))
        make_layout(path, [layer], tag=tag, platform=platform)
    return path


def put_index(layout: Path, entries: Sequence[dict], tag: str) -> dict:
    """Add an index to the layout, under *tag*; return its descriptor."""
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    digest = put_blob(layout, data)
    descriptor = {"mediaType": OCI_INDEX, "digest": str(digest), "size": len(data)}
    top = json.loads((layout / "index.json").read_text())
    name = {"annotations": {"org.opencontainers.image.ref.name": tag}}
    top["manifests"].append(descriptor | name)
    (layout / "index.json").write_text(json.dumps(top))
    return descriptor


def image(layout: Path, tag: str, platform: str | None = None) -> dict:
    """Return the descriptor of an image, of *platform* where that is said."""
    descriptor = {key: tagged(layout, tag)[key] for key in ("mediaType", "digest", "size")}
    if platform is None:
        return descriptor
    os, architecture = platform.split("/")[:2]
    return descriptor | {"platform": {"os": os, "architecture": architecture}}


async def prepared(layout: Path, tag: str, platform: str | None = None) -> Prepared:
    request = Request(f"oci:{layout}:{tag}", platform, layout.parent / "cache", AccessOptions())
    return await prepare(request)


async def test_an_entry_without_a_platform_is_taken_where_none_matches(layout: Path) -> None:
    put_index(layout, [image(layout, "foreign", FOREIGN), image(layout, "latest")], "some")
    found = await prepared(layout, "some")
    assert found.image.manifest_digest == tagged(layout)["digest"]


async def test_of_entries_without_a_platform_the_one_for_this_machine_is_taken(
    layout: Path,
) -> None:
    """Their configs say what they are for."""
    put_index(layout, [image(layout, "foreign"), image(layout, "latest")], "silent")
    found = await prepared(layout, "silent")
    assert found.image.manifest_digest == tagged(layout)["digest"]
    assert (await prepared(layout, "silent", FOREIGN)).image.platform == FOREIGN


async def test_an_entry_without_a_platform_for_another_one_is_mounted_with_a_warning(
    layout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_index(layout, [image(layout, "foreign")], "silent")
    with caplog.at_level(logging.WARNING):
        assert (await prepared(layout, "silent")).image.platform == FOREIGN
    assert f"is for {FOREIGN}; this machine is {host_platform()}" in caplog.text
    with pytest.raises(NoPlatform, match="only, not for"):
        await prepared(layout, "silent", host_platform())


@pytest.mark.parametrize(
    "change",
    [
        {"artifactType": "application/spdx+json"},
        {"config": {"mediaType": "application/vnd.oci.empty.v1+json"}},
        {"subject": True},
    ],
)
async def test_an_artifact_that_its_entry_does_not_tell_is_passed_over(
    layout: Path, change: dict
) -> None:
    manifest = json.loads(read_blob(layout, tagged(layout)["digest"]))
    manifest["annotations"] = {"is": "another one"}
    if "config" in change:
        change = {"config": manifest["config"] | change["config"]}
    if "subject" in change:
        change = {"subject": image(layout, "foreign")}
    data = json.dumps(manifest | change).encode()
    artifact = {"mediaType": manifest["mediaType"], "size": len(data)}
    artifact["digest"] = str(put_blob(layout, data))
    put_index(layout, [artifact, image(layout, "latest")], "some")
    found = await prepared(layout, "some")
    assert found.image.manifest_digest == tagged(layout)["digest"]


async def test_what_an_index_is_for_counts_for_entries_that_say_nothing(layout: Path) -> None:
    """As where data for one platform comes with a config that names none, or another."""
    inner = put_index(layout, [image(layout, "foreign")], "inner")
    os, architecture = host_platform().split("/")[:2]
    stated = inner | {"platform": {"os": os, "architecture": architecture}}
    silent = image(layout, "latest")
    put_index(layout, [silent, stated], "outer")
    found = await prepared(layout, "outer")
    assert found.image.manifest_digest == tagged(layout, "foreign")["digest"]


async def test_an_index_that_is_nested_is_told_of_where_nothing_fits(layout: Path) -> None:
    inner = put_index(layout, [image(layout, "foreign", FOREIGN)], "inner")
    put_index(layout, [inner], "outer")
    with pytest.raises(NoPlatform, match=f"the index has {FOREIGN}"):
        await prepared(layout, "outer")


async def test_all_platforms_are_those_that_would_be_taken(layout: Path) -> None:
    wanting = image(layout, "latest", host_platform())
    wanting["platform"] = wanting["platform"] | {"os.features": ["erofs"]}
    os, architecture = FOREIGN.split("/")
    inner = put_index(layout, [image(layout, "latest")], "inner")
    nested = inner | {"platform": {"os": os, "architecture": architecture}}
    put_index(layout, [wanting, nested, image(layout, "foreign", host_platform())], "outer")
    source = ImageLayout(str(layout))
    found = await platforms_of(source.fetch_manifest, await source.fetch_manifest("outer"))
    assert {platform: str(digest) for platform, digest in found.items()} == {
        FOREIGN: tagged(layout, "latest")["digest"],
        host_platform(): tagged(layout, "foreign")["digest"],
    }


async def test_converting_takes_the_entry_that_a_mount_takes(layout: Path, tmp_path: Path) -> None:
    put_index(layout, [image(layout, "foreign"), image(layout, "latest")], "silent")
    options = ConvertOptions(Platform(*host_platform().split("/")))
    target = ImageLayout(str(tmp_path / "target"), create=True)
    made = await convert_image(ImageLayout(str(layout)), "silent", target, "made", options)
    assert str(made.source_digest) == tagged(layout)["digest"]


async def test_an_index_in_an_index(layout: Path) -> None:
    foreign = put_index(layout, [image(layout, "foreign", FOREIGN)], "a")
    inner = put_index(layout, [image(layout, "latest", host_platform())], "b")
    outer = put_index(layout, [foreign, put_index(layout, [inner], "c")], "d")
    found = await prepared(layout, "d")
    assert found.image.manifest_digest == tagged(layout)["digest"]
    assert found.index_digest == outer["digest"]


async def test_indexes_that_are_nested_too_deep_are_refused(layout: Path) -> None:
    descriptor = image(layout, "latest", host_platform())
    for depth in range(DEPTH + 1):
        descriptor = put_index(layout, [descriptor], f"deep{depth}")
    assert (await prepared(layout, f"deep{DEPTH - 1}")).image.layers
    with pytest.raises(FormatError, match="nested more than"):
        await prepared(layout, f"deep{DEPTH}")


async def test_indexes_that_lead_nowhere_are_bounded(layout: Path) -> None:
    """Every one of them has two more, none an image for this machine."""
    pair = [image(layout, "foreign", FOREIGN)] * 2
    for depth in range(DEPTH):
        one = put_index(layout, [*pair, image(layout, "foreign", FOREIGN)], f"x{depth}")
        pair = [one] * 8
    put_index(layout, pair, "wide")
    with pytest.raises(LazyfsError, match=r"looked into|nested more than"):
        await prepared(layout, "wide")


async def test_nothing_for_this_machine_says_what_there_is(layout: Path) -> None:
    put_index(layout, [image(layout, "foreign", FOREIGN)], "some")
    with pytest.raises(NoPlatform, match=FOREIGN):
        await prepared(layout, "some")
    assert (await prepared(layout, "some", FOREIGN)).image.platform == FOREIGN


async def test_an_image_alone_for_another_platform_is_mounted_with_a_warning(
    layout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert (await prepared(layout, "foreign")).image.platform == FOREIGN
    assert f"is for {FOREIGN}; this machine is {host_platform()}" in caplog.text


@pytest.mark.parametrize("command", ["prepare", "describe"])
async def test_and_refused_where_the_platform_was_asked_for(layout: Path, command: str) -> None:
    name, where = f"oci:{layout}:foreign", layout.parent / "cache"
    request = Request(name, host_platform(), where, AccessOptions())
    do = {"prepare": prepare, "describe": describe}[command]
    with pytest.raises(NoPlatform, match="only, not for"):
        await do(request)


async def test_converting_an_index_converts_those_in_it(layout: Path, tmp_path: Path) -> None:
    inner = put_index(layout, [image(layout, "foreign", FOREIGN)], "inner")
    put_index(layout, [inner, image(layout, "latest", host_platform())], "outer")
    target = tmp_path / "target"
    options = ConvertOptions(Platform("linux", "amd64"))
    made = await convert_index(
        ImageLayout(str(layout)), "outer", ImageLayout(str(target), create=True), "all", options
    )
    assert {str(each.platform) for each in made.images} == {host_platform(), FOREIGN}
    outer = json.loads(read_blob(target, made.manifest_digest))
    nested = json.loads(read_blob(target, outer["manifests"][0]["digest"]))
    (entry,) = nested["manifests"]
    assert blob_path(target, entry["digest"]).exists()
    assert entry["platform"]["architecture"] == FOREIGN.split("/")[1]
