"""Steps side by side, of which any may fail."""

from collections.abc import Awaitable, Callable

import trio

from lazyfs.errors import LazyfsError


async def run_all(*steps: Callable[[], Awaitable[None]]) -> None:
    """Run *steps* side by side; the first error ends the others, and is raised as it is."""
    errors: list[LazyfsError] = []

    async def attempt(step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except LazyfsError as exc:
            errors.append(exc)  # raised below: the nursery would wrap it in a group
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for step in steps:
            nursery.start_soon(attempt, step)
    if errors:
        raise errors[0]
