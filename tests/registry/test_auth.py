"""Basic authentication and token services, with tokens that expire."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.errors import AccessDenied
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.config.errors import BadAnswer, Denied, Overloaded
from lazyfs.registry.config.keychain import BadAuthFile
from tests.support.registries import faults
from tests.support.registries.clients import NAME, ONCE, connected, described, read_range, stored
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer, Request

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 10
CLOCK = trio.testing.MockClock(rate=1.0)
"""Runs as the real one does, since sockets are real, and can be set forward."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": CLOCK}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.put_manifest(NAME, b"{}", "application/x", "v1")
        yield registry


@pytest.fixture
def authfile(tmp_path: Path, registry: FakeRegistry) -> Path:
    path = tmp_path / "auth.json"
    log_in(path, registry)
    return path


def log_in(path: Path, registry: FakeRegistry, auth: str = "dTpnZWhlaW0=") -> None:
    """Write credentials as ``docker login`` does; by default u:geheim."""
    write_entry(path, registry, {"auth": auth})


def write_entry(path: Path, registry: FakeRegistry, entry: dict[str, str]) -> None:
    path.write_text(json.dumps({"auths": {registry.host: entry}}))


async def fetch(client: RegistryClient) -> bytes:
    return (await client.fetch_manifest("v1")).data


# Basic.


async def test_basic(registry: FakeRegistry, authfile: Path) -> None:
    registry.require_basic({"u": "geheim"})
    async with connected(registry, authfile=authfile) as client:
        for _ in range(3):
            assert await fetch(client) == b"{}"
    assert [entry.status for entry in registry.requests] == [401, 200, 200, 200]


async def test_without_credentials_access_is_denied_with_a_hint(registry: FakeRegistry) -> None:
    registry.require_basic({"u": "geheim"})
    async with connected(registry) as client:
        with pytest.raises(AccessDenied, match="401, UNAUTHORIZED") as caught:
            await fetch(client)
    assert f"docker login {registry.host}" in str(caught.value)
    assert registry.count() == 1


async def test_wrong_credentials_are_tried_once(registry: FakeRegistry, authfile: Path) -> None:
    registry.require_basic({"u": "other"})
    async with connected(registry, authfile=authfile) as client:
        with pytest.raises(Denied) as caught:
            await fetch(client)
    assert registry.count() == 2
    assert "geheim" not in str(caught.value)


async def test_a_new_login_counts_at_once(registry: FakeRegistry, authfile: Path) -> None:
    registry.require_basic({"u": "geheim"})
    async with connected(registry, authfile=authfile) as client:
        await fetch(client)
        registry.require_basic({"new": "secret"})
        with pytest.raises(Denied):
            await fetch(client)
        log_in(authfile, registry, "bmV3OnNlY3JldA==")
        assert await fetch(client) == b"{}"


async def test_a_broken_auth_file_is_named(registry: FakeRegistry, authfile: Path) -> None:
    registry.require_basic({"u": "geheim"})
    authfile.write_text("{")
    async with connected(registry, authfile=authfile) as client:
        with pytest.raises(BadAuthFile, match=str(authfile)):
            await fetch(client)


async def test_the_auth_file_is_not_touched_where_nobody_asks(registry: FakeRegistry) -> None:
    async with connected(registry, authfile=Path("/nowhere")) as client:
        assert await fetch(client) == b"{}"


# Tokens.


async def test_an_anonymous_token(registry: FakeRegistry) -> None:
    registry.require_bearer(is_public=True)
    async with connected(registry) as client:
        for _ in range(3):
            assert await fetch(client) == b"{}"
    assert [(entry.path, entry.status) for entry in registry.requests] == [
        ("/v2/team/app/manifests/v1", 401),
        ("/_token", 200),
        *[("/v2/team/app/manifests/v1", 200)] * 3,
    ]
    assert "authorization" not in registry.requests[1].headers


