"""Blobs that go in pieces, and blobs that are there already, in another repository."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lazyfs.errors import AccessDenied, Unavailable
from lazyfs.registry.config.errors import BadAnswer, Refused
from lazyfs.registry.push import FileBody, Pusher, body_of
from tests.support.registries import faults
from tests.support.registries.clients import FAST, NAME, connected, described
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 1000
BLOB = described(DATA)
PIECE = 100_000


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@asynccontextmanager
async def pushing(
    registry: FakeRegistry, *, whole_limit: int = 0, piece_size: int = PIECE, **options: object
) -> AsyncIterator[Pusher]:
    async with connected(registry, **options) as client:
        place = client._places[0]
        yield Pusher(place, FAST, client.statistics, whole_limit=whole_limit, piece_size=piece_size)


def methods(registry: FakeRegistry) -> list[str]:
    return [each.method for each in registry.requests]


@pytest.mark.parametrize("is_file", [True, False])
async def test_pieces(registry: FakeRegistry, tmp_path: Path, is_file: bool) -> None:
    content: bytes | Path = DATA
    if is_file:
        content = tmp_path / "blob"
        content.write_bytes(DATA)
    async with pushing(registry) as pusher:
        await pusher.push_blob(BLOB, content)
    assert registry.content.blob(NAME, str(BLOB.digest)) == DATA
    assert methods(registry) == ["POST", "PATCH", "PATCH", "PATCH", "PUT"]
    ranges = [each.headers.get("content-range") for each in registry.requests[1:4]]
    assert ranges == ["0-99999", "100000-199999", "200000-255999"]


async def test_pieces_are_as_large_as_the_registry_wants(registry: FakeRegistry) -> None:
    registry.uploads.least_piece = 250_000
    async with pushing(registry) as pusher:
        await pusher.push_blob(BLOB, DATA)
    assert methods(registry) == ["POST", "PATCH", "PATCH", "PUT"]


@pytest.mark.parametrize(
    "behaviour", [faults.status(500), faults.cut(-1), faults.status(429), faults.status(416)]
)
async def test_a_piece_whose_answer_is_lost_is_not_sent_twice(
    registry: FakeRegistry, behaviour: faults.Behaviour
) -> None:
    registry.faults.add(behaviour, method="PATCH", skip=1, times=1)
    async with pushing(registry) as pusher:
        await pusher.push_blob(BLOB, DATA)
    assert registry.content.blob(NAME, str(BLOB.digest)) == DATA
    assert methods(registry) == ["POST", "PATCH", "PATCH", "GET", "PATCH", "PUT"]


async def test_a_registry_that_takes_no_pieces_at_all(registry: FakeRegistry) -> None:
    registry.faults.add(faults.status(500), method="PATCH", times=None)
    registry.faults.add(faults.status(204, {"Range": "0-0"}), method="GET", times=None)
    async with pushing(registry) as pusher:
        with pytest.raises(Unavailable):
            await pusher.push_blob(BLOB, DATA)


async def test_more_has_arrived_than_was_sent(registry: FakeRegistry) -> None:
    registry.faults.add(faults.status(500), method="PATCH", times=None)
    registry.faults.add(faults.status(204, {"Range": "0-999999999"}), method="GET", times=None)
    async with pushing(registry) as pusher:
        with pytest.raises((BadAnswer, Unavailable)):
            await pusher.push_blob(BLOB, DATA)


async def test_what_is_too_large_for_one_request_goes_in_pieces(registry: FakeRegistry) -> None:
    registry.uploads.body_limit = 150_000
    async with pushing(registry, whole_limit=1 << 30) as pusher:
        await pusher.push_blob(BLOB, DATA)
    assert registry.content.blob(NAME, str(BLOB.digest)) == DATA
    assert methods(registry)[:4] == ["POST", "PUT", "POST", "PATCH"]


async def test_a_piece_that_is_too_large_too(registry: FakeRegistry) -> None:
    registry.uploads.body_limit = 50_000
    async with pushing(registry, whole_limit=1 << 30) as pusher:
        await pusher.push_blob(BLOB, DATA)
    assert registry.content.blob(NAME, str(BLOB.digest)) == DATA


async def test_a_limit_below_the_least_piece_is_an_error(registry: FakeRegistry) -> None:
    registry.uploads.body_limit = 1000
    async with pushing(registry, whole_limit=1 << 30) as pusher:
        with pytest.raises(Refused, match="413"):
            await pusher.push_blob(BLOB, DATA)
    assert registry.count("PATCH") < 10


@pytest.mark.parametrize("code", [400, 404, 405, 501])
async def test_pieces_only_and_the_whole_only(registry: FakeRegistry, code: int) -> None:
    for method, whole_limit in (("PATCH", 0), ("PUT", 1 << 30)):
        registry.faults.add(faults.status(code), method=method)
        async with pushing(registry, whole_limit=whole_limit) as pusher:
            await pusher.push_blob(BLOB, DATA)
        assert registry.content.blob(NAME, str(BLOB.digest)) == DATA
        registry.content.put_blob(NAME, b"", str(BLOB.digest))


async def test_neither_way_is_tried_once_each(registry: FakeRegistry) -> None:
    for method in ("PATCH", "PUT"):
        registry.faults.add(faults.status(400), method=method, times=None)
    async with pushing(registry, whole_limit=1 << 30) as pusher:
        with pytest.raises(Refused, match="PATCH"):
            await pusher.push_blob(BLOB, DATA)
    assert methods(registry) == ["POST", "PUT", "POST", "PATCH"]


async def test_a_blob_of_another_repository_is_mounted(registry: FakeRegistry) -> None:
    registry.put_blob("team/base", DATA)
    async with connected(registry, plain_http=True) as client:
        await client.push_blob(BLOB, DATA, mount_from=(NAME, "team/none", "team/base"))
    assert registry.content.blob(NAME, str(BLOB.digest)) == DATA
    assert methods(registry) == ["POST", "POST"], "the first may not have it; no byte was sent"
    assert all(not each.size for each in registry.requests)


async def test_a_registry_that_does_not_mount_is_pushed_to(registry: FakeRegistry) -> None:
    registry.put_blob("team/base", DATA)
    registry.uploads.mounts = False
    async with connected(registry, plain_http=True) as client:
        await client.push_blob(BLOB, DATA, mount_from=("team/base",))
    assert registry.content.blob(NAME, str(BLOB.digest)) == DATA
    assert methods(registry) == ["POST", "PUT"]


async def test_mounting_needs_a_token_for_both(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.put_blob("team/base", DATA)
    registry.require_bearer({"u": "p"})
    async with connected(registry) as client:
        with pytest.raises(AccessDenied):
            await client.push_blob(BLOB, DATA, mount_from=("team/base",))
    authfile = tmp_path / "auth.json"
    authfile.write_text('{"auths": {"%s": {"auth": "dTpw"}}}' % registry.host)  # noqa: UP031
    async with connected(registry, authfile=authfile) as client:
        await client.push_blob(BLOB, DATA, mount_from=("team/base",))
    both = "scope=repository%3Ateam%2Fapp%3Apull%2Cpush&scope=repository%3Ateam%2Fbase%3Apull"
    assert registry.count("GET", both, 200) >= 1


async def test_a_part_of_a_file_is_a_body(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    body = body_of(path, 1000, 2_500)
    assert isinstance(body, FileBody)
    assert body.size == 1500
    for _ in range(2):
        assert b"".join([piece async for piece in body]) == DATA[1000:2500]
    assert body_of(DATA, 3, 5) == DATA[3:5]
