"""What a server does about rot that it has found, and whom it keeps waiting."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from lazyfs.fetch.device import Device
from lazyfs.mount.forgetting import Page
from lazyfs.oci.descriptor import Descriptor
from lazyfs.service import care as module
from lazyfs.service.care import Care
from lazyfs.service.dropped import Dropped
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT, DOUBTFUL, RESIDENT
from lazyfs.store.content.unwritten import ReadOnlyContent
from tests.support.formats.layers import make_layer

pytestmark = pytest.mark.anyio
QUESTION = {"type": "dropped", "layers": {}}
DEVICE = SimpleNamespace(content=SimpleNamespace(folder=Path("layer"), is_apart=lambda: False))


def make_care(folder: Path, *devices: Device, **options: bool) -> Care:
    doubts = SimpleNamespace(dropped=None, keep=None)
    image = SimpleNamespace(
        contents=SimpleNamespace(doubts=doubts), devices=devices, store=SimpleNamespace(root=folder)
    )
    return Care(image, SimpleNamespace(mountpoint="/mnt"), folder, **options)


async def test_an_answer_waits_for_what_was_found_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks has found nothing then, and would take the mount for right."""
    gate, steps = trio.Event(), []

    async def forget(*words: object) -> tuple[int, list[object]]:
        dropped = words[2]
        if "layer" in dropped.layers:
            await gate.wait()
            steps.append("forgotten")
        return 0, []

    monkeypatch.setattr(module, "forget_pages", forget)
    monkeypatch.setattr(module, "tell_mounts", lambda *_: [])
    care = make_care(tmp_path)

    async def ask() -> None:
        await care.answer(QUESTION)
        steps.append("answered")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(care.run)
        care._note(DEVICE, [1])
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert steps == []
        gate.set()
        with trio.fail_after(10):
            while len(steps) < 2:
                await trio.testing.wait_all_tasks_blocked()
        assert steps == ["forgotten", "answered"]
        nursery.cancel_scope.cancel()


async def test_an_answer_waits_until_a_predecessor_s_pages_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, steps = trio.Event(), []

    async def forget(image: object, session: object) -> None:
        await gate.wait()
        steps.append("forgotten")
        raise OSError("which is no reason to wait for ever")

    async def forget_pages(*_: object) -> tuple[int, list[Page]]:
        return 0, []

    monkeypatch.setattr(module, "forget_all", forget)
    monkeypatch.setattr(module, "forget_pages", forget_pages)
    care = make_care(tmp_path, is_successor=True)

    async def ask() -> None:
        await care.answer(QUESTION)
        steps.append("answered")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(care.run)
            await trio.testing.wait_all_tasks_blocked()
            assert steps == []
            gate.set()
            while len(steps) < 2:
                await trio.testing.wait_all_tasks_blocked()
            assert steps == ["forgotten", "answered"]
            nursery.cancel_scope.cancel()


async def test_all_files_of_all_layers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def forget(image: object, session: object, dropped: Dropped) -> tuple[int, list[Page]]:
        asked.append(dropped.layers)
        return 7, []

    monkeypatch.setattr(module, "forget_pages", forget)
    image = SimpleNamespace(devices=[DEVICE])
    assert await module.forget_all(image, SimpleNamespace()) == (7, [])
    assert asked == [{"layer": None}]


async def test_who_ends_tells_what_nobody_else_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, list[int]]] = []

    async def forget(*_: object) -> tuple[int, list[Page]]:
        return 0, []

    def tell(runtime: Path, store: Path, found: dict[str, list[int]]) -> list[str]:
        told.append(found)
        return []

    monkeypatch.setattr(module, "forget_pages", forget)
    monkeypatch.setattr(module, "tell_mounts", tell)
    care = make_care(tmp_path)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(care.run)
            care._note(DEVICE, [1, 2])
            while not told:
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await care.finish()
        assert told == [{"layer": [1, 2]}], "others know of it already"
        care._note(DEVICE, [2, 3])
        await care.finish()
    assert told[1:] == [{"layer": [2, 3]}]


async def test_who_ends_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(module, "FINISH_SECONDS", 0.05)
    monkeypatch.setattr(module, "tell_mounts", lambda *_: gate.wait(60))
    care = make_care(tmp_path)
    care._note(DEVICE, [1])
    try:
        with trio.fail_after(20):
            await care.finish()
    finally:
        gate.set()


async def test_two_servers_that_tell_each_other_do_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cares: list[Care] = []

    async def forget(*_: object) -> tuple[int, list[object]]:
        return 0, []

    def tell(runtime: Path, store: Path, found: object) -> list[str]:
        if len(told) >= 2:
            return []
        for care in cares:
            trio.from_thread.run_sync(care._note, DEVICE, [2])  # and it finds more meanwhile
            trio.from_thread.run(care.answer, QUESTION)
        told.append(1)
        if len(told) == 2:
            trio.from_thread.run_sync(both.set)
        return []

    told: list[int] = []
    both = trio.Event()
    monkeypatch.setattr(module, "forget_pages", forget)
    monkeypatch.setattr(module, "tell_mounts", tell)
    cares += [make_care(tmp_path), make_care(tmp_path)]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for care in cares:
                nursery.start_soon(care.run)
                care._note(DEVICE, [1])
            await both.wait()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["read-only", "private", "shared"])
async def test_what_somebody_else_has_found_is_not_believed_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The marks of a mount may be its own: of a disk that it cannot write to, or that is full."""

    async def forget(*_: object) -> tuple[int, list[object]]:
        return 1, []

    monkeypatch.setattr(module, "forget_pages", forget)
    layer = make_layer([5000] * 6)
    content = LayerContent(tmp_path / "layer", layer.table)
    for chunk in (0, 1, 2, 4, 5):
        content.write(chunk, layer.files[b"file%04d" % chunk])
    if kind == "read-only":
        content.close()
        content = ReadOnlyContent(tmp_path / "layer", layer.table)
    elif kind == "private":
        content._go_private()
    device = Device(1, Descriptor("", layer.digest, len(layer.blob)), layer.table, content)
    care = make_care(tmp_path, device)
    try:
        runs = [[1, 4], [5, 1 << 40], [-3, 1], [9, 2]]
        done = await care.answer({"type": "dropped", "layers": {"layer": runs, "other": [[0, 1]]}})
        assert done["type"] == module.ANSWER
        wanted = [RESIDENT, DOUBTFUL, DOUBTFUL, ABSENT, RESIDENT, DOUBTFUL]
        assert list(content.states) == wanted
    finally:
        content.close()
