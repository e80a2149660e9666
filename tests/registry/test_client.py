"""Manifests and whole blobs: verified, bounded, typed; and what goes along with them."""

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lazyfs.digest import DigestMismatch, digest_of
from lazyfs.errors import VerificationFailed
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from lazyfs.registry.config.errors import (
    BadAnswer,
    ContentRefused,
    Missing,
    Overloaded,
    Refused,
    TooLarge,
)
from lazyfs.registry.push import with_query
from tests.support.formats.images import layer_from_fixture, make_layout
from tests.support.registries import faults
from tests.support.registries.clients import NAME, ONCE, connected, described, stored
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer, Request

pytestmark = pytest.mark.anyio

MANIFEST = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()
DATA = bytes(range(256)) * 1000
SECONDS = 20


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def manifest(registry: FakeRegistry) -> str:
    """The digest of a manifest tagged v1."""
    return registry.put_manifest(NAME, MANIFEST, OCI_MANIFEST, "v1")


# Connections.


async def test_connections_that_are_made_first_are_used(
    registry: FakeRegistry, manifest: str
) -> None:
    held = threading.Barrier(3)

    def hold(request: Request, answer: Answer) -> Answer:
        held.wait(SECONDS)  # three at a time
        return answer

    registry.faults.add(hold, path="/manifests/", times=3)
    async with connected(registry) as client:
        await client.connect(3)
        assert registry.connections == 3
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.fetch_manifest, "v1")
        assert registry.connections == 3
    assert [each.target for each in registry.requests[:3]] == ["/v2/"] * 3


@pytest.mark.parametrize("behaviour", [faults.status(401), faults.status(500), faults.cut(-1)])
async def test_connecting_in_vain(registry: FakeRegistry, behaviour: faults.Behaviour) -> None:
    registry.faults.add(behaviour, times=None)
    async with connected(registry) as client:
        await client.connect(2)
        assert registry.count() == 2, "nothing is tried again"


# Manifests.


async def test_all_types_are_asked_for(registry: FakeRegistry, manifest: str) -> None:
    async with connected(registry) as client:
        document = await client.fetch_manifest("v1")
    assert document.data == MANIFEST
    assert document.digest == digest_of(MANIFEST)
    accepted = registry.requests[0].headers["accept"]
    for media_type in (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX):
        assert media_type in accepted


async def test_received_bytes_must_have_the_digest(registry: FakeRegistry, manifest: str) -> None:
    rule = registry.faults.add(faults.replaced(MANIFEST + b" "), times=None)
    async with connected(registry) as client:
        with pytest.raises(DigestMismatch, match=f"expected {manifest}"):
            await client.fetch_manifest(digest_of(MANIFEST))
    assert rule.hits == 2, "asked for once more"


async def test_bytes_that_were_wrong_once_are_fetched_again(
    registry: FakeRegistry, manifest: str
) -> None:
    registry.faults.add(faults.flip(5))
    async with connected(registry) as client:
        assert (await client.fetch_manifest(digest_of(MANIFEST))).data == MANIFEST


async def test_what_the_header_says_of_the_digest_does_not_count(
    registry: FakeRegistry, manifest: str
) -> None:
    lie = str(digest_of(b"other"))
    registry.faults.add(faults.headers({"Docker-Content-Digest": lie}), times=None)
    async with connected(registry) as client:
        for reference in ("v1", digest_of(MANIFEST)):
            assert (await client.fetch_manifest(reference)).digest == digest_of(MANIFEST)


@pytest.mark.parametrize(
    ("stated", "data", "media_type"),
    [
        (DOCKER_MANIFEST, MANIFEST, DOCKER_MANIFEST),
        (f"{OCI_MANIFEST}; charset=utf-8", MANIFEST, OCI_MANIFEST),
        ("application/json", MANIFEST, OCI_MANIFEST),
        ("text/plain; charset=utf-8", b'{"manifests": []}', OCI_INDEX),
        ("", b'{"mediaType": "application/x", "config": {}}', "application/x"),
        ("application/octet-stream", b"\xff", "application/octet-stream"),
        ("application/json", b"[" * 100_000, "application/json"),
    ],
)
async def test_the_media_type(
    registry: FakeRegistry, stated: str, data: bytes, media_type: str
) -> None:
    registry.put_manifest(NAME, data, stated, "v1")
    async with connected(registry) as client:
        assert (await client.fetch_manifest("v1")).media_type == media_type


async def test_a_manifest_has_4_mib_at_most(registry: FakeRegistry) -> None:
    registry.put_manifest(NAME, bytes(4 << 20), OCI_MANIFEST, "fits")
    registry.put_manifest(NAME, bytes((4 << 20) + 1), OCI_MANIFEST, "large")
    registry.put_manifest(NAME, bytes(100 << 20), OCI_MANIFEST, "huge")
    async with connected(registry) as client:
        assert len((await client.fetch_manifest("fits")).data) == 4 << 20
        for tag in ("large", "huge"):
            with pytest.raises(TooLarge, match="larger than 4194304 bytes"):
                await client.fetch_manifest(tag)
        assert client.statistics.received_size < 13 << 20


