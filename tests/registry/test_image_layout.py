"""Image layouts on disk: finding images in them, and what a layout must not be able to do."""

import json
import os
from pathlib import Path

import pytest
import trio

from lazyfs.digest import BadDigest, Digest, DigestMismatch, digest_of, parse_digest
from lazyfs.errors import LazyfsError, NotFound
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import OCI_INDEX, OCI_MANIFEST
from lazyfs.registry.config.errors import SizeMismatch, TooLarge
from lazyfs.registry.layout import ImageLayout, LayoutUnreadable, NoLayout, NotInLayout
from lazyfs.registry.layout_files import (
    BadLayout,
    LayoutUnwritable,
    check_version,
    decode_index,
)
from tests.support.formats import images
from tests.support.registries.clients import described, read_range

pytestmark = pytest.mark.anyio

LAYER = images.plain_layer(images.tar_bytes([images.file("a", b"content" * 100)]))
DATA = bytes(range(256)) * 10


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    images.make_layout(path, [LAYER], tag="v1")
    return path


async def fetch(path: Path, reference: str | Digest) -> Digest:
    return (await ImageLayout(str(path)).fetch_manifest(reference)).digest


# Finding.


async def test_by_tag_by_digest_and_as_the_only_image(layout: Path) -> None:
    digest = parse_digest(images.tagged(layout, "v1")["digest"])
    for reference in ("v1", digest, ""):
        document = await ImageLayout(str(layout)).fetch_manifest(reference)
        assert (document.digest, document.media_type) == (digest, OCI_MANIFEST)
        assert digest_of(document.data) == digest


async def test_the_only_image_may_have_two_tags(layout: Path) -> None:
    images.make_layout(layout, [LAYER], tag="v2")
    assert await fetch(layout, "") == await fetch(layout, "v1") == await fetch(layout, "v2")


async def test_two_images_are_not_the_only_one(layout: Path) -> None:
    images.make_layout(layout, [LAYER, LAYER], tag="v2")
    assert await fetch(layout, "v1") != await fetch(layout, "v2")
    with pytest.raises(NotInLayout, match=r"has 2 images \(v1, v2\)") as caught:
        await fetch(layout, "")
    assert "oci:DIR:TAG" in str(caught.value)


async def test_an_image_without_a_tag(tmp_path: Path) -> None:
    digest = images.make_layout(tmp_path, [LAYER], tag=None)
    assert await fetch(tmp_path, "") == digest
    with pytest.raises(NotInLayout, match="has no tag latest"):
        await fetch(tmp_path, "latest")


async def test_a_whole_reference_as_the_name(layout: Path) -> None:
    """As ``docker save`` and ``ctr export`` write it."""
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"] = {
        "org.opencontainers.image.ref.name": "docker.io/library/app:v1"
    }
    (layout / "index.json").write_text(json.dumps(index))
    assert await fetch(layout, "v1") == await fetch(layout, "docker.io/library/app:v1")
    with pytest.raises(NotInLayout):
        await fetch(layout, "1")


async def test_an_index_of_platforms(tmp_path: Path) -> None:
    images.make_layout(tmp_path, [LAYER], others={"linux/riscv64": [LAYER, LAYER]})
    assert (await ImageLayout(str(tmp_path)).fetch_manifest("latest")).media_type == OCI_INDEX


async def test_others_may_write_meanwhile(layout: Path) -> None:
    opened = ImageLayout(str(layout))
    first = (await opened.fetch_manifest("v1")).digest
    images.make_layout(layout, [LAYER, LAYER], tag="v1")
    assert (await opened.fetch_manifest("v1")).digest != first


async def test_reading_writes_nothing(layout: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in [layout, *layout.rglob("*")])
    await fetch(layout, "v1")
    assert sorted(path.stat().st_mtime_ns for path in [layout, *layout.rglob("*")]) == before


