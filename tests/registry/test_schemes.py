"""https or http, where nobody said which: on loopback, and where certificates are not checked."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.registry.config.errors import TlsRefused, is_meant_for_tls
from lazyfs.registry.retry import RetryPolicy
from tests.support.registries import certificates, faults
from tests.support.registries.certificates import Certificates
from tests.support.registries.clients import connected, described, read_range, stored
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 100
ONCE = RetryPolicy(tries=1)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if reason := certificates.why_missing():
        pytest.skip(reason)
    return certificates.make_certificates(tmp_path_factory.mktemp("certificates"))


async def test_a_registry_with_tls_on_loopback_is_read(made: Certificates) -> None:
    environment = {"SSL_CERT_FILE": str(made.authority)}
    with FakeRegistry(tls=made.server) as registry:
        blob = stored(registry, DATA)
        async with connected(registry, environment=environment, policy=ONCE) as client:
            assert await read_range(client, blob, 10, 20) == DATA[10:20]
            assert await read_range(client, blob, 20, 30) == DATA[20:30]


async def test_and_written_to(made: Certificates) -> None:
    environment = {"SSL_CERT_FILE": str(made.authority)}
    with FakeRegistry(tls=made.server) as registry:
        async with connected(registry, environment=environment, policy=ONCE) as client:
            await client.push_blob(described(DATA), DATA)
            assert await client.has_blob(described(DATA))


async def test_plain_http_on_loopback_costs_nothing_more(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry, policy=ONCE) as client:
        assert await read_range(client, blob, 0, 10) == DATA[:10]
    assert [each.method for each in registry.requests] == ["GET"]


async def test_what_works_is_kept_when_a_connection_breaks_later(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        assert await read_range(client, blob, 0, 10) == DATA[:10]
        registry.faults.add(faults.cut(-1))
        assert await read_range(client, blob, 10, 20) == DATA[10:20]
        assert client.endpoints()[0].url.startswith("http:")


async def test_a_connection_that_breaks_at_once_is_tried_again_by_http(
    registry: FakeRegistry,
) -> None:
    """TLS is tried in between, which this registry does not speak."""
    blob = stored(registry, DATA)
    registry.faults.add(faults.cut(-1))
    async with connected(registry, policy=ONCE) as client:
        assert await read_range(client, blob, 0, 10) == DATA[:10]


async def test_an_unknown_authority_on_loopback_is_named(made: Certificates) -> None:
    with FakeRegistry(tls=made.server) as registry:
        async with connected(registry, policy=ONCE) as client:
            with pytest.raises(TlsRefused, match="CERTIFICATE_VERIFY_FAILED"):
                await client.fetch_manifest("v1")


async def test_its_certificates_may_be_in_a_directory_that_is_named(
    made: Certificates, tmp_path: Path
) -> None:
    shutil.copy(made.authority, tmp_path / "ca.crt")
    with FakeRegistry(tls=made.server) as registry:
        blob = stored(registry, DATA)
        async with connected(registry, cert_dir=tmp_path, policy=ONCE) as client:
            assert await read_range(client, blob, 0, 10) == DATA[:10]


@pytest.mark.parametrize("is_encrypted", [True, False])
async def test_without_checking_certificates_both_are_tried(
    made: Certificates, monkeypatch: pytest.MonkeyPatch, is_encrypted: bool
) -> None:
    monkeypatch.setattr("lazyfs.registry.config.endpoints.is_loopback", lambda registry: False)
    with FakeRegistry(tls=made.server if is_encrypted else None) as registry:
        blob = stored(registry, DATA)
        async with connected(registry, is_verified=False, policy=ONCE) as client:
            assert await read_range(client, blob, 0, 10) == DATA[:10]


async def test_a_registry_elsewhere_is_never_asked_in_plain(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyfs.registry.config.endpoints.is_loopback", lambda registry: False)
    async with connected(registry, policy=ONCE) as client:
        with pytest.raises(TlsRefused):
            await client.fetch_manifest("v1")
    assert registry.requests == []


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b"Client sent an HTTP request to an HTTPS server.\n", True),
        (400, b"<center>The plain HTTP request was sent to HTTPS port</center>", True),
        (400, b"Reason: You're speaking plain HTTP to an SSL-enabled server port.", True),
        (400, b'{"errors":[{"code":"NAME_INVALID"}]}', False),
        (404, b"HTTPS", False),
        (400, b"", False),
    ],
)
def test_what_servers_say_that_speak_tls(status: int, body: bytes, expected: bool) -> None:
    assert is_meant_for_tls(status, body) is expected
