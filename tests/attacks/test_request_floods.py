"""More requests than can be served: what waits is bounded, and lets go of who has left."""

from collections import deque
from typing import Any

import pytest
import trio
import trio.testing

pytest.importorskip("lazyfs._native")

from lazyfs._native import MISS
from lazyfs.mount import native
from lazyfs.mount.native import MAX_TASKS, NativeSession

pytestmark = pytest.mark.anyio


class FakeServer:
    """The native server's table of requests that wait."""

    def __init__(self) -> None:
        self.waiting: set[int] = set()
        self.answered: list[int] = []

    def waits(self, request: int) -> bool:
        return request in self.waiting

    def mark(self, device: int, chunk: int) -> None:
        pass

    def answer(self, request: int) -> bool:
        self.answered.append(request)
        return True


class AwayContents:
    """Contents that nobody gets before the gate opens."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.begun = 0

    async def ensure(self, device: int, start: int, end: int) -> None:
        self.begun += 1
        await self.gate.wait()

    def mark(self, device: int) -> None:
        return None


async def test_misses_that_nobody_waits_for_any_more_are_let_go_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A workload that reads and is interrupted again and again, while the registry is away."""
    monkeypatch.setattr(native, "SWEEP_SECONDS", 0.0)
    server: Any = FakeServer()
    contents = AwayContents()
    session: Any = NativeSession.__new__(NativeSession)
    session._tasks, session._backlog, session._swept = {}, deque(), -1.0
    session._image = type("Image", (), {"contents": contents})()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for request in range(20 * MAX_TASKS):
                server.waiting = {request}  # whoever came before has left
                session._begin(server, nursery, (MISS, request, 1, 2, 0, 0, 10, 0))
                if request % MAX_TASKS == 0:
                    await trio.testing.wait_all_tasks_blocked()
                assert len(session._tasks) <= MAX_TASKS
                assert len(session._backlog) <= MAX_TASKS
            await trio.testing.wait_all_tasks_blocked()
            contents.gate.set()
    assert request in server.answered, "who waits is served"
    assert not session._tasks
    assert not session._backlog


async def test_all_that_wait_are_served_in_the_end() -> None:
    server: Any = FakeServer()
    contents = AwayContents()
    session: Any = NativeSession.__new__(NativeSession)
    session._tasks, session._backlog, session._swept = {}, deque(), -1.0
    session._image = type("Image", (), {"contents": contents})()
    count = 3 * MAX_TASKS
    server.waiting = set(range(count))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for request in range(count):
                session._begin(server, nursery, (MISS, request, 1, 2, 0, 0, 10, 0))
            await trio.testing.wait_all_tasks_blocked()
            assert contents.begun == MAX_TASKS
            contents.gate.set()
    assert sorted(server.answered) == list(range(count))
