"""Redirects: where they may lead, what goes along, and URLs that expire."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.registry.config.errors import Denied, Missing
from tests.support.registries import faults
from tests.support.registries.clients import NAME, connected, read_range, stored
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 1000
USERS = {"u": "p"}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def storage(registry: FakeRegistry) -> Iterator[FakeRegistry]:
    """Another host, which serves the registry's blobs to whoever has a signed URL."""
    with FakeRegistry() as storage:
        registry.redirect_blobs(storage.url)
        storage.share_signatures(registry)
        yield storage


@pytest.fixture
def authfile(tmp_path: Path, registry: FakeRegistry) -> Path:
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {registry.host: {"auth": "dTpw"}}}))
    return path


async def test_a_redirect_to_another_host(registry: FakeRegistry, storage: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        assert await read_range(client, blob, 10, 1000) == DATA[10:1000]
    assert storage.requests[0].range == "bytes=10-999"


async def test_authorization_goes_to_the_registry_only(
    registry: FakeRegistry, storage: FakeRegistry, authfile: Path
) -> None:
    registry.require_basic(USERS)
    blob = stored(registry, DATA)
    async with connected(registry, authfile=authfile) as client:
        assert await read_range(client, blob, 10, 1000) == DATA[10:1000]
    assert "authorization" in registry.requests[-1].headers
    assert len(storage.requests) == 1
    assert "authorization" not in storage.requests[0].headers


async def test_authorization_stays_on_a_redirect_within_the_registry(
    registry: FakeRegistry, authfile: Path
) -> None:
    registry.require_basic(USERS)
    blob = stored(registry, DATA)
    registry.put_blob("other", DATA)
    registry.faults.add(faults.redirect(f"/v2/other/blobs/{blob.digest}"), path=NAME, skip=1)
    async with connected(registry, authfile=authfile) as client:
        assert await read_range(client, blob, 10, 1000) == DATA[10:1000]
    assert registry.requests[-1].path == f"/v2/other/blobs/{blob.digest}"
    assert "authorization" in registry.requests[-1].headers


async def test_authorization_never_goes_on_a_detour(
    registry: FakeRegistry, storage: FakeRegistry, authfile: Path
) -> None:
    """Back at the registry it is sent again: it is the registry's own."""
    registry.require_basic(USERS)
    blob = stored(registry, DATA)
    storage.faults.add(faults.redirect(f"{registry.url}/v2/other/blobs/{blob.digest}"))
    registry.faults.add(lambda request, answer: Answer(200, {}, DATA), path="/v2/other/")
    async with connected(registry, authfile=authfile) as client:
        assert await read_range(client, blob, 10, 1000) == DATA[10:1000]
    assert "authorization" not in storage.requests[0].headers
    assert registry.requests[-1].path.startswith("/v2/other/")
    assert "authorization" in registry.requests[-1].headers


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_all_kinds_of_redirects(registry: FakeRegistry, code: int) -> None:
    blob = stored(registry, DATA)
    registry.put_blob("other", DATA)
    registry.faults.add(faults.redirect(f"/v2/other/blobs/{blob.digest}", code))
    async with connected(registry) as client:
        assert await read_range(client, blob, 10, 1000) == DATA[10:1000]
    assert [entry.range for entry in registry.requests] == ["bytes=10-999"] * 2


@pytest.mark.parametrize("location", ["../../../other/blobs/{}", "//{host}/v2/other/blobs/{}"])
async def test_relative_redirects(registry: FakeRegistry, location: str) -> None:
    blob = stored(registry, DATA)
    registry.put_blob("other", DATA)
    location = location.replace("{host}", registry.host).replace("{}", str(blob.digest))
    registry.faults.add(faults.redirect(location))
    async with connected(registry) as client:
        assert await read_range(client, blob, 10, 1000) == DATA[10:1000]


async def test_chained_redirects_up_to_five(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    for _ in range(5):
        registry.faults.add(faults.redirect("{path}"))
    async with connected(registry) as client:
        assert await read_range(client, blob, 10, 1000) == DATA[10:1000]
        assert client.statistics.requests == 6


async def test_a_manifest_may_be_redirected_too(registry: FakeRegistry) -> None:
    registry.put_manifest("other", b"{}", "application/x", "v1")
    registry.faults.add(faults.redirect("/v2/other/manifests/v1"))
    async with connected(registry) as client:
        assert (await client.fetch_manifest("v1")).data == b"{}"


# Remembered URLs.


async def test_the_second_range_goes_straight_to_the_storage(
    registry: FakeRegistry, storage: FakeRegistry
) -> None:
    blob = stored(registry, DATA)
    other = stored(registry, DATA[1:])
    async with connected(registry) as client:
        for offset in range(0, 1000, 100):
            assert await read_range(client, blob, offset, offset + 9) == DATA[offset:][:9]
        assert registry.count() == 1
        assert await read_range(client, other, 0, 9) == DATA[1:10]
        assert registry.count() == 2, "another blob has another URL"
    assert storage.count() == 11


@pytest.mark.parametrize("refusal", [400, 401, 403, 404, 410])
async def test_an_expired_url_costs_one_trip_to_the_registry(
    registry: FakeRegistry, storage: FakeRegistry, refusal: int
) -> None:
    registry.redirect_blobs(storage.url, refusal=refusal)
    storage.share_signatures(registry)
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        for _ in range(3):
            assert await read_range(client, blob, 10, 1000) == DATA[10:1000]
            registry.expire_signed_urls()
        assert client.statistics.retries == client.statistics.errors == 0
    assert registry.count() == 3
    assert storage.count(status=206) == 3
    assert storage.count(status=refusal) == 2


async def test_an_expired_url_between_two_parts_of_a_body(
    registry: FakeRegistry, storage: FakeRegistry
) -> None:
    blob = stored(registry, DATA)
    storage.faults.add(faults.cut(100_000))
    async with connected(registry) as client, client.open_range(blob, 0, len(DATA)) as body:
        got = await anext(body)
        registry.expire_signed_urls()
        got += b"".join([data async for data in body])
    assert got == DATA


async def test_a_url_that_is_refused_when_new_is_an_error(
    registry: FakeRegistry, storage: FakeRegistry
) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        await read_range(client, blob, 0, 10)
        storage.faults.add(faults.status(403), times=None)
        with pytest.raises(Denied, match="403"):
            await read_range(client, blob, 0, 10)
    assert registry.count() == 2


async def test_errors_do_not_show_the_signature(
    registry: FakeRegistry, storage: FakeRegistry
) -> None:
    blob = stored(registry, DATA)
    storage.faults.add(faults.status(404), times=None)
    async with connected(registry) as client:
        with pytest.raises(Missing) as caught:
            await read_range(client, blob, 0, 10)
    signature = storage.requests[0].target.partition("signature=")[2]
    assert len(signature) > 8
    assert signature not in str(caught.value)
    assert "signature=…" in str(caught.value)


async def test_a_dead_storage_is_forgotten(registry: FakeRegistry, storage: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        await read_range(client, blob, 0, 10)
        storage.faults.add(faults.cut(-1))
        assert await read_range(client, blob, 10, 20) == DATA[10:20]
    assert registry.count() == 2
