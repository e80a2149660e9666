"""The order in which a server begins."""

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
