"""What a server does to stay small, and that readers do not wait for it."""

import gc
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from lazyfs.service.processes import memory

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@pytest.fixture
def collector() -> Iterator[list[str]]:
    """Turn the collector off as a start does; return what it is seen to do, and put it back."""
    seen: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        seen.append(f"{phase} {info['generation']}")

    gc.disable()
    gc.callbacks.append(note)
    try:
        yield seen
    finally:
        gc.callbacks.remove(note)
        gc.unfreeze()
        gc.enable()


async def test_what_starting_left_is_spared(collector: list[str]) -> None:
    """The collector is on again, has not looked at what is there, and will not."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.keep_small, lambda: 0)
        await trio.sleep(memory.SETTLE_SECONDS / 2)
        assert not gc.isenabled()
        await trio.sleep(memory.SETTLE_SECONDS)
        assert gc.isenabled()
        assert gc.get_freeze_count() > 10_000
        assert not any(line.endswith("2") for line in collector)
        nursery.cancel_scope.cancel()


async def test_memory_is_given_back_once_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = 0
    trims: list[float] = []
    monkeypatch.setattr(memory, "settle_memory", lambda: None)
    monkeypatch.setattr(memory, "trim_memory", lambda: trims.append(trio.current_time()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.keep_small, lambda: fetched)
        await trio.sleep(20 * memory.QUIET_SECONDS)
        assert trims == []
        for _ in range(20):
            fetched += 1
            await trio.sleep(memory.QUIET_SECONDS)
        assert trims == []
        await trio.sleep(20 * memory.QUIET_SECONDS)
        assert len(trims) == 1
        nursery.cancel_scope.cancel()
