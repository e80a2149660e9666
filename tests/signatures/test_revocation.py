"""Asking authorities: bounded, without credentials, by http alone; lists are kept meanwhile."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from lazyfs.signatures.revocation import Authorities
from lazyfs.store.paths import Store
from lazyfs.trust.certificates import Certificate, parse_certificate
from lazyfs.trust.errors import CannotTell
from tests.support.trust.authorities import Authority
from tests.support.trust.signing import Notary

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[Authority]:
    with Authority() as found:
        yield found


def issuer(notary: Notary) -> Certificate:
    return parse_certificate(notary.root.public_bytes(Encoding.DER))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


async def test_a_list_is_kept_until_it_ends(server: Authority, store: Store) -> None:
    notary = Notary()
    server.body = notary.revocations(is_revoked=False, now=NOW)
    for _ in range(2):
        asked = Authorities(store, {}, NOW)
        assert await asked.crl(server.url, issuer(notary)) == server.body
        await asked.aclose()
    assert len(server.asked) == 1
    late = Authorities(store, {}, NOW + timedelta(days=2))
    await late.crl(server.url, issuer(notary))
    await late.aclose()
    assert len(server.asked) == 2


async def test_a_list_that_somebody_else_signed_is_not_kept(
    server: Authority, store: Store
) -> None:
    """Whoever answers once in the authority's place does not decide from then on."""
    notary = Notary()
    server.body = Notary("Other").revocations(is_revoked=False, now=NOW)
    asked = Authorities(store, {}, NOW)
    assert await asked.crl(server.url, issuer(notary)) == server.body
    server.body = notary.revocations(is_revoked=True, now=NOW)
    for _ in range(2):
        assert await asked.crl(server.url, issuer(notary)) == server.body
    assert len(server.asked) == 2
    # Nor does one that is kept for somebody else count.
    await asked.crl(server.url, issuer(Notary("Other")))
    assert len(server.asked) == 3
    await asked.aclose()


async def test_nothing_secret_goes_along(server: Authority, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auths": {"127.0.0.1": {"auth": "dXNlcjpzZWNyZXQ="}}}')
    environment = {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path)}
    asked = Authorities(None, environment, NOW)
    await asked.ocsp(server.url, b"question")
    await asked.aclose()
    (headers,) = server.asked
    names = {name.lower() for name in headers}
    assert not names & {"authorization", "cookie", "proxy-authorization"}
    assert headers["body"] == b"question".hex()


@pytest.mark.parametrize(
    ("status", "fields"), [(404, {}), (500, {}), (302, {"location": "http://127.0.0.1:1/"})]
)
async def test_anything_but_an_answer_is_none(
    server: Authority, store: Store, status: int, fields: dict[str, str]
) -> None:
    server.status, server.fields = status, fields
    asked = Authorities(store, {}, NOW)
    with pytest.raises(CannotTell, match=f"HTTP status {status}"):
        await asked.crl(server.url, issuer(Notary()))
    await asked.aclose()
    assert len(server.asked) == 1  # no redirect is followed, nothing is asked twice
    assert not list(store.revocation.glob("*"))


async def test_an_answer_has_a_limit(server: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("lazyfs.signatures.revocation", fromlist=["LIMITS"]).LIMITS, "crl", 1000
    )
    server.body = bytes(100_000)
    asked = Authorities(None, {}, NOW)
    with pytest.raises(CannotTell, match="larger than 1000 bytes"):
        await asked.crl(server.url, issuer(Notary()))
    await asked.aclose()


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/crl", "ldap://x/y", "file:///etc/passwd", "http://u:p@127.0.0.1/"]
)
async def test_only_http_is_spoken(url: str) -> None:
    asked = Authorities(None, {}, NOW)
    with pytest.raises(CannotTell):
        await asked.crl(url, issuer(Notary()))
    await asked.aclose()


async def test_offline_asks_nobody(server: Authority, store: Store) -> None:
    notary = Notary()
    server.body = notary.revocations(is_revoked=False, now=NOW)
    asked = Authorities(store, {}, NOW, is_offline=True)
    with pytest.raises(CannotTell, match="--offline asks nobody"):
        await asked.crl(server.url, issuer(notary))
    first = Authorities(store, {}, NOW)
    await first.crl(server.url, issuer(notary))
    await first.aclose()
    assert await asked.crl(server.url, issuer(notary)) == server.body  # kept, and not out of date
    await asked.aclose()
    assert len(server.asked) == 1
