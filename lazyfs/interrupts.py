"""Interrupts of a command: Ctrl-C, and the other signals that ask it to end, treated alike.

Python raises KeyboardInterrupt between any two steps of the main thread.  Only the first signal
does so here: another one would interrupt the cleaning up.  And it has to wait where it would lose
what was just made, such as a process whose pid has not been stored yet.
"""

import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_SECONDS = 0.01

T = TypeVar("T")


class Interrupts:
    """Handles those signals in a command; ``came`` lists those that arrived, in order."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self._lost: int = signal.SIGINT
        self._trio: Any = None  # its handler, while it runs

    def install(self) -> None:
        """Handle the signals, except those that the parent process has set to be ignored."""
        for number in REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.interrupt)
        signal.signal(signal.SIGALRM, self._say_again)
        sys.unraisablehook = self._note_lost

    def interrupt(self, number: int, frame: Any) -> None:
        """Raise KeyboardInterrupt for the first signal; under trio, where trio would."""
        self.came.append(number)
        if len(self.came) > 1:
            return
        if self._trio is None:
            raise KeyboardInterrupt
        self._trio(signal.SIGINT, frame)

    def end(self) -> None:
        """End this process by the signal that interrupted it, unless that was Ctrl-C."""
        if self.came and self.came[0] != signal.SIGINT:
            signal.signal(self.came[0], signal.SIG_DFL)
            signal.raise_signal(self.came[0])

    def run_trio(self, work: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> T:
        """Run *work* under trio, whose handler is called by ours."""
        import trio  # noqa: PLC0415 - a command that runs none need not wait for it

        async def run() -> T:
            self._trio = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, self.interrupt)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
            return await work(*arguments)

        signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # or trio has none
            result = trio.run(run)
        finally:
            self._trio = None
            signal.signal(signal.SIGINT, self.interrupt)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
        if self.came:
            raise KeyboardInterrupt  # it came when trio had ended
        return result

    def _note_lost(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Repeat an interrupt that arrived in a destructor, where nothing can be raised."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        self._lost = self.came[0] if self.came else signal.SIGINT
        self.came.clear()
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)

    def _say_again(self, number: int, frame: Any) -> None:
        signal.raise_signal(self._lost)


class uninterrupted:
    """Delay interrupts to the end of the block; what takes long is done within ``opened``.

    So whoever cleans up knows what was made, and cleaning up is not interrupted:

        with uninterrupted() as held:
            process = start()
            try:
                with held.opened():
                    process.wait()
            finally:
                end(process)
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in REQUESTS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self.note)
        except ValueError:
            self._before.clear()  # not the main thread, which alone is interrupted
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def note(self, number: int, frame: object) -> None:
        """Handle a signal by remembering it."""
        self.came.append(number)

    def release(self) -> None:
        """Allow interrupts again; one that arrived meanwhile is raised now."""
        try:
            self._restore()
        except BaseException:  # one that came between two of them; none comes after it
            self._restore()
            raise
        finally:
            self._before.clear()
        came, self.came = self.came, []
        if came:
            signal.raise_signal(came[0])

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Allow interrupts within the block, and delay them again after it."""
        try:
            self.release()
            yield
        finally:
            self.__enter__()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def is_interrupt_waiting() -> bool:
    """Say whether an interrupt is delayed by the innermost uninterrupted block."""
    owners = [getattr(signal.getsignal(number), "__self__", None) for number in REQUESTS]
    return any(isinstance(owner, uninterrupted) and owner.came for owner in owners)


def run_trio(work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run *work* as trio.run does, and raise interrupts where trio wants them.

    trio keeps them out of its own code where it finds Python's own handler, and only there.
    """
    owner = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and isinstance(owner, Interrupts) and not owner.came:
        return owner.run_trio(work, arguments)
    import trio  # noqa: PLC0415

    return trio.run(work, *arguments)
