"""The order in which a server begins, and ends."""

from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.service import server


@pytest.mark.parametrize(
    ("is_new", "order"), [(True, ["prefetch", "live"]), (False, ["live", "prefetch"])]
)
def test_what_comes_before_the_mount_is_live(monkeypatch, is_new, order):
    """Requests for a new image; nothing of one that is here, whose files would be read first."""
    begun = []

    async def go_live(*arguments):
        await wait_all_tasks_blocked()  # as long as others have something to do
        begun.append("live")

    async def prefetch(*arguments):
        begun.append("prefetch")

    async def main():
        async with trio.open_nursery() as nursery:
            await server._begin(None, nursery, None, is_new=is_new)

    monkeypatch.setattr(server, "_go_live", go_live)
    monkeypatch.setattr(server, "_prefetch", prefetch)
    trio.run(main)
    assert begun == order


class Steps(list[str]):
    """Whatever is called of it by a name is a step, and may be awaited."""

    def __getattr__(self, name):
        async def step(*arguments):
            self.append(name)

        return step


def of_steps(steps):
    event = trio.Event()
    event.set()
    return SimpleNamespace(
        settings=SimpleNamespace(says_statistics=False),
        keeping=steps,
        care=steps,
        session=SimpleNamespace(close=lambda: None, unmount=steps.unmount, mountpoint="/mnt"),
        image=SimpleNamespace(save_profile=lambda: None),
        give_way=event,
    )


def test_who_ends_tells_what_it_has_found():
    steps = Steps()
    trio.run(server._end, of_steps(steps))
    assert steps == ["end", "unmount", "finish"]


def test_who_gives_way_tells_what_it_has_found(monkeypatch):
    steps = Steps()
    monkeypatch.setattr(server.os, "_exit", lambda code: steps.append("exit"))
    trio.run(server._give_way, of_steps(steps))
    assert steps == ["finish", "plan_succession", "exit"]
