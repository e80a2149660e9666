"""Secrets that a registry, a token service or something on the way would like to have elsewhere."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from lazyfs.errors import LazyfsError
from lazyfs.registry.config import endpoints
from lazyfs.registry.config.errors import Refused, TlsRefused
from lazyfs.registry.source import AccessOptions, SourceStatistics
from lazyfs.registry.transport import Transport
from tests.support.registries import certificates, faults
from tests.support.registries.certificates import Certificates
from tests.support.registries.clients import NAME, ONCE, connected, described, stored
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer

pytestmark = pytest.mark.anyio

SECRET = "geheim"
USERS = {"u": SECRET}
KINDS = (301, 302, 303, 307, 308)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.put_manifest(NAME, b"{}", "application/x", "v1")
        yield registry


@pytest.fixture
def thief() -> Iterator[FakeRegistry]:
    """Another host, which takes whatever it gets and says that all is well."""
    with FakeRegistry() as thief:
        token = json.dumps({"token": "stolen", "access_token": "stolen"}).encode()
        thief.faults.add(lambda request, answer: Answer(200, {}, token), times=None)
        yield thief


def write_auth(path: Path, registry: FakeRegistry, **entry: str) -> Path:
    path.write_text(json.dumps({"auths": {registry.host: entry}}))
    return path


def secrets_seen(thief: FakeRegistry, log: list[bytes]) -> list[str]:
    """Return what the thief has of ours: headers, targets and bodies."""
    seen = [f"{each.target} {dict(each.headers)}" for each in thief.requests]
    seen += [body.decode("latin-1") for body in log]
    return [text for text in seen if SECRET in text or "dTpnZWhlaW0" in text]


@pytest.fixture
def bodies(thief: FakeRegistry) -> list[bytes]:
    """The bodies that reach the thief."""
    found: list[bytes] = []
    respond = thief.respond

    def noted(request):
        found.append(request.body)
        return respond(request)

    thief._server._respond = noted  # type: ignore[attr-defined]
    thief.respond = noted  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("code", KINDS)
async def test_a_refresh_token_stays_with_its_service(
    registry: FakeRegistry, thief: FakeRegistry, bodies: list[bytes], tmp_path: Path, code: int
) -> None:
    """It goes in a body, which redirects by 307 and 308 keep."""
    registry.require_bearer(identity_tokens={SECRET: "u"})
    authfile = write_auth(tmp_path / "auth.json", registry, identitytoken=SECRET)
    registry.faults.add(faults.redirect(f"{thief.url}/_token", code), method="POST", times=None)
    async with connected(registry, authfile=authfile, policy=ONCE) as client:
        with pytest.raises(LazyfsError) as caught:
            await client.fetch_manifest("v1")
    assert thief.requests == []
    assert secrets_seen(thief, bodies) == []
    assert SECRET not in str(caught.value)
    if code in (307, 308):
        assert isinstance(caught.value, Refused)
        assert "carries credentials for the first host" in caught.value.message
        assert registry.count("POST") == 1, "it is final: nothing is tried again"


async def test_a_redirect_within_the_service_is_followed(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.require_bearer(identity_tokens={SECRET: "u"})
    authfile = write_auth(tmp_path / "auth.json", registry, identitytoken=SECRET)
    registry.faults.add(faults.redirect("/_token?again=1", 307), method="POST")
    async with connected(registry, authfile=authfile, policy=ONCE) as client:
        assert (await client.fetch_manifest("v1")).data == b"{}"
    assert registry.count("POST") == 2


@pytest.mark.parametrize("port", ["same host, other port", "detour"])
async def test_another_port_is_another_origin(
    registry: FakeRegistry, thief: FakeRegistry, tmp_path: Path, port: str
) -> None:
    """All of these tests are: the hosts are all 127.0.0.1.  A detour is refused where it begins."""
    registry.require_bearer(identity_tokens={SECRET: "u"})
    authfile = write_auth(tmp_path / "auth.json", registry, identitytoken=SECRET)
    thief.faults.clear()
    thief.faults.add(faults.redirect(f"{registry.url}/_token", 307), times=None)
    registry.faults.add(faults.redirect(f"{thief.url}/x", 307), method="POST", times=None)
    async with connected(registry, authfile=authfile, policy=ONCE) as client:
        with pytest.raises(Refused):
            await client.fetch_manifest("v1")
    assert thief.requests == []


@pytest.mark.parametrize("code", KINDS)
async def test_a_password_for_a_token_service(
    registry: FakeRegistry, thief: FakeRegistry, bodies: list[bytes], tmp_path: Path, code: int
) -> None:
    """It goes in a header: the redirect is followed without it."""
    registry.require_bearer(USERS)
    authfile = write_auth(tmp_path / "auth.json", registry, auth="dTpnZWhlaW0=")
    registry.faults.add(faults.redirect(f"{thief.url}/_token", code), path="/_token", times=None)
    async with connected(registry, authfile=authfile, policy=ONCE) as client:
        with pytest.raises(LazyfsError):
            await client.fetch_manifest("v1")
    assert thief.requests
    assert secrets_seen(thief, bodies) == []


@pytest.mark.parametrize("step", ["POST", "PUT", "PATCH"])
async def test_uploads_that_go_on_elsewhere(
    registry: FakeRegistry, thief: FakeRegistry, bodies: list[bytes], tmp_path: Path, step: str
) -> None:
    """Location may lead to another host; the registry's password does not go there."""
    registry.require_basic(USERS)
    authfile = write_auth(tmp_path / "auth.json", registry, auth="dTpnZWhlaW0=")
    location = f"{thief.url}/upload?state=1"
    if step == "POST":
        registry.faults.add(
            lambda request, answer: Answer(202, {"Location": location}), method="POST", skip=1
        )
    else:
        registry.faults.add(faults.redirect(location, 307), method=step, times=None)
    async with connected(registry, authfile=authfile, policy=ONCE) as client:
        pusher = await client._pusher()
        pusher._whole_limit, pusher._piece_size = (10, 10) if step == "PATCH" else (1000, 1000)
        blob = b"something to push"
        with pytest.raises(LazyfsError):
            await pusher.push_blob(described(blob), blob)
    assert thief.requests
    assert secrets_seen(thief, bodies) == []
    assert not any("authorization" in each.headers for each in thief.requests)
    assert not any("cookie" in each.headers for each in thief.requests)


