"""Keeping the store within its budget, beside a mount."""

import fcntl
import os
import secrets
import shutil
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from lazyfs.service.upkeep import LOOK_SECONDS, Upkeep
from lazyfs.store.content.content import LayerContent
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.budget import Budget
from lazyfs.store.usage import holdings_of, resident_size
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.mounts.stores import keep_layer

pytestmark = pytest.mark.anyio
LONG_AGO = time.time() - 10 * 86400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def keep(store: Store, count: int) -> list[MadeLayer]:
    """Keep layers of 1 MB, the oldest first."""
    layers = [make_layer([1_000_000], seed=seed) for seed in range(count)]
    for number, layer in enumerate(layers):
        keep_layer(store, layer, used=LONG_AGO + number)
    return layers


def fill(store: Store, size: int) -> None:
    """Take *size* bytes of the disk, as what is being fetched does."""
    (store.tmp / secrets.token_hex(8)).write_bytes(bytes(size))


def full(store: Store, layers: list[MadeLayer]) -> list[bool]:
    return [resident_size(store, layer.toc.digest)[0] > 0 for layer in layers]


async def test_room_is_made_of_what_is_older(store: Store) -> None:
    layers = keep(store, 4)
    budget = holdings_of(store).allocated_size + 300_000
    upkeep = Upkeep(store, Budget(size=budget), lambda: 0)
    assert await upkeep.make_room(50_000)
    assert full(store, layers) == [True] * 4
    assert await upkeep.make_room(900_000)
    assert full(store, layers) == [False, True, True, True]
    assert await upkeep.make_room(1_900_000)
    assert full(store, layers) == [False, False, True, True]


async def test_room_is_not_made_of_what_is_in_use(store: Store) -> None:
    (layer,) = keep(store, 1)
    content = LayerContent(store.layer_path(layer.toc.digest), layer.table)
    upkeep = Upkeep(store, Budget(size=1_500_000), lambda: 0)
    while await upkeep.make_room(16_384):
        fill(store, 16_384)
    assert not await upkeep.make_room(16_384)
    assert 1_400_000 < holdings_of(store).allocated_size <= 1_500_000
    content.close()


async def test_several_ask_for_the_last_room(store: Store) -> None:
    upkeep = Upkeep(store, Budget(size=100_000), lambda: 0)
    granted: list[bool] = []

    async def ask() -> None:
        granted.append(await upkeep.make_room(28_672))
        if granted[-1]:
            fill(store, 28_672)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert sum(granted) == 3


@pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0.05)})]
)
async def test_it_looks_now_and_then_while_the_store_grows(store: Store) -> None:
    layers = keep(store, 3)
    grown = 1
    upkeep = Upkeep(store, Budget(size=1_500_000), lambda: grown)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upkeep.run)
        await trio.sleep(LOOK_SECONDS - 1)
        assert full(store, layers) == [True, True, True]
        await trio.sleep(2)
        await trio.sleep(1)  # the thread has ended: the clock waits for it
        assert full(store, layers) == [False, False, True]
        keep_layer(store, layers[0], used=LONG_AGO)
        await trio.sleep(3 * LOOK_SECONDS)
        assert full(store, layers) == [True, False, True], "nothing of ours was stored"
        grown += 1
        await trio.sleep(LOOK_SECONDS)
        await trio.sleep(1)  # the thread has ended: the clock waits for it
        assert full(store, layers) == [False, False, True]
        nursery.cancel_scope.cancel()


async def test_at_the_end_its_own_layers_may_go(store: Store) -> None:
    (layer,) = keep(store, 1)
    content = LayerContent(store.layer_path(layer.toc.digest), layer.table)
    upkeep = Upkeep(store, Budget(size=10_000), lambda: 0)
    await upkeep.look()
    assert full(store, [layer]) == [True]
    content.close()
    await upkeep.look()
    assert full(store, [layer]) == [False]


async def test_a_share_of_the_disk(store: Store) -> None:
    (layer,) = keep(store, 1)
    await Upkeep(store, Budget(share=1.0), lambda: 0).look()
    assert full(store, [layer]) == [True]
    await Upkeep(store, Budget(share=0.0), lambda: 0).look()
    assert full(store, [layer]) == [False]


async def test_what_fails_is_said_once_and_ends_nothing(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    upkeep = Upkeep(store, Budget(size=10_000), lambda: 0)
    shutil.rmtree(store.root)
    for _ in range(3):
        await upkeep.look()
        assert await upkeep.make_room(1 << 30)
    assert len(caplog.records) == 1
    assert "No such file or directory" in caplog.text


async def test_the_event_loop_goes_on_meanwhile(store: Store) -> None:
    """The disk may take its time: here another process holds the lock of those who evict."""
    keep(store, 1)
    fd = os.open(store.root, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    upkeep = Upkeep(store, Budget(size=0), lambda: 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upkeep.look)
        with trio.fail_after(2):
            for _ in range(10):
                await trio.sleep(0.01)
        assert holdings_of(store).allocated_size > 1_000_000
        os.close(fd)
    assert holdings_of(store).allocated_size < 100_000