async def test_a_compressed_manifest_is_inflated(registry: FakeRegistry, manifest: str) -> None:
    registry.faults.add(faults.compressed())
    async with connected(registry) as client:
        assert (await client.fetch_manifest("v1")).data == MANIFEST


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(bytes(100 << 20), 1), "gzip"),
        (gzip.compress(MANIFEST)[:-5] + b"\0" * 50, "gzip"),
    ],
)
async def test_compressed_manifests_that_are_refused(
    registry: FakeRegistry, manifest: str, body: bytes, encoding: str
) -> None:
    registry.faults.add(
        faults.both(faults.replaced(body), faults.headers({"Content-Encoding": encoding}))
    )
    async with connected(registry, policy=ONCE) as client:
        with pytest.raises((BadAnswer, TooLarge)):
            await client.fetch_manifest("v1")


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "br", "aws-chunked"])
async def test_a_label_on_what_is_not_compressed_does_not_matter(
    registry: FakeRegistry, manifest: str, encoding: str
) -> None:
    registry.faults.add(faults.headers({"Content-Encoding": encoding}), times=None)
    async with connected(registry, policy=ONCE) as client:
        assert (await client.fetch_manifest("v1")).data == MANIFEST


@pytest.mark.parametrize(
    "behaviour",
    [faults.status(500), faults.status(429), faults.cut(-1), faults.cut(0), faults.cut(10)],
)
async def test_a_manifest_is_asked_for_again(
    registry: FakeRegistry, manifest: str, behaviour: faults.Behaviour
) -> None:
    registry.faults.add(behaviour, times=2)
    async with connected(registry) as client:
        assert (await client.fetch_manifest("v1")).data == MANIFEST


async def test_the_registrys_own_words(registry: FakeRegistry) -> None:
    async with connected(registry) as client:
        with pytest.raises(Missing) as caught:
            await client.fetch_manifest("v9")
    assert str(caught.value) == (
        f"GET {registry.url}/v2/team/app/manifests/v9: "
        "HTTP status 404, MANIFEST_UNKNOWN (manifest unknown)\n"
        "check the registry, the repository and the tag"
    )


async def test_warnings_are_kept_once(registry: FakeRegistry, manifest: str) -> None:
    registry.warn('this repository\tmoves \\"soon\\"')
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        assert client.warnings == ()
        for _ in range(3):
            await client.fetch_manifest("v1")
            await client.fetch_blob(blob, limit=1 << 20)
        assert client.warnings == ('this repository\\tmoves "soon"',)


@pytest.mark.parametrize(
    ("header", "warnings"),
    [
        ('299 - "a"', ("a",)),
        ('299 - "a", 299 - "b", 299 - "a"', ("a", "b")),
        ('199 - "not meant for people"', ()),
        ("299 - unquoted", ()),
        ('299 - "', ()),
        ('299 - "' + "x" * 400 + '"', ("x" * 299 + "…",)),
    ],
)
async def test_warnings(
    registry: FakeRegistry, manifest: str, header: str, warnings: tuple[str, ...]
) -> None:
    registry.faults.add(faults.headers({"Warning": header}))
    async with connected(registry) as client:
        await client.fetch_manifest("v1")
        assert client.warnings == warnings


# Whole blobs.


async def test_a_whole_blob_is_verified(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.flip(1000), times=None)
    async with connected(registry) as client:
        with pytest.raises(VerificationFailed, match=str(blob.digest)):
            await client.fetch_blob(blob, limit=1 << 20)


async def test_a_whole_blob_survives_a_broken_body(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.cut(1000))
    async with connected(registry) as client:
        assert await client.fetch_blob(blob, limit=1 << 20) == DATA


# A registry that serves a layout from disk.


async def test_a_layout_is_served_under_every_name(tmp_path: Path) -> None:
    layer = layer_from_fixture("estargz-go-0.12/edge-default")
    digest = make_layout(tmp_path, [layer], tag="v1")
    with FakeRegistry(tmp_path) as registry:
        async with connected(registry, "any/name") as client:
            assert (await client.fetch_manifest("v1")).digest == digest
            blob = Descriptor("", layer.digest, layer.size)
            assert await client.fetch_blob(blob, limit=1 << 30) == layer.blob


# Pushing.


async def test_a_blob_is_pushed_in_one_piece(registry: FakeRegistry) -> None:
    async with connected(registry, plain_http=True) as client:
        await client.push_blob(described(DATA), DATA)
    assert [(entry.method, entry.status) for entry in registry.requests] == [
        ("POST", 202),
        ("PUT", 201),
    ]
    put = registry.requests[1]
    assert put.target.endswith(f"?state=0&digest={described(DATA).digest}")
    assert put.headers["content-length"] == str(len(DATA))


