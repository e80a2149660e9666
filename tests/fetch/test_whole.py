"""Blobs that are fetched whole, from places that send wrong ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from lazyfs.digest import parse_digest
from lazyfs.documents.errors import BaseCorrupt
from lazyfs.fetch.origins.origin import REFETCHES
from lazyfs.fetch.origins.whole import WrongBlob, fetch_file, until_right
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.layout import ImageLayout
from lazyfs.registry.source import AccessOptions, Source
from lazyfs.service.embed import embed_images
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.snapshots import Snapshots
from tests.support.formats.images import blob_path, make_layout, plain_layer, read_blob, tar_bytes
from tests.support.formats.images import file as tar_file
from tests.support.registries.faults import flip
from tests.support.registries.registry import FakeRegistry
from tests.support.sandboxes.snapshots import ID
from tests.support.sandboxes.snapshots import image as document_image

pytestmark = pytest.mark.anyio

BLOB = Descriptor("application/octet-stream", parse_digest("sha256:" + "0" * 64), 3)
LAYER = plain_layer(tar_bytes([tar_file("a", b"content")]))


class Places:
    """A source of which others may always have the blob, as blame is forgotten after a while."""

    def __init__(self, kind: str, *, others: bool) -> None:
        self.kind = kind
        self.others = others
        self.asked = 0

    def blame(self, *blamed: Any) -> bool:
        return self.others

    async def attempt(self) -> None:
        self.asked += 1
        raise WrongBlob("blob: got another")


@pytest.mark.parametrize(
    ("kind", "others", "times"),
    [("layout", False, 1), ("registry", False, 2), ("registry", True, REFETCHES + 1)],
)
async def test_a_blob_that_is_never_right_is_asked_for_so_often(
    kind: str, others: bool, times: int
) -> None:
    places = Places(kind, others=others)
    with pytest.raises(WrongBlob):
        await until_right(cast("Source", places), BLOB, places.attempt)
    assert places.asked == times


async def test_a_file_that_is_wrong_on_the_disk(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", [LAYER])
    path = blob_path(tmp_path / "layout", str(LAYER.digest))
    path.write_bytes(b"x" * path.stat().st_size)
    source = ImageLayout(str(tmp_path / "layout"))
    blob = replace(BLOB, digest=parse_digest(str(LAYER.digest)), size=path.stat().st_size)
    with pytest.raises(WrongBlob, match=str(LAYER.digest)):
        await fetch_file(source, blob, tmp_path / "file")


@pytest.fixture
def embed(tmp_path: Path) -> Callable[[FakeRegistry, str], DirectoryStore]:
    """Keeps the image of a registry beside a snapshot."""

    def embed(registry: FakeRegistry, digest: str) -> DirectoryStore:
        objects = DirectoryStore(tmp_path / "snapshots")
        named = replace(
            document_image(),
            manifest_digest=digest,
            resolved_ref=f"{registry.host}/image@{digest}",
        )
        access = AccessOptions(connect_seconds=5, idle_seconds=5, environment={})
        embed_images([named], Snapshots(objects), ID, cache_dir=tmp_path / "cache", access=access)
        return objects

    return embed


def test_a_base_that_arrived_damaged_is_fetched_again(
    tmp_path: Path, embed: Callable[[FakeRegistry, str], DirectoryStore]
) -> None:
    digest = str(make_layout(tmp_path / "layout", [LAYER]))
    with FakeRegistry(tmp_path / "layout") as registry:
        rule = registry.faults.add(flip(20), path=str(LAYER.digest), times=1)
        objects = embed(registry, digest)
        assert rule.hits == 1
        assert read_blob(objects.path / "base", str(LAYER.digest)) == LAYER.blob


def test_a_base_that_is_always_wrong_is_refused(
    tmp_path: Path, embed: Callable[[FakeRegistry, str], DirectoryStore]
) -> None:
    digest = str(make_layout(tmp_path / "layout", [LAYER]))
    with FakeRegistry(tmp_path / "layout") as registry:
        registry.faults.add(flip(20), path=str(LAYER.digest), times=None)
        with pytest.raises(BaseCorrupt, match=str(LAYER.digest)):
            embed(registry, digest)