async def test_symlinks_within_the_layout_are_fine(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(layout)
    path = images.blob_path(layout, LAYER.digest)
    path.rename(layout / "moved")
    path.symlink_to(layout / "moved")
    opened = ImageLayout(str(tmp_path / "link"))
    blob = Descriptor("", LAYER.digest, LAYER.size)
    assert await read_range(opened, blob, 0, 10) == LAYER.blob[:10]


# What is not as it should be.


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
async def test_what_is_no_layout(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoLayout, match=f"{name} is not an OCI image layout: .* oci-layout"):
        await fetch(tmp_path / name, "v1")
    with pytest.raises(NoLayout):
        await ImageLayout(str(tmp_path / name)).push_blob(described(DATA), DATA)
    assert not (tmp_path / "nowhere").exists()


async def test_a_blob_that_is_not_what_its_name_says(layout: Path) -> None:
    digest = parse_digest(images.tagged(layout, "v1")["digest"])
    images.tamper_blob(layout, digest, 5)
    with pytest.raises(DigestMismatch, match=str(digest)):
        await fetch(layout, "v1")
    images.tamper_blob(layout, LAYER.digest, 5)
    blob = Descriptor("", LAYER.digest, LAYER.size)
    with pytest.raises(DigestMismatch):
        await ImageLayout(str(layout)).fetch_blob(blob, limit=1 << 20)


async def test_a_blob_that_was_cut(layout: Path) -> None:
    path = images.blob_path(layout, LAYER.digest)
    os.truncate(path, 10)
    opened = ImageLayout(str(layout))
    blob = Descriptor("", LAYER.digest, LAYER.size)
    with pytest.raises(SizeMismatch, match=f"got 10 bytes, expected {LAYER.size}"):
        await read_range(opened, blob, 0, 5)
    with pytest.raises(SizeMismatch):
        await opened.fetch_blob(blob, limit=1 << 20)
    assert not await opened.has_blob(blob)


async def test_a_blob_that_is_cut_while_it_is_read(layout: Path) -> None:
    data = bytes(5 << 20)
    images.put_blob(layout, data)
    path = images.blob_path(layout, digest_of(data))
    async with ImageLayout(str(layout)).open_range(described(data), 0, len(data)) as body:
        await anext(body)
        os.truncate(path, 2 << 20)
        await anext(body)
        with pytest.raises(LayoutUnreadable, match="shrank"):
            await anext(body)


@pytest.mark.parametrize("kind", ["directory", "fifo"])
async def test_a_blob_that_is_no_file(layout: Path, kind: str) -> None:
    path = images.blob_path(layout, digest_of(DATA))
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with trio.fail_after(5), pytest.raises(LayoutUnreadable, match="not a regular file"):
        await read_range(ImageLayout(str(layout)), described(DATA), 0, 10)
    assert not await ImageLayout(str(layout)).has_blob(described(DATA))


async def test_a_document_that_is_too_large(layout: Path) -> None:
    digest = images.put_blob(layout, bytes((4 << 20) + 1))
    with pytest.raises(TooLarge):
        await fetch(layout, digest)


@pytest.mark.parametrize(
    "digest", ["sha256:../../../../etc/passwd", "../x", "sha256:", "md5:" + "0" * 32, ""]
)
async def test_an_index_cannot_name_files_outside(layout: Path, digest: str) -> None:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["digest"] = digest
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(BadLayout):
        await fetch(layout, "v1")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"schemaVersion": 2}',
        b'{"schemaVersion": 2, "manifests": {}}',
        b'{"schemaVersion": 2, "manifests": [5]}',
        b'{"schemaVersion": 2, "manifests": [{"mediaType": "x"}]}',
        b"\xff",
        b"[" * 100_000,
    ],
)
async def test_an_index_that_is_none(layout: Path, data: bytes) -> None:
    (layout / "index.json").write_bytes(data)
    with pytest.raises(BadLayout, match=r"index\.json"):
        await fetch(layout, "v1")


async def test_an_index_cut_at_each_place_or_with_more_behind_it(layout: Path) -> None:
    whole = (layout / "index.json").read_bytes()
    assert len(decode_index(whole, "x")) == 1
    for data in [*(whole[:end] for end in range(len(whole))), whole + b"x"]:
        with pytest.raises(BadLayout):
            decode_index(data, "x")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"imageLayoutVersion": 1}', b'{"imageLayoutVersion": "2.0.0"}', b"\xff"]
)
def test_versions_that_are_unknown(data: bytes) -> None:
    with pytest.raises(BadLayout, match="x: "):
        check_version(data, "x")


async def test_an_index_that_is_missing(layout: Path) -> None:
    (layout / "index.json").unlink()
    with pytest.raises(LazyfsError, match=r"index\.json: No such file"):
        await fetch(layout, "v1")


# Writing.