async def test_a_token_for_a_user(registry: FakeRegistry, authfile: Path) -> None:
    registry.require_bearer({"u": "geheim"})
    async with connected(registry, authfile=authfile) as client:
        assert await fetch(client) == b"{}"
    assert registry.requests[0].headers.get("authorization") is None
    assert registry.requests[1].headers["authorization"].startswith("Basic ")
    assert registry.requests[2].headers["authorization"].startswith("Bearer ")
    assert "scope=repository%3Ateam%2Fapp%3Apull" in registry.requests[1].target


async def test_a_token_for_an_identity_token(registry: FakeRegistry, authfile: Path) -> None:
    registry.require_bearer(identity_tokens={"geheim": "u"})
    write_entry(authfile, registry, {"identitytoken": "geheim"})
    async with connected(registry, authfile=authfile) as client:
        assert await fetch(client) == b"{}"
    assert registry.requests[1].method == "POST"
    assert "geheim" not in registry.requests[1].target


async def test_a_registry_token_is_used_as_it_is(registry: FakeRegistry, authfile: Path) -> None:
    registry.require_bearer()
    write_entry(authfile, registry, {"registrytoken": "geheim"})
    async with connected(registry, authfile=authfile) as client:
        with pytest.raises(Denied):
            await fetch(client)
    assert registry.requests[1].headers["authorization"] == "Bearer geheim"
    assert registry.count(path="/_token") == 0


async def test_a_token_service_elsewhere(registry: FakeRegistry, authfile: Path) -> None:
    with FakeRegistry() as service:
        service.require_bearer({"u": "geheim"})
        registry.require_bearer(realm=f"{service.url}/_token")
        registry.share_tokens(service)
        async with connected(registry, authfile=authfile) as client:
            assert await fetch(client) == b"{}"
        assert service.requests[0].headers["authorization"].startswith("Basic ")
        service.faults.add(faults.redirect(f"{registry.url}/evil"))
        registry.expire_tokens()
        async with connected(registry, authfile=authfile, policy=ONCE) as client:
            with pytest.raises(AccessDenied):
                await fetch(client)
    evil = next(entry for entry in registry.requests if entry.path == "/evil")
    assert "authorization" not in evil.headers, "credentials left the token service"


async def test_a_token_that_expires_is_replaced_in_time(registry: FakeRegistry) -> None:
    registry.require_bearer(is_public=True, lifetime_seconds=60)
    async with connected(registry) as client:
        await fetch(client)
        CLOCK.jump(47)
        await fetch(client)
        assert registry.tokens_issued == 1
        CLOCK.jump(2)  # past 80 % of a minute
        await fetch(client)
        assert registry.tokens_issued == 2
    assert registry.count(status=401) == 1, "replaced before it was refused"


async def test_a_token_that_is_refused_early_is_replaced(registry: FakeRegistry) -> None:
    registry.require_bearer(is_public=True)
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        for _ in range(3):
            assert await read_range(client, blob, 5, 50) == DATA[5:50]
            registry.expire_tokens()
        assert client.statistics.errors == 0
    assert registry.tokens_issued == 3


async def test_one_fetches_a_token_for_all_who_wait(registry: FakeRegistry) -> None:
    registry.require_bearer(is_public=True)
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(read_range, client, blob, number, number + 50)
            registry.expire_tokens()
    assert registry.tokens_issued == 3


async def test_a_failed_token_request_counts_for_all_who_wait(registry: FakeRegistry) -> None:
    registry.require_bearer(is_public=True)
    gate = threading.Event()

    def fail_later(request: Request, answer: Answer) -> Answer:
        gate.wait(10)
        return faults.status(500)(request, answer)

    registry.faults.add(fail_later, path="/_token", times=None)
    errors = []

    async def attempt() -> None:
        try:
            await fetch(client)
        except Overloaded as error:
            errors.append(error)

    async with connected(registry, policy=ONCE) as client, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(attempt)
        while registry.count(status=401) < 20:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.set()
    assert len(errors) == 20
    assert registry.count(path="/_token") == 1


