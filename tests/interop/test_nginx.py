"""docker-registry as it is met in the world: behind nginx, with a token service."""

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lazyfs.errors import AccessDenied, NotFound, Unavailable
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.config.endpoints import Endpoint, Tls
from lazyfs.registry.retry import RetryPolicy
from lazyfs.registry.source import AccessOptions
from tests.support.mounts.mounting import wait_until
from tests.support.registries import certificates, docker_registry, nginx
from tests.support.registries.clients import ONCE, described, read_range
from tests.support.registries.docker_registry import DockerRegistry
from tests.support.registries.nginx import Nginx
from tests.support.registries.repositories import DATA, Place, RepositoryContract
from tests.support.registries.token_service import TokenService

MISSING = docker_registry.why_missing() or nginx.why_missing() or certificates.why_missing()
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(MISSING is not None, reason=MISSING or ""),
]

NUMBERS = itertools.count()
PATIENT = RetryPolicy(tries=30, first_seconds=0.05, longest_seconds=0.2)


class Front:
    """Everything that stands between a client and the registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        enter = self._stack.enter_context
        self.made = certificates.make_certificates(folder)
        self.tokens = enter(TokenService(folder))
        ports = nginx.free_ports(4)
        self.tokens.realm = f"https://127.0.0.1:{ports[0]}/token"
        self.tokens.store = f"https://127.0.0.1:{ports[3]}"
        registry = DockerRegistry(folder / "registry", tokens=self.tokens)
        self.registry = enter(registry)
        self.nginx = enter(
            Nginx(
                folder,
                ports,
                registry=registry.host,
                data=registry.data,
                signer=self.tokens.url,
                certificate=self.made.authority,
                key=folder / "key.pem",
            )
        )

    def close(self) -> None:
        self._stack.close()

    def client(
        self, port: int, name: str, *, policy: RetryPolicy = PATIENT, is_known: bool = True
    ) -> RegistryClient:
        host = f"127.0.0.1:{port}"
        reference = parse_reference(f"{host}/{name}")
        assert isinstance(reference, Reference)
        tls = Tls(authorities=(str(self.made.authority),)) if is_known else Tls()
        authfile = self.registry.auth_file(self.folder / f"{port}.json", host)
        return RegistryClient(
            reference,
            AccessOptions(authfile=authfile),
            policy=policy,
            endpoints=[Endpoint(f"https://{host}", host, name, tls=tls)],
        )


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("front"))
    yield front
    front.close()


def place_at(front: Front, port: int) -> Place:
    name = f"test/repository{next(NUMBERS)}"
    return lambda: front.client(port, name)


class Fronted(RepositoryContract):
    """The suite; here all repositories share their blobs, so none may have the missing one."""

    async def test_a_blob_that_is_not_there(self, place: Place) -> None:
        there = place()
        missing = described(b"in no repository at all")
        with pytest.raises(NotFound):
            await there.fetch_blob(missing, limit=100)
        with pytest.raises(NotFound):
            await read_range(there, missing, 0, 10)
        await there.aclose()


class TestSignedUrls(Fronted):
    """TLS of an authority of one's own, tokens, blobs by signed URLs."""

    @pytest.fixture
    def place(self, front: Front) -> Place:
        return place_at(front, front.nginx.signing)


class TestWithoutRanges(Fronted):
    """Every range is answered with the whole blob."""

    @pytest.fixture
    def place(self, front: Front) -> Place:
        return place_at(front, front.nginx.unranged)


@pytest.mark.anyio
async def test_an_unknown_authority(front: Front) -> None:
    client = front.client(front.nginx.signing, "test/x", policy=ONCE, is_known=False)
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await client.fetch_manifest("v1")
    await client.aclose()


@pytest.mark.anyio
async def test_urls_that_expire_are_asked_for_anew(front: Front) -> None:
    client = front.client(front.nginx.signing, "test/expiring", policy=ONCE)
    await client.push_blob(described(DATA), DATA)
    front.tokens.url_seconds = 1
    front.tokens.signed.clear()
    assert await read_range(client, described(DATA), 5, 500) == DATA[5:500]
    assert await read_range(client, described(DATA), 0, 100) == DATA[:100]
    assert len(front.tokens.signed) == 1, "the second range went there at once"
    expires = int(front.tokens.signed[0].rpartition("=")[2])
    await trio.to_thread.run_sync(wait_until, lambda: time.time() > expires + 1)
    assert await read_range(client, described(DATA), 7, 700) == DATA[7:700]
    assert len(front.tokens.signed) == 2
    front.tokens.url_seconds = 60
    await client.aclose()


@pytest.mark.anyio
async def test_tokens_that_expire_are_replaced_once_for_all(front: Front) -> None:
    client = front.client(front.nginx.unranged, "test/tokens", policy=ONCE)
    await client.push_blob(described(DATA), DATA)
    await client.aclose()
    client = front.client(front.nginx.unranged, "test/tokens", policy=ONCE)
    front.tokens.tokens, front.tokens.spoiled = 0, 1
    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
        await client.fetch_manifest("v1")
    assert front.tokens.tokens == 2, "the first one was worthless already"

    async def ask() -> None:
        with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
            await client.fetch_manifest("v1")

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert front.tokens.tokens == 2
    await client.aclose()


@pytest.mark.anyio
async def test_nobody_gets_no_token(front: Front) -> None:
    client = front.client(front.nginx.signing, "test/x", policy=ONCE)
    (front.folder / f"{front.nginx.signing}.json").write_text("{}")
    with pytest.raises(AccessDenied):
        await client.fetch_manifest("v1")
    await client.aclose()


@pytest.mark.anyio
async def test_a_rate_limit_slows_down_and_fails_nothing(front: Front) -> None:
    writer = front.client(front.nginx.signing, "test/limited")
    await writer.push_blob(described(DATA), DATA)
    await writer.aclose()
    client = front.client(front.nginx.limited, "test/limited")
    got: dict[int, bytes] = {}

    async def read(start: int) -> None:
        got[start] = await read_range(client, described(DATA), start, start + 99)

    async with trio.open_nursery() as nursery:
        for start in range(0, 8000, 1000):
            nursery.start_soon(read, start)
    assert got == {start: DATA[start : start + 99] for start in range(0, 8000, 1000)}
    assert client.statistics.retries > 0
    assert client.statistics.errors == 0
    await client.aclose()
