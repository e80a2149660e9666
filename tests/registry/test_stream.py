"""Ranges of blobs, from a registry that does its worst: exact bytes or the right error."""

import random
from collections.abc import Iterator

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import LazyfsError
from lazyfs.registry.config.errors import (
    BadAnswer,
    ConnectionTrouble,
    Denied,
    Missing,
    Overloaded,
    Refused,
    Silent,
    SizeMismatch,
)
from lazyfs.registry.retry import RetryPolicy
from tests.support.registries import faults
from tests.support.registries.clients import FAST, ONCE, connected, described, read_range, stored
from tests.support.registries.registry import FakeRegistry

pytestmark = pytest.mark.anyio

DATA = random.Random(1).randbytes(700_000)
START, END = 1000, 650_000
PART = DATA[START:END]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (0, 700_000), (1, 700_000), (699_999, 700_000), (65_535, 65_537), (START, END)],
)
async def test_ranges(registry: FakeRegistry, start: int, end: int) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        assert await read_range(client, blob, start, end) == DATA[start:end]
        assert client.statistics.requests == 1
        assert client.statistics.received_size == end - start
        assert client.statistics.retries == client.statistics.errors == 0
    whole = end - start == len(DATA)
    assert registry.requests[0].range == (None if whole else f"bytes={start}-{end - 1}")


async def test_an_empty_range_asks_for_nothing(registry: FakeRegistry) -> None:
    async with connected(registry) as client:
        assert await read_range(client, described(b""), 0, 0) == b""
        assert await read_range(client, described(DATA), 5, 5) == b""
        assert client.statistics.requests == 0


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, 700_001)])
async def test_ranges_that_are_none(registry: FakeRegistry, start: int, end: int) -> None:
    async with connected(registry) as client:
        with pytest.raises(ValueError, match="range"):
            client.open_range(described(DATA), start, end)


