"""Trying again: how often, how long apart, and when not."""

import logging
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
import trio
import trio.testing
from hypothesis import given
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
from lazyfs.registry.retry import Patience, RetryPolicy, parse_retry_after, persist
from lazyfs.registry.source import SourceStatistics

POLICY = RetryPolicy(jitter=lambda: 0.0)
NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Nothing here touches a socket: the clock jumps to the next deadline."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Attempts:
    """Fails with each of *errors* in turn, then succeeds; notes when it was called."""

    def __init__(self, *errors: LazyfsError) -> None:
        self.errors = list(errors)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(trio.current_time())
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    @property
    def waits(self) -> list[float]:
        return [round(b - a, 3) for a, b in zip(self.times, self.times[1:], strict=False)]


@pytest.mark.anyio
async def test_waits_double_up_to_a_bound() -> None:
    attempts = Attempts(*[Silent("x") for _ in range(7)])
    statistics = SourceStatistics()
    policy = RetryPolicy(tries=8, first_seconds=1, longest_seconds=6, jitter=lambda: 0.0)
    assert await persist(attempts, policy, statistics) == "done"
    assert attempts.waits == [1, 2, 4, 6, 6, 6, 6]
    assert (statistics.retries, statistics.errors) == (7, 0)


@pytest.mark.anyio
async def test_waits_are_shortened_by_chance() -> None:
    attempts = Attempts(Silent("x"))
    await persist(attempts, RetryPolicy(first_seconds=1, jitter=lambda: 0.5), SourceStatistics())
    assert attempts.waits == [0.75]


@pytest.mark.anyio
async def test_the_last_error_comes_out_after_the_last_try() -> None:
    errors = [Overloaded(str(number)) for number in range(9)]
    attempts, statistics = Attempts(*errors), SourceStatistics()
    with pytest.raises(Overloaded, match="4"):
        await persist(attempts, POLICY, statistics)
    assert len(attempts.times) == POLICY.tries == 5
    assert (statistics.retries, statistics.errors) == (4, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [Missing("x"), Denied("x"), Refused("x"), SizeMismatch("x")])
async def test_what_will_not_pass_is_not_tried_again(error: LazyfsError) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        await persist(attempts, POLICY, SourceStatistics())
    assert len(attempts.times) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error", [ConnectionTrouble("x"), Overloaded("x"), BadAnswer("x"), Silent("x")]
)
async def test_what_may_pass_is_tried_again(error: LazyfsError) -> None:
    attempts = Attempts(error)
    assert await persist(attempts, POLICY, SourceStatistics()) == "done"


@pytest.mark.anyio
async def test_a_stale_connection_is_replaced_at_once_but_only_the_first_time() -> None:
    stale = [ConnectionTrouble("x", is_stale=True) for _ in range(2)]
    attempts = Attempts(*stale)
    await persist(attempts, POLICY, SourceStatistics())
    assert attempts.waits == [0, 0.4]


@pytest.mark.anyio
async def test_no_try_begins_after_the_patience_has_run_out() -> None:
    policy = RetryPolicy(tries=100, longest_seconds=8, patience_seconds=20, jitter=lambda: 0.0)
    attempts = Attempts(*[Silent("x") for _ in range(100)])
    with pytest.raises(Silent):
        await persist(attempts, policy, SourceStatistics())
    assert attempts.times[-1] - attempts.times[0] <= 20


@pytest.mark.anyio
@pytest.mark.parametrize(("asked", "waited"), [("3", 3), ("0", 0.2), ("9999", 30), ("soon", 0.2)])
async def test_retry_after_is_obeyed_within_bounds(asked: str, waited: float) -> None:
    attempts = Attempts(Overloaded("x", retry_after=asked))
    await persist(attempts, POLICY, SourceStatistics())
    assert attempts.waits == [waited]


@pytest.mark.anyio
async def test_progress_renews_the_tries() -> None:
    patience = Patience(RetryPolicy(tries=2, jitter=lambda: 0.0), SourceStatistics())
    for _ in range(10):
        await patience.bear(Silent("x"))
        patience.renew()
    await patience.bear(Silent("x"))
    with pytest.raises(Silent):
        await patience.bear(Silent("x"))


@pytest.mark.anyio
async def test_tries_are_logged_quietly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await persist(Attempts(Silent("the reason")), POLICY, SourceStatistics())
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert "the reason" in caplog.text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        (format_datetime(NOW.replace(second=39), usegmt=True), 30),
        (format_datetime(NOW.replace(year=2020), usegmt=True), 0),
        (str(int(NOW.timestamp()) + 30), 30),  # Docker Hub's: the moment
        (str(int(NOW.timestamp()) - 30), 0),
        ("9" * 40, float("inf")),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("Mon, 32 Foo 2024 99:99:99 GMT", None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert parse_retry_after(text, NOW.timestamp()) == seconds


@given(st.text(max_size=60))
def test_any_retry_after_is_a_time_or_nothing(text: str) -> None:
    seconds = parse_retry_after(text, NOW.timestamp())
    assert seconds is None or seconds >= 0