async def test_who_is_cancelled_while_fetching_leaves_the_others_going(
    registry: FakeRegistry,
) -> None:
    registry.require_bearer(is_public=True)
    registry.faults.add(faults.hang(), path="/_token")
    got = []

    async with connected(registry) as client, trio.open_nursery() as nursery:

        async def wait() -> None:
            got.append(await fetch(client))

        first = trio.CancelScope()

        async def begin() -> None:
            with first:
                await fetch(client)

        nursery.start_soon(begin)
        while registry.count(path="/_token") < 1:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        first.cancel()
    assert got == [b"{}"]


async def test_a_token_service_that_is_down_does_not_matter_while_the_token_is_good(
    registry: FakeRegistry,
) -> None:
    registry.require_bearer(is_public=True, lifetime_seconds=100)
    async with connected(registry, policy=ONCE) as client:
        await fetch(client)
        registry.faults.add(faults.status(503), path="/_token", times=None)
        CLOCK.jump(85)
        for _ in range(5):
            assert await fetch(client) == b"{}"
        assert registry.count(path="/_token") == 2, "not asked for again with every request"
        CLOCK.jump(6)
        assert await fetch(client) == b"{}"
        assert registry.count(path="/_token") == 3
        CLOCK.jump(10)
        with pytest.raises(Overloaded):
            await fetch(client)
        registry.faults.clear()
        assert await fetch(client) == b"{}"


async def test_the_token_service_refuses_the_credentials(
    registry: FakeRegistry, authfile: Path
) -> None:
    registry.require_bearer({"u": "other"})
    async with connected(registry, authfile=authfile) as client:
        with pytest.raises(Denied) as caught:
            await fetch(client)
    assert str(authfile) in str(caught.value), "says whose credentials they were"
    assert "geheim" not in str(caught.value)


async def test_a_denied_request_is_not_repeated_with_a_fresh_token(registry: FakeRegistry) -> None:
    registry.require_bearer(is_public=True)
    registry.faults.add(faults.error(403, "DENIED", "no"), path="manifests", times=None, skip=1)
    async with connected(registry) as client:
        with pytest.raises(Denied, match="403, DENIED"):
            await fetch(client)
    assert registry.tokens_issued == 1


async def test_a_denied_request_is_repeated_after_an_old_token(registry: FakeRegistry) -> None:
    """Some registries say 403 where a token has expired."""
    registry.require_bearer(is_public=True)
    async with connected(registry) as client:
        await fetch(client)
        CLOCK.jump(60)
        registry.faults.add(faults.error(403, "DENIED", "token has expired"), path="manifests")
        assert await fetch(client) == b"{}"
    assert registry.tokens_issued == 2


@pytest.mark.parametrize(
    ("challenge", "error"),
    [
        ("", Denied),
        ("Negotiate", Denied),
        ("Basic", Denied),
        ('Bearer service="no realm"', Denied),
        ('Bearer realm="ftp://x/"', BadAnswer),
        ('Bearer realm="http://u:p@x/"', BadAnswer),
    ],
)
async def test_challenges_that_cannot_be_met(
    registry: FakeRegistry, challenge: str, error: type[Exception]
) -> None:
    registry.faults.add(faults.status(401, {"WWW-Authenticate": challenge}), times=None)
    async with connected(registry, policy=ONCE) as client:
        with pytest.raises(error):
            await fetch(client)


async def test_secrets_are_neither_logged_nor_shown(
    registry: FakeRegistry, authfile: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.require_bearer({"u": "geheim"})
    caplog.set_level(logging.DEBUG)
    async with connected(registry, authfile=authfile) as client:
        await fetch(client)
        registry.expire_tokens()
        registry.faults.add(faults.status(500), times=2)
        await fetch(client)
        with pytest.raises(Exception, match="404"):
            await read_range(client, described(b"x"), 0, 1)
    secrets = {"geheim", "dTpnZWhlaW0"}
    sent = [entry.headers.get("authorization", "") for entry in registry.requests]
    secrets |= {header.partition(" ")[2] for header in sent if header}
    assert len(secrets) == 5, "the password, the header that holds it, and two tokens"
    own = [record for record in caplog.records if record.name.startswith("lazyfs")]
    assert own
    for record in own:
        assert not any(secret in record.getMessage() for secret in secrets)
