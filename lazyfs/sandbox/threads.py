"""Threads that have all ended before the cleanup after them begins."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, ParamSpec, TypeVar

from lazyfs.interrupts import uninterrupted

LOOK_SECONDS = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """A pool that an interrupt takes no thread from, neither at its start nor while it is joined.

    So whoever leaves it by KeyboardInterrupt may undo what they did.  Wait for what they do
    inside, where an interrupt counts: ``give_up`` is called then, and what has not begun is not
    done.
    """

    def __init__(self, size: int, give_up: Callable[[], None] | None = None) -> None:
        super().__init__(size)
        self._give_up = give_up

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread do *work*."""
        with uninterrupted():
            return super().submit(work, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the threads."""
        with uninterrupted():
            super().shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> None:
        """Wait for the threads; drop what none has begun if something went wrong."""
        if self._give_up is not None and kind is not None:
            self._give_up()
        self.shutdown(cancel_futures=kind is not None)


def wait_all(futures: Sequence[Future[Any]]) -> None:
    """Wait for all, or for the first that fails.

    A signal that comes just before a wait does not end it; so none is long.
    """
    while True:
        ended = wait(futures, LOOK_SECONDS, return_when=FIRST_EXCEPTION)
        if not ended.not_done or any(each.exception() for each in ended.done):
            return
