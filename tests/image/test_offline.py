"""A registry that is away: what can be had without it, and what is said."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from lazyfs.errors import Unavailable
from lazyfs.fetch.origins.origin import Offline
from lazyfs.image.open import open_image
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.image.verify import verify_image
from lazyfs.registry.source import AccessOptions
from tests.support.formats.images import (
    Layer,
    layer_from_fixture,
    make_layout,
    plain_layer,
    source_tar,
)
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

ACCESS = AccessOptions(connect_seconds=2, idle_seconds=2)
OFFLINE = replace(ACCESS, is_offline=True)


@pytest.fixture(scope="module")
def layer() -> Layer:
    return layer_from_fixture("edge-default")


@pytest.fixture
def registry(tmp_path: Path, layer: Layer) -> Iterator[FakeRegistry]:
    make_layout(tmp_path / "layout", [layer], index=True)
    with FakeRegistry(tmp_path / "layout") as serving:
        yield serving


async def prepared(
    reference: str, tmp_path: Path, access: AccessOptions = ACCESS, platform: str | None = None
) -> Prepared:
    return await prepare(Request(reference, platform, tmp_path / "cache", access))


async def test_a_tag_means_what_it_meant_the_last_time(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{registry.host}/image:latest"
    online = await prepared(name, tmp_path)
    registry.forget_requests()
    offline = await prepared(name, tmp_path, OFFLINE)
    assert registry.requests == []
    assert (offline.resolved, offline.index_digest) == (online.resolved, online.index_digest)
    assert (online.source, offline.source) == ("registry", "cache")
    (said,) = [each.message for each in caplog.records if "offline" in each.message]
    assert name in said
    assert str(online.index_digest) in said


async def test_without_the_option_the_error_names_the_way(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    name = f"{registry.host}/image:latest"
    online = await prepared(name, tmp_path)
    registry.close()
    with pytest.raises(Unavailable) as caught:
        await prepared(name, tmp_path)
    assert f"--offline uses the digest last seen: {online.index_digest}" in str(caught.value)
    by_digest = await prepared(online.resolved, tmp_path)
    assert by_digest.source == "cache"
    with pytest.raises(Unavailable) as caught:
        await prepared(f"{registry.host}/image:other", tmp_path)
    assert "--offline" not in str(caught.value)


async def test_what_is_not_known_is_not_guessed(registry: FakeRegistry, tmp_path: Path) -> None:
    online = await prepared(f"{registry.host}/image:latest", tmp_path)
    registry.forget_requests()
    for reference in (
        f"{registry.host}/image:other",
        f"{registry.host}/other:latest",
        f"{registry.host}/image@sha256:{'0' * 64}",
    ):
        with pytest.raises(Offline, match="--offline"):
            await prepared(reference, tmp_path, OFFLINE)
    digest = online.resolved.partition("@")[2]
    assert (await prepared(f"{registry.host}/other@{digest}", tmp_path, OFFLINE)).image
    assert registry.requests == []


async def test_a_tag_that_has_moved_since_means_the_newer(
    registry: FakeRegistry, tmp_path: Path, layer: Layer
) -> None:
    name = f"{registry.host}/image:latest"
    old = await prepared(name, tmp_path)
    make_layout(tmp_path / "layout", [layer, layer_from_fixture("real-gnu")])
    new = await prepared(name, tmp_path)
    assert new.resolved != old.resolved
    assert (await prepared(name, tmp_path, OFFLINE)).resolved == new.resolved


async def test_content_that_is_here_is_served_and_the_rest_is_not_asked_for(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    name = f"{registry.host}/image:latest"
    await prepared(name, tmp_path)
    registry.forget_requests()
    async with open_image(await prepared(name, tmp_path, OFFLINE), OFFLINE) as image:
        found = await verify_image(image, lambda size: None)
        assert found.errors
        assert {each.code for each in found.errors} == {"E_OFFLINE"}
    assert registry.requests == []
    async with open_image(await prepared(name, tmp_path), ACCESS) as image:
        assert not (await verify_image(image, lambda size: None)).errors
    registry.close()
    async with open_image(await prepared(name, tmp_path, OFFLINE), OFFLINE) as image:
        assert not (await verify_image(image, lambda size: None)).errors


async def test_a_layout_is_no_registry(tmp_path: Path, layer: Layer) -> None:
    make_layout(tmp_path / "image", [layer, plain_layer(source_tar("edge"))][:1])
    found = await prepared(f"oci:{tmp_path}/image", tmp_path, OFFLINE)
    assert found.source == "layout"