async def test_cookies_are_neither_kept_nor_sent(
    registry: FakeRegistry, thief: FakeRegistry
) -> None:
    blob = stored(registry, b"x" * 100)
    registry.faults.add(
        lambda request, answer: replace(
            answer, headers={**answer.headers, "Set-Cookie": "session=1"}
        ),
        times=None,
    )
    async with connected(registry) as client:
        for _ in range(3):
            await client.fetch_blob(blob, limit=1000)
    assert not any("cookie" in each.headers for each in registry.requests)


# --insecure-skip-verify: for the registry's own host.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if reason := certificates.why_missing():
        pytest.skip(reason)
    return certificates.make_certificates(tmp_path_factory.mktemp("certificates"))


async def test_only_the_registrys_own_host_is_believed_unseen(made: Certificates) -> None:
    """Token services, redirects and mirrors on other hosts show a certificate that is good."""
    with ExitStack() as stack:
        own = stack.enter_context(FakeRegistry(tls=made.server))
        other = stack.enter_context(FakeRegistry(address="127.0.0.2", tls=made.server))
        transport = Transport(
            AccessOptions(environment={}),
            SourceStatistics(),
            tls=endpoints.Tls(is_verified=False),
            origin=("https", "127.0.0.1", own.port),
        )
        try:
            answer = await transport.send("GET", f"https://127.0.0.1:{own.port}/v2/", {})
            assert answer.status == 200
            await answer.aclose()
            with pytest.raises(TlsRefused, match="CERTIFICATE_VERIFY_FAILED"):
                await transport.send("GET", f"https://127.0.0.2:{other.port}/_token", {})
            # And in the other order: pools are shared by what is believed only.
            answer = await transport.send("GET", f"https://127.0.0.1:{own.port}/v2/", {})
            await answer.aclose()
        finally:
            await transport.aclose()
        assert other.requests == []