async def test_a_large_file_is_streamed(registry: FakeRegistry, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA * 20)
    async with connected(registry) as client:
        await client.push_blob(described(DATA * 20), path)
        assert await client.fetch_blob(described(DATA * 20), limit=1 << 30) == DATA * 20
    assert "transfer-encoding" not in registry.requests[1].headers


@pytest.mark.parametrize(
    ("fault", "method"),
    [
        (faults.status(503), "POST"),
        (faults.status(500), "PUT"),
        (faults.cut(-1), "POST"),
        (faults.cut(-1), "PUT"),
    ],
)
async def test_a_push_that_fails_is_done_again(
    registry: FakeRegistry, tmp_path: Path, fault: faults.Behaviour, method: str
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    registry.faults.add(fault, method=method)
    async with connected(registry) as client:
        await client.push_blob(described(DATA), path)
        assert await client.fetch_blob(described(DATA), limit=1 << 20) == DATA


async def test_a_push_to_a_registry_that_is_down(registry: FakeRegistry) -> None:
    registry.faults.add(faults.status(503), times=None)
    async with connected(registry) as client:
        with pytest.raises(Overloaded):
            await client.push_blob(described(DATA), DATA)


async def test_an_upload_elsewhere_gets_no_authorization(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    authfile = tmp_path / "auth.json"
    authfile.write_text(json.dumps({"auths": {registry.host: {"auth": "dTpw"}}}))
    registry.require_basic({"u": "p"})
    with FakeRegistry() as storage:
        storage.allow_upload("here")
        location = f"{storage.url}/v2/{NAME}/blobs/uploads/here"
        registry.faults.add(faults.status(202, {"Location": location}), method="POST", skip=1)
        async with connected(registry, authfile=authfile) as client:
            await client.push_blob(described(DATA), DATA)
        assert storage.requests[0].method == "PUT"
        assert "authorization" not in storage.requests[0].headers


@pytest.mark.parametrize("code", [307, 308])
async def test_a_redirected_upload_keeps_its_body(registry: FakeRegistry, code: int) -> None:
    registry.allow_upload("there")
    registry.faults.add(
        faults.redirect(f"/v2/{NAME}/blobs/uploads/there?digest={described(DATA).digest}", code),
        method="PUT",
    )
    async with connected(registry) as client:
        await client.push_blob(described(DATA), DATA)
        assert await client.fetch_blob(described(DATA), limit=1 << 20) == DATA


async def test_a_redirect_that_would_lose_the_body_is_refused(registry: FakeRegistry) -> None:
    registry.faults.add(faults.redirect("/elsewhere", 302), method="PUT")
    async with connected(registry) as client:
        with pytest.raises(Refused, match="302"):
            await client.push_blob(described(DATA), DATA)


async def test_the_registry_checks_the_digest_of_a_file(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    wrong = Descriptor("", digest_of(b"other"), len(DATA))
    async with connected(registry) as client:
        with pytest.raises(ContentRefused, match="DIGEST_INVALID"):
            await client.push_blob(wrong, path)


@pytest.mark.parametrize("status", [400, 403, 405, 501])
async def test_where_head_is_refused_a_byte_is_asked_for(
    registry: FakeRegistry, status: int
) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.status(status), method="HEAD", times=None)
    async with connected(registry, plain_http=True) as client:
        assert await client.has_blob(blob)
        assert not await client.has_blob(described(b"other"))
    assert registry.requests[1].range == "bytes=0-0"


async def test_pushing_asks_for_the_right_to(registry: FakeRegistry, tmp_path: Path) -> None:
    authfile = tmp_path / "auth.json"
    authfile.write_text(json.dumps({"auths": {registry.host: {"auth": "dTpw"}}}))
    registry.require_bearer({"u": "p"}, is_public=True)
    async with connected(registry, authfile=authfile) as client:
        await client.push_manifest(MANIFEST, OCI_MANIFEST, "v1")
        assert (await client.fetch_manifest("v1")).data == MANIFEST
    scopes = [e.target.partition("scope=")[2] for e in registry.requests if e.path == "/_token"]
    assert scopes == ["repository%3Ateam%2Fapp%3Apull%2Cpush", "repository%3Ateam%2Fapp%3Apull"]


def test_the_upload_url_keeps_its_query() -> None:
    digest = digest_of(b"")
    assert (
        with_query("https://r/u/1?a=b%2Fc&d", digest=str(digest))
        == f"https://r/u/1?a=b%2Fc&d&digest={digest}"
    )
    assert with_query("https://r/u/1", digest=str(digest)) == f"https://r/u/1?digest={digest}"
