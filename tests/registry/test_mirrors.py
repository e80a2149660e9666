"""Several endpoints: who is asked first, what moves on to the next one, and who learns what."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lazyfs.digest import DigestMismatch, digest_of
from lazyfs.errors import AccessDenied, NotFound, Unavailable, VerificationFailed
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import Reference, parse_reference
from lazyfs.registry.client import RegistryClient
from lazyfs.registry.config.endpoints import ALL, PULL, BadEndpoint, Endpoint, Tls
from lazyfs.registry.config.keychain import BadAuthFile
from lazyfs.registry.config.registries_conf import Blocked
from lazyfs.registry.retry import RetryPolicy
from lazyfs.registry.source import AccessOptions
from lazyfs.registry.transport import BadCertificate
from tests.support.registries import certificates, faults
from tests.support.registries.certificates import Certificates
from tests.support.registries.clients import FAST, NAME, described, read_range
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 3000
MANIFEST = b'{"schemaVersion": 2, "config": {}, "layers": []}'
BLOB = described(DATA)


class Site:
    """A mirror and a registry, with the same content."""

    def __init__(self, mirror: FakeRegistry, origin: FakeRegistry) -> None:
        self.mirror, self.origin = mirror, origin
        for registry in (mirror, origin):
            registry.put_blob(NAME, DATA)
            self.digest = registry.put_manifest(NAME, MANIFEST, "application/x", "v1")

    def endpoints(self, **changes: object) -> list[Endpoint]:
        mirror = {
            "is_origin": False,
            "capabilities": frozenset({PULL, "resolve"}),
            "namespace": "r.example",
            **changes,
        }
        return [
            Endpoint(self.mirror.url, self.mirror.host, NAME, **mirror),
            Endpoint(self.origin.url, self.origin.host, NAME),
        ]

    def client(
        self,
        endpoints: list[Endpoint] | None = None,
        *,
        policy: RetryPolicy = FAST,
        **options: object,
    ) -> RegistryClient:
        reference = parse_reference(f"{self.origin.host}/{NAME}")
        assert isinstance(reference, Reference)
        access = AccessOptions(connect_seconds=1, idle_seconds=1, **options)
        return RegistryClient(
            reference, access, policy=policy, endpoints=endpoints or self.endpoints()
        )


@pytest.fixture
def site() -> Iterator[Site]:
    with FakeRegistry() as mirror, FakeRegistry() as origin:
        yield Site(mirror, origin)


async def test_the_mirror_is_asked_and_told_for_whom(site: Site) -> None:
    client = site.client()
    assert (await client.fetch_manifest("v1")).data == MANIFEST
    assert await read_range(client, BLOB, 5, 5000) == DATA[5:5000]
    await client.aclose()
    assert site.origin.requests == []
    assert [each.target.partition("?")[2] for each in site.mirror.requests] == ["ns=r.example"] * 2
    first, second = client.endpoints()
    assert (first.requests, first.failures, first.reason) == (2, 0, None)
    assert (second.requests, second.is_origin) == (0, True)


async def test_a_mirror_without_resolve_is_asked_by_digest_only(site: Site) -> None:
    client = site.client(site.endpoints(capabilities=frozenset({PULL})))
    document = await client.fetch_manifest("v1")
    assert site.mirror.requests == []
    assert (await client.fetch_manifest(document.digest)).data == MANIFEST
    await client.fetch_blob(BLOB, limit=BLOB.size)
    await client.aclose()
    assert [each.path.rsplit("/", 2)[1] for each in site.mirror.requests] == ["manifests", "blobs"]
    assert len(site.origin.requests) == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        faults.status(401),
        faults.status(403),
        faults.status(404),
        faults.status(400),
        faults.status(429, {"Retry-After": "3600"}),
        faults.status(500),
        faults.cut(-1),
        faults.cut(1000),
        faults.hang(),
        faults.hang(1000),
        faults.compressed(),
        faults.status(416),
        faults.content_range("bytes 1-2/3"),
        faults.redirect("http://[::1"),
    ],
)
async def test_what_moves_on_to_the_next_endpoint(site: Site, behaviour: faults.Behaviour) -> None:
    site.mirror.faults.add(behaviour, times=None)
    client = site.client()
    with trio.fail_after(20):
        assert await read_range(client, BLOB, 7, 500_007) == DATA[7:500_007]
        document = await client.fetch_manifest("v1")
    await client.aclose()
    assert document.data == MANIFEST
    mirror, origin = client.endpoints()
    assert mirror.failures >= 1
    assert mirror.reason
    assert mirror.when
    assert origin.failures == 0


async def test_the_next_one_goes_on_where_the_body_stopped(site: Site) -> None:
    site.mirror.faults.add(faults.cut(300_000), times=1)
    site.mirror.faults.add(faults.status(404), times=None)
    client = site.client()
    assert await read_range(client, BLOB, 0) == DATA
    await client.aclose()
    ranges = [each.range for each in site.origin.requests]
    assert len(ranges) == 1
    assert ranges[0] is not None
    start = int(ranges[0].removeprefix("bytes=").partition("-")[0])
    assert 0 < start <= 300_000


async def test_a_slow_mirror_is_left_for_a_faster_place(site: Site) -> None:
    """What it has brought is kept; and it is asked last for a while."""
    client = site.client()
    assert await read_range(client, BLOB, 0) == DATA  # so that it is known what fast means
    site.mirror.faults.add(faults.drip(100, 0.02), times=None)  # 5 kB/s: far above the least
    with trio.fail_after(10):
        assert await read_range(client, BLOB, 1) == DATA[1:]
        assert await read_range(client, BLOB, 2) == DATA[2:]
    await client.aclose()
    mirror, origin = client.endpoints()
    assert "bytes a second" in (mirror.reason or "")
    assert mirror.is_avoided
    assert (mirror.requests, origin.requests) == (2, 2)


async def test_a_dead_mirror_costs_once_and_not_for_each_range(site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        endpoints = [Endpoint(dead, "dead", NAME, is_origin=False), site.endpoints()[1]]
        client = site.client(endpoints)
        for start in range(5):
            assert await read_range(client, BLOB, start, start + 9) == DATA[start : start + 9]
        await client.aclose()
    first, second = client.endpoints()
    assert first.requests == 2, "one try and one more"
    assert first.is_avoided
    assert "cannot reach" in (first.reason or "")
    assert second.requests == 5


async def test_a_blob_that_the_mirror_lacks_is_not_asked_for_each_time(site: Site) -> None:
    other = b"only at the origin" * 100
    site.origin.put_blob(NAME, other)
    client = site.client()
    for _ in range(3):
        assert await client.fetch_blob(described(other), limit=9999) == other
        assert await read_range(client, BLOB, 0, 9) == DATA[:9]
    await client.aclose()
    assert site.mirror.count(path=str(digest_of(other))) == 1
    assert site.mirror.count(path=str(BLOB.digest)) == 3
    assert not client.endpoints()[0].is_avoided


async def test_who_served_wrong_bytes_is_asked_last_for_that_blob(site: Site) -> None:
    site.mirror.faults.add(faults.flip(100), times=None)
    client = site.client()
    wrong = await read_range(client, BLOB, 50, 150)
    assert wrong != DATA[50:150]
    assert client.blame(BLOB, 50, 150, "digest differs")
    assert await read_range(client, BLOB, 50, 150) == DATA[50:150]
    mirror, origin = client.endpoints()
    assert mirror.reason is not None
    assert "digest differs" in mirror.reason
    assert origin.failures == 0
    assert not client.blame(BLOB, 50, 150, "again"), "nobody is left"
    assert not client.blame(described(b"never read"), 0, 1, "?")
    await client.aclose()


async def test_the_right_one_is_blamed_when_two_served_one_range(site: Site) -> None:
    site.mirror.faults.add(faults.cut(300_000), times=1)
    site.mirror.faults.add(faults.status(404), times=None)
    client = site.client()
    await read_range(client, BLOB, 0)
    assert not client.blame(BLOB, 600_000, 600_100, "came from the origin"), "one has it no more"
    assert [each.failures for each in client.endpoints()] == [1, 1]
    assert "came from the origin" in (client.endpoints()[1].reason or "")
    await client.aclose()


async def test_a_small_blob_with_wrong_bytes_comes_from_the_next_one(site: Site) -> None:
    site.mirror.faults.add(faults.flip(3), path="/blobs/", times=None)
    site.mirror.faults.add(faults.replaced(b"{}"), path="/manifests/", times=None)
    client = site.client()
    assert await client.fetch_blob(BLOB, limit=BLOB.size) == DATA
    assert (await client.fetch_manifest(digest_of(MANIFEST))).data == MANIFEST
    site.origin.faults.add(faults.flip(3), path="/blobs/", times=None)
    with pytest.raises(DigestMismatch):
        await client.fetch_blob(BLOB, limit=BLOB.size)
    await client.aclose()


async def test_a_blob_of_another_size_is_the_mirrors_fault(site: Site) -> None:
    site.mirror.content.put_blob(NAME, DATA + b"x", str(BLOB.digest))
    client = site.client()
    assert await read_range(client, BLOB, 0, 9) == DATA[:9]
    await client.aclose()
    assert "size" in (client.endpoints()[0].reason or "")


@pytest.mark.parametrize(
    ("mirror", "origin", "family"),
    [
        (404, 500, Unavailable),
        (500, 404, NotFound),
        (500, 401, AccessDenied),
        (401, 404, NotFound),
    ],
)
async def test_the_origins_word_counts_when_all_fail(
    site: Site, mirror: int, origin: int, family: type[Exception]
) -> None:
    site.mirror.faults.add(faults.status(mirror), times=None)
    site.origin.faults.add(faults.status(origin), times=None)
    client = site.client()
    with pytest.raises(family) as caught:
        await client.fetch_manifest("v1")
    await client.aclose()
    assert f"status {origin}" in str(caught.value)
    assert f"before that: GET {site.mirror.url}" in str(caught.value), "and the mirror's is told"


async def test_credentials_of_the_origin_stay_there(site: Site, tmp_path: Path) -> None:
    for registry in (site.mirror, site.origin):
        registry.require_basic({"u": "geheim"})
    authfile = tmp_path / "auth.json"
    entry = {"auth": "dTpnZWhlaW0="}
    authfile.write_text(json.dumps({"auths": {site.origin.host: entry}}))
    for options in ({"authfile": authfile}, {"login": ("u", "geheim"), "environment": {}}):
        client = site.client(**options)
        assert (await client.fetch_manifest("v1")).data == MANIFEST
        await client.aclose()
        assert site.mirror.requests
        assert all("authorization" not in each.headers for each in site.mirror.requests)
        site.mirror.forget_requests()
    authfile.write_text(json.dumps({"auths": {site.mirror.host: entry}}))
    site.origin.forget_requests()
    client = site.client(authfile=authfile)
    await client.fetch_manifest("v1")
    await client.aclose()
    assert site.origin.requests == [], "a mirror has credentials under its own name"
    client = site.client(authfile=authfile, is_anonymous=True)
    with pytest.raises(AccessDenied):
        await client.fetch_manifest("v1")
    await client.aclose()


async def test_a_broken_auth_file_is_not_a_reason_to_go_elsewhere(
    site: Site, tmp_path: Path
) -> None:
    site.mirror.require_basic({"u": "p"})
    (tmp_path / "auth.json").write_text("{")
    client = site.client(authfile=tmp_path / "auth.json")
    with pytest.raises(BadAuthFile):
        await client.fetch_manifest("v1")
    await client.aclose()
    assert site.origin.requests == []


async def test_headers_go_to_their_endpoint_only(site: Site) -> None:
    site.mirror.redirect_blobs(site.origin.url)
    site.origin.redirect_blobs()
    site.origin.share_signatures(site.mirror)
    client = site.client(site.endpoints(headers=(("x-token", "geheim"),)))
    assert await read_range(client, BLOB, 0, 9) == DATA[:9]
    await client.aclose()
    assert site.mirror.requests[0].headers["x-token"] == "geheim"
    assert "x-token" not in site.origin.requests[0].headers


async def test_only_the_registry_is_written_to(site: Site) -> None:
    client = site.client()
    new = described(b"new")
    await client.push_blob(new, b"new")
    assert await client.has_blob(new)
    await client.push_manifest(MANIFEST, "application/x", "v2")
    await client.aclose()
    assert site.mirror.requests == []
    reader = site.client([Endpoint(site.origin.url, "r", NAME, capabilities=ALL - {"push"})])
    with pytest.raises(Blocked):
        await reader.push_blob(new, b"new")
    await reader.aclose()


async def test_nobody_who_may_resolve(site: Site) -> None:
    client = site.client([Endpoint(site.origin.url, "r", NAME, capabilities=frozenset({PULL}))])
    with pytest.raises(BadEndpoint, match="no configured endpoint may be asked"):
        await client.fetch_manifest("v1")
    await client.aclose()


async def test_what_a_registry_warns_of_is_logged_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.mirror.warn("this mirror closes in May")
    client = site.client()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await client.fetch_manifest("v1")
    await client.aclose()
    assert [each.message for each in caplog.records] == [
        f"{site.mirror.host} warns: this mirror closes in May"
    ]


# TLS of an endpoint's own


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if reason := certificates.why_missing():
        pytest.skip(reason)
    return certificates.make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("trusts", ["authority", "skip", "nobody"])
async def test_each_endpoint_has_its_own_tls(made: Certificates, trusts: str) -> None:
    tls = {
        "authority": Tls(authorities=(str(made.authority),)),
        "skip": Tls(is_verified=False),
        "nobody": Tls(),
    }[trusts]
    with FakeRegistry(tls=made.server) as mirror, FakeRegistry() as origin:
        site = Site(mirror, origin)
        client = site.client(site.endpoints(tls=tls))
        assert await read_range(client, BLOB, 0, 9) == DATA[:9]
        await client.aclose()
        served = "origin" if trusts == "nobody" else "mirror"
        assert bool(mirror.requests) == (served == "mirror")
    if trusts == "nobody":
        assert "CERTIFICATE_VERIFY_FAILED" in (client.endpoints()[0].reason or "")


async def test_a_certificate_is_shown_to_its_endpoint_only(tmp_path: Path) -> None:
    if reason := certificates.why_missing():
        pytest.skip(reason)
    made = certificates.make_certificates(tmp_path)
    made.server.load_verify_locations(made.authority)
    made.server.verify_mode = certificates.ssl.CERT_REQUIRED
    own = ((str(made.authority), str(tmp_path / "key.pem")),)
    with FakeRegistry(tls=made.server) as mirror, FakeRegistry(tls=made.server) as elsewhere:
        site = Site(mirror, elsewhere)
        trusted = (str(made.authority),)
        (endpoint, _) = site.endpoints(tls=Tls(trusted, own))
        client = site.client([endpoint])
        assert await read_range(client, BLOB, 0, 9) == DATA[:9]
        mirror.faults.add(faults.redirect(elsewhere.url + "{path}"), times=None)
        with pytest.raises(Unavailable):
            await read_range(client, BLOB, 0, 9)
        await client.aclose()
        assert elsewhere.requests == []


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_certificates_that_cannot_be_used(
    site: Site, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    for tls in (Tls(authorities=(str(path),)), Tls(clients=((str(path), None),))):
        endpoint = Endpoint("https://127.0.0.1:1", "r", NAME, tls=tls)
        client = site.client([endpoint])
        with pytest.raises(BadCertificate, match=r"ca\.pem"):
            await client.fetch_manifest("v1")
        await client.aclose()


async def test_a_blob_longer_than_said_is_refused_by_all(site: Site) -> None:
    client = site.client()
    wrong = Descriptor("", BLOB.digest, BLOB.size + 1)
    with pytest.raises(VerificationFailed):
        await client.fetch_blob(wrong, limit=1 << 30)
    await client.aclose()
