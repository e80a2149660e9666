"""Two steps side by side, of which either may fail."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from lazyfs.errors import LazyfsError

First = TypeVar("First")
Second = TypeVar("Second")


async def side_by_side(
    first: Callable[[], Awaitable[First]], second: Callable[[], Awaitable[Second]]
) -> tuple[First, Second]:
    """Return what both return.  The first error of either ends the other, and is raised."""
    firsts: list[First] = []
    seconds: list[Second] = []
    errors: list[LazyfsError] = []

    async def run_first() -> None:
        firsts.append(await first())

    async def run_second() -> None:
        seconds.append(await second())

    async def attempt(step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except LazyfsError as exc:
            errors.append(exc)  # raised below: the nursery would wrap it in a group
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, run_first)
        nursery.start_soon(attempt, run_second)
    if errors:
        raise errors[0]
    return firsts[0], seconds[0]
