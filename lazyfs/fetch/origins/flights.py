"""What is being fetched: one flight per chunk, whoever waits for it."""

import trio

from lazyfs.errors import LazyfsError


class Progress:
    """How far a request is, by the clock: when it was sent, and when something last came of it."""

    __slots__ = ("asked", "heard")

    def __init__(self) -> None:
        self.asked: float | None = None
        self.heard: float | None = None


class Flight:
    """One chunk on its way, by a request that is as far as *progress* says.

    It ends landed (resident in the store), landed with ``data`` (verified, but the store had no
    room), or failed with ``error``.  A waiter that is cancelled leaves the flight alive.
    """

    __slots__ = ("_event", "data", "error", "is_done", "progress")

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self._event: trio.Event | None = None
        self.is_done = False
        self.data: bytes | None = None
        self.error: LazyfsError | None = None

    def land(self, data: bytes | None = None) -> None:
        """The chunk is verified; *data* are its bytes if the store could not take them."""
        self.data = data
        self._finish()

    def fail(self, error: LazyfsError) -> None:
        """The chunk cannot be had."""
        self.error = error
        self._finish()

    def _finish(self) -> None:
        self.is_done = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> bytes | None:
        """Wait for the end; return bytes the store had no room for, or raise the error."""
        if not self.is_done:
            if self._event is None:  # most flights are waited for by nobody: no event for them
                self._event = trio.Event()
            await self._event.wait()
        if self.error is not None:
            raise self.error
        return self.data
