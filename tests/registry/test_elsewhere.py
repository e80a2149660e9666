"""Redirects to another registry, which wants a token or credentials of its own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.registry.config.errors import Denied
from tests.support.registries import faults
from tests.support.registries.clients import connected, read_range, stored
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 1000
USERS = {"u": "p"}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def other(registry: FakeRegistry) -> Iterator[FakeRegistry]:
    """Another registry, which the first one points to for everything."""
    with FakeRegistry() as other:
        registry.faults.add(faults.redirect(other.url + "{path}"), path="/blobs/", times=None)
        yield other


def login(path: Path, *registries: FakeRegistry) -> Path:
    path.write_text(json.dumps({"auths": {each.host: {"auth": "dTpw"} for each in registries}}))
    return path


async def test_a_token_that_anybody_gets_is_asked_for_once(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    other.require_bearer(is_public=True)
    stored(registry, DATA)
    blob = stored(other, DATA)
    async with connected(registry) as client:
        assert await read_range(client, blob, 0, 10) == DATA[:10]
        assert await read_range(client, blob, 10, 20) == DATA[10:20]
    assert other.tokens_issued == 1
    assert other.count("GET", "/blobs/", 401) == 1


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_credentials_for_that_place_are_used_there(
    registry: FakeRegistry, other: FakeRegistry, tmp_path: Path, scheme: str
) -> None:
    other.require_basic(USERS) if scheme == "basic" else other.require_bearer(USERS)
    stored(registry, DATA)
    blob = stored(other, DATA)
    authfile = login(tmp_path / "auth.json", other)
    async with connected(registry, authfile=authfile) as client:
        assert await read_range(client, blob, 0, 10) == DATA[:10]
    assert all("authorization" not in each.headers for each in registry.requests)


async def test_those_of_the_first_never_go_there(
    registry: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> None:
    registry.require_basic(USERS)
    other.require_basic(USERS)
    stored(registry, DATA)
    blob = stored(other, DATA)
    authfile = login(tmp_path / "auth.json", registry)
    async with connected(registry, authfile=authfile) as client:
        with pytest.raises(Denied):
            await read_range(client, blob, 0, 10)
    assert other.requests
    assert all("authorization" not in each.headers for each in other.requests)


async def test_a_place_that_always_refuses_is_left_alone(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    other.require_bearer(is_public=True)
    other.faults.add(
        faults.status(401, {"WWW-Authenticate": f'Bearer realm="{other.url}/_token"'}),
        path="/blobs/",
        times=None,
    )
    stored(registry, DATA)
    blob = stored(other, DATA)
    async with connected(registry) as client:
        with pytest.raises(Denied):
            await read_range(client, blob, 0, 10)
    assert other.count("GET", "/blobs/") <= 3
