"""Plain images where there is no room for their files: verified all the same, and fetched anew."""

import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.digest import digest_of
from lazyfs.image.open import open_image
from lazyfs.image.prepare import prepare
from lazyfs.store.paths import StoreFull
from tests.formats.test_layer_pass import FILES, tar_of
from tests.image.test_plain import ACCESS, read, request
from tests.image.test_prepare import small_disk
from tests.support.formats.images import OCI_GZIP, Layer, make_layout
from tests.support.mounts.mounting import needs_root
from tests.support.registries.registry import FakeRegistry

pytestmark = [pytest.mark.anyio, *needs_root]

DIGITS = random.Random(4).randbytes(3_000_000).hex().encode()
LARGE = [*FILES, ("large", DIGITS)]
TWICE = [("large", b"before"), ("large", DIGITS[:2_500_000])]


def layer(files: list[tuple[str, bytes]]) -> Layer:
    tar = tar_of(files)
    return Layer(gzip.compress(tar, 6, mtime=0), OCI_GZIP, {}, digest_of(tar))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    make_layout(tmp_path / "layout", [layer(LARGE)])
    with FakeRegistry(tmp_path / "layout") as serving:
        yield serving


async def test_the_pass_goes_on_without_files(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = f"{registry.host}/image:latest"
    with small_disk(tmp_path / "cache", 3 << 20):
        prepared = await prepare(request(reference, tmp_path))
        assert not prepared.is_volatile
        assert registry.count("GET", "/blobs/") == 2, "the config, and the layer once"
        (said,) = caplog.records
        assert "its files are fetched when they are read" in said.message
        assert not any((tmp_path / "cache/tmp").iterdir())
        registry.forget_requests()
        again = await prepare(request(prepared.resolved, tmp_path))
        assert registry.requests == []
        async with open_image(again, ACCESS) as image:
            for name, content in LARGE:
                assert await read(image, name) == content, name
            assert registry.count("GET", "/blobs/") > 0


async def test_files_that_have_no_room_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that a tar has twice: its payloads are moved, which takes as much again."""
    make_layout(tmp_path / "layout", [layer(TWICE)])
    with small_disk(tmp_path / "cache", 4 << 20):
        prepared = await prepare(request(f"oci:{tmp_path}/layout", tmp_path))
        assert len(caplog.records) == 1
        async with open_image(prepared, ACCESS) as image:
            assert await read(image, "large") == DIGITS[:2_500_000]


async def test_where_not_even_the_index_has_room(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in memory then, without the files."""
    with small_disk(tmp_path / "memory", 1 << 20), small_disk(tmp_path / "disk", 16 << 10):
        monkeypatch.setattr("lazyfs.store.paths.MEMORY", str(tmp_path / "memory"))
        prepared = await prepare(request(f"{registry.host}/image:latest", tmp_path / "disk"))
        assert prepared.is_volatile
        async with open_image(prepared, ACCESS) as image:
            for name, content in LARGE:
                assert await read(image, name) == content, name


async def test_where_nothing_has_room(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "memory", 16 << 10), small_disk(tmp_path / "disk", 16 << 10):
        monkeypatch.setattr("lazyfs.store.paths.MEMORY", str(tmp_path / "memory"))
        with pytest.raises(StoreFull, match="No space left on device, nor is there space at"):
            await prepare(request(f"{registry.host}/image:latest", tmp_path / "disk"))
        assert not any((tmp_path / "memory").iterdir())