async def test_connections_are_kept(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        for offset in range(0, 100_000, 10_000):
            assert await read_range(client, blob, offset, offset + 100) == DATA[offset:][:100]
    assert registry.connections == 1


async def test_nothing_is_compressed_and_nobody_is_authorised(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        await read_range(client, blob, 0, 100)
    sent = registry.requests[0].headers
    assert sent["accept-encoding"] == "identity"
    assert sent["user-agent"].startswith("lazyfs/")
    assert "authorization" not in sent
    assert "cookie" not in sent


async def test_a_reader_may_stop_at_any_time(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        async with client.open_range(blob, 0, len(DATA)) as body:
            async for data in body:
                assert DATA.startswith(data)
                break
        async with client.open_range(blob, 0, 10):
            pass
        assert await read_range(client, blob, 5, 10) == DATA[5:10]


async def test_a_cancelled_reader_leaves_the_client_usable(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.hang(1000))
    async with connected(registry) as client:
        with trio.CancelScope() as scope:
            async with client.open_range(blob, START, END) as body:
                async for _ in body:
                    scope.cancel()
        assert scope.cancelled_caught
        assert await read_range(client, blob, START, END) == PART


async def test_many_ranges_at_once(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    got: dict[int, bytes] = {}

    async def read(number: int) -> None:
        got[number] = await read_range(client, blob, number * 1000, number * 1000 + 5000)

    async with connected(registry) as client, trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(read, number)
    assert got == {number: DATA[number * 1000 :][:5000] for number in range(100)}
    assert registry.connections <= 32


# What passes by itself: the stream is exact all the same.


@pytest.mark.parametrize(
    "behaviour",
    [
        faults.status(429, {"Retry-After": "1"}),
        faults.status(500),
        faults.status(502, body=b"<html>bad gateway</html>"),
        faults.status(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        faults.status(504, body=b""),
        faults.cut(-1),
        faults.cut(0),
        faults.cut(1),
        faults.cut(100_000),
        faults.cut(len(PART) - 1),
        faults.short(1),
        faults.short(100_000),
        faults.ended_early(0),
        faults.ended_early(100_000),
        faults.content_range(None),
        faults.content_range("bytes 0-9/700000"),
        faults.content_range("nonsense"),
        faults.overlong(b"x"),
        faults.overlong(b"x" * 100_000, announced=True),
        faults.compressed(),
        faults.drip(200_000, 0.001),
        faults.chunked(),
    ],
)
async def test_the_stream_is_exact_whatever_happens_once(
    registry: FakeRegistry, behaviour: faults.Behaviour
) -> None:
    blob = stored(registry, DATA)
    rule = registry.faults.add(behaviour)
    async with connected(registry) as client:
        assert await read_range(client, blob, START, END) == PART
        assert client.statistics.errors == 0
    assert rule.hits == 1


async def test_a_broken_body_is_continued_where_it_stopped(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.cut(100_000))
    async with connected(registry) as client:
        assert await read_range(client, blob, START, END) == PART
        assert client.statistics.retries == 1
    assert [entry.range for entry in registry.requests] == [
        f"bytes={START}-{END - 1}",
        f"bytes={START + 100_000}-{END - 1}",
    ]


async def test_a_body_may_break_any_number_of_times_while_it_gets_on(
    registry: FakeRegistry,
) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.cut(70_000), times=None)
    async with connected(registry, policy=RetryPolicy(tries=2, first_seconds=0.001)) as client:
        assert await read_range(client, blob, START, END) == PART
    assert len(registry.requests) == 10


async def test_a_body_that_breaks_after_every_byte_is_given_up(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.cut(1), times=None)
    async with connected(registry) as client:
        with pytest.raises(ConnectionTrouble):
            await read_range(client, blob, START, END)
        assert client.statistics.errors == 1
    assert len(registry.requests) == FAST.tries


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [(faults.short(1), BadAnswer), (faults.ended_early(1), ConnectionTrouble)],
)
async def test_a_server_that_sends_byte_by_byte_is_given_up(
    registry: FakeRegistry, behaviour: faults.Behaviour, error: type[LazyfsError]
) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(behaviour, times=None)
    async with connected(registry) as client:
        with pytest.raises(error):
            await read_range(client, blob, START, END)
    assert len(registry.requests) == FAST.tries


async def test_a_server_of_small_ranges_is_asked_on_without_waiting(
    registry: FakeRegistry,
) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.short(65_536), times=None)
    async with connected(registry) as client:
        assert await read_range(client, blob, START, END) == PART
        assert client.statistics.retries == 0


async def test_a_restarted_server_goes_unnoticed(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with connected(registry) as client:
        assert await read_range(client, blob, 0, 10) == DATA[:10]
        registry.break_connections()
        assert await read_range(client, blob, 10, 20) == DATA[10:20]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_series_of_faults_gives_exact_bytes_or_an_error(data: st.DataObject) -> None:
    behaviours = st.one_of(
        st.builds(faults.cut, st.integers(-1, 20_000)),
        st.builds(faults.short, st.integers(1, 20_000)),
        st.builds(faults.status, st.sampled_from([429, 500, 503])),
        st.builds(faults.overlong, st.binary(min_size=1, max_size=10), announced=st.booleans()),
        st.sampled_from([faults.whole(), faults.chunked(), faults.compressed()]),
        st.builds(faults.content_range, st.sampled_from([None, "bytes 0-1/20000", "x"])),
    )
    size = data.draw(st.integers(1, 20_000))
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    content = DATA[:size]

    async def run() -> None:
        async with connected(registry) as client:
            try:
                assert await read_range(client, blob, start, end) == content[start:end]
            except LazyfsError:
                assert client.statistics.errors == 1

    with FakeRegistry() as registry:
        blob = stored(registry, content)
        for behaviour in data.draw(st.lists(behaviours, max_size=6)):
            registry.faults.add(behaviour)
        trio.run(run)


# A server without ranges.


@pytest.mark.parametrize(("start", "end"), [(START, END), (0, 10), (699_990, 700_000)])
async def test_the_whole_blob_instead_of_a_range_is_cut_to_it(
    registry: FakeRegistry, start: int, end: int
) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.whole(), times=None)
    async with connected(registry) as client:
        assert await read_range(client, blob, start, end) == DATA[start:end]


async def test_of_a_whole_blob_no_more_is_read_than_needed(registry: FakeRegistry) -> None:
    blob = stored(registry, bytes(50_000_000))
    registry.faults.add(faults.whole(), times=None)
    async with connected(registry) as client:
        assert await read_range(client, blob, 1000, 2000) == bytes(1000)
        assert client.statistics.received_size < 1_000_000


@pytest.mark.parametrize("after", [10, START, START + 1, 300_000])
async def test_a_whole_blob_that_breaks_is_skipped_through_again(
    registry: FakeRegistry, after: int
) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.both(faults.whole(), faults.cut(after)))
    registry.faults.add(faults.whole(), times=None)
    async with connected(registry) as client:
        assert await read_range(client, blob, START, END) == PART
        assert client.statistics.retries == 1


# What does not pass.


@pytest.mark.parametrize(
    ("behaviour", "error", "says"),
    [
        (faults.error(400, "NAME_INVALID", "no name"), Refused, r"400, NAME_INVALID \(no name\)"),
        (faults.status(401), Denied, "401"),
        (faults.error(403, "DENIED", "not you"), Denied, r"403, DENIED \(not you\)"),
        (faults.error(404, "BLOB_UNKNOWN", "gone"), Missing, r"404, BLOB_UNKNOWN \(gone\)"),
        (faults.status(405), Refused, "405"),
        (faults.status(410), Missing, "410"),
        (faults.status(416), SizeMismatch, "416 for a range of a blob of 700000 bytes"),
        (faults.status(501), Refused, "501"),
        (faults.status(204, body=b""), Refused, "204"),
        (faults.content_range("bytes 1000-649999/700001"), SizeMismatch, "got 700001"),
    ],
)
async def test_errors_that_stay(
    registry: FakeRegistry, behaviour: faults.Behaviour, error: type[LazyfsError], says: str
) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(behaviour, times=None)
    async with connected(registry) as client:
        with pytest.raises(error, match=says) as caught:
            await read_range(client, blob, START, END)
        assert f"GET {registry.url}/v2/team/app/blobs/{blob.digest}" in str(caught.value)
        assert len(registry.requests) == 1, "asking again is no use"
        assert client.statistics.errors == 1


@pytest.mark.parametrize(
    ("behaviour", "error", "says"),
    [
        (faults.status(429), Overloaded, "429, FAULT"),
        (faults.status(500), Overloaded, "500"),
        (faults.cut(-1), ConnectionTrouble, "connection broke"),
        (faults.cut(0), ConnectionTrouble, "connection broke"),
        (faults.content_range(None), BadAnswer, "has no Content-Range"),
        (faults.content_range("bytes 0-648999/700000"), BadAnswer, "expected 1000-649999"),
        (faults.overlong(b"x"), BadAnswer, "body is longer"),
        (faults.overlong(b"x", announced=True), BadAnswer, "Content-Length: got 649001"),
        (faults.compressed(), BadAnswer, "Content-Length: got"),
        (faults.redirect("ftp://x/"), BadAnswer, "not an http or https URL"),
    ],
)
async def test_errors_that_might_have_passed(
    registry: FakeRegistry, behaviour: faults.Behaviour, error: type[LazyfsError], says: str
) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(behaviour, times=None)
    async with connected(registry) as client:
        with pytest.raises(error, match=says):
            await read_range(client, blob, START, END)
        assert client.statistics.retries == FAST.tries - 1
        assert client.statistics.errors == 1


async def test_a_blob_that_is_not_there(registry: FakeRegistry) -> None:
    async with connected(registry) as client:
        with pytest.raises(Missing, match="BLOB_UNKNOWN"):
            await read_range(client, described(DATA), START, END)


@pytest.mark.parametrize("after", [-1, 0, 1000])
async def test_a_server_that_hangs_is_left(registry: FakeRegistry, after: int) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.hang(after), times=None)
    policy = RetryPolicy(tries=2, first_seconds=0.001)
    async with connected(registry, policy=policy, idle_seconds=0.1) as client:
        with pytest.raises(Silent, match="idle limit"), trio.fail_after(5):
            await read_range(client, blob, START, END)