async def test_a_layout_is_made_by_the_first_push(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    there = ImageLayout(str(path), create=True)
    with pytest.raises(NotFound):
        await there.fetch_manifest("v1")
    assert not path.exists()
    await there.push_blob(described(DATA), DATA)
    assert json.loads((path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((path / "index.json").read_text())
    assert (index["schemaVersion"], index["manifests"]) == (2, [])


async def test_only_a_tag_lists_an_image(tmp_path: Path) -> None:
    there = ImageLayout(str(tmp_path), create=True)
    data = b'{"schemaVersion": 2, "config": {}}'
    digest = await there.push_manifest(data, OCI_MANIFEST, None)
    assert json.loads((tmp_path / "index.json").read_text())["manifests"] == []
    await there.push_manifest(data, OCI_MANIFEST, "v1")
    assert json.loads((tmp_path / "index.json").read_text())["manifests"] == [
        {
            "mediaType": OCI_MANIFEST,
            "digest": str(digest),
            "size": len(data),
            "annotations": {"org.opencontainers.image.ref.name": "v1"},
        }
    ]


async def test_what_others_wrote_into_the_index_stays(layout: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    other = {
        "mediaType": OCI_MANIFEST,
        "digest": index["manifests"][0]["digest"],
        "size": 5,
        "annotations": {"x": "y"},
        "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
        "artifactType": "application/x",
        "unknown": {"a": [1, None]},
    }
    index["annotations"] = {"of": "the index"}
    index["manifests"].append(other)
    (layout / "index.json").write_text(json.dumps(index))
    await ImageLayout(str(layout)).push_manifest(b"{}", OCI_MANIFEST, "v2")
    written = json.loads((layout / "index.json").read_text())
    added = written["manifests"].pop()
    assert added["annotations"] == {"org.opencontainers.image.ref.name": "v2"}
    assert written == index


async def test_concurrent_pushes_lose_no_tag(tmp_path: Path) -> None:
    there = ImageLayout(str(tmp_path), create=True)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(there.push_manifest, b"{}", OCI_MANIFEST, f"v{number}")
    assert len(json.loads((tmp_path / "index.json").read_text())["manifests"]) == 20


@pytest.mark.parametrize("is_file", [False, True])
async def test_a_push_that_is_refused_leaves_nothing(tmp_path: Path, is_file: bool) -> None:
    there = ImageLayout(str(tmp_path / "layout"), create=True)
    source = tmp_path / "source"
    source.write_bytes(DATA)
    content = source if is_file else DATA
    with pytest.raises(SizeMismatch):
        await there.push_blob(Descriptor("", digest_of(DATA), 5), content)
    with pytest.raises(DigestMismatch):
        await there.push_blob(Descriptor("", digest_of(b""), len(DATA)), content)
    left = [path for path in (tmp_path / "layout").rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == ["index.json", "oci-layout"]


async def test_a_file_that_cannot_be_pushed(tmp_path: Path) -> None:
    there = ImageLayout(str(tmp_path / "layout"), create=True)
    with pytest.raises(LayoutUnwritable, match="No such file"):
        await there.push_blob(described(DATA), tmp_path / "nowhere")


async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    there = ImageLayout(str(tmp_path / "file" / "layout"), create=True)
    with pytest.raises(LayoutUnwritable, match="Not a directory"):
        await there.push_blob(described(DATA), DATA)


async def test_written_files_are_for_everybody_to_read(tmp_path: Path) -> None:
    there = ImageLayout(str(tmp_path), create=True)
    await there.push_blob(described(DATA), DATA)
    await there.push_manifest(b"{}", OCI_MANIFEST, "v1")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o644, path


async def test_counts(layout: Path) -> None:
    opened = ImageLayout(str(layout))
    blob = Descriptor("", LAYER.digest, LAYER.size)
    await read_range(opened, blob, 10, 20)
    assert (opened.statistics.requests, opened.statistics.received_size) == (1, 10)
    with pytest.raises(NotInLayout):
        await read_range(opened, described(DATA), 0, 1)
    assert opened.statistics.errors == 1


def test_digests_have_no_dots_or_slashes() -> None:
    """The rule that ``blob_path`` relies on."""
    for text in ("sha256:" + "a" * 63 + "/", "sha256:" + "." * 64, "sha256/x:" + "a" * 64):
        with pytest.raises(BadDigest):
            parse_digest(text)