async def test_a_server_that_hangs_once_costs_only_time(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.hang(1000))
    async with connected(registry, idle_seconds=0.1) as client:
        assert await read_range(client, blob, START, END) == PART


async def test_a_slow_server_is_not_a_silent_one(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.drip(100, 0.05))
    async with connected(registry, idle_seconds=0.3) as client:
        # Half a second in all, more than the limit between two pieces.
        assert await read_range(client, blob, 100, 1100) == DATA[100:1100]
        assert client.statistics.requests == 1


async def test_a_server_that_drips_is_as_good_as_a_silent_one(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    registry.faults.add(faults.drip(1, 0.05), times=None)
    async with connected(registry, idle_seconds=0.2, policy=ONCE) as client:
        with pytest.raises(Silent, match="expected at least 512 bytes a second"):
            await read_range(client, blob, 0, 1000)
        with pytest.raises(Silent, match="bytes a second"):
            await client.fetch_blob(blob, limit=blob.size)


async def test_a_slow_reader_is_not_a_slow_server(registry: FakeRegistry) -> None:
    blob = stored(registry, DATA)
    async with (
        connected(registry, idle_seconds=0.05) as client,
        client.open_range(blob, 0, blob.size) as body,
    ):
        got = b""
        async for data in body:
            got += data
            await trio.sleep(0.02)
    assert got == DATA
    assert client.statistics.requests == 1


async def test_nobody_listens() -> None:
    with FakeRegistry() as registry:
        host = registry.host
    async with connected(host) as client:
        with pytest.raises(ConnectionTrouble, match="cannot reach"):
            await read_range(client, described(DATA), 0, 10)
        assert client.statistics.requests == FAST.tries
