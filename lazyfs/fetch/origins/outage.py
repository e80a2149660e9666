"""While the registry is away: readers wait, a probe asks for them all, and all go on together.

The first request that fails because the registry is away, throttles or stalls begins an outage; so
does one that brings nothing for seconds, if a probe brings nothing either.
From then on nobody asks but the probe, for one byte of what a reader waits for; what was asked
before and has brought nothing is given up when the registry is back.  Who reads waits up to the
patience, counted from when he began to; whoever fills the store waits for the end.  With a patience
of 0 there are no outages: what fails, fails.
"""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf

import trio

from lazyfs.digest import Digest
from lazyfs.errors import DeadlineExceeded, LazyfsError, Unavailable
from lazyfs.fetch.origins.flights import Progress
from lazyfs.fetch.origins.origin import Origin
from lazyfs.oci.descriptor import Descriptor

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.7
"""Between two probes while somebody waits; each is shortened by up to a third, at random."""

PROBE_SECONDS = 6.0
PROBES = 8
"""A probe that is not answered holds up none of the following ones, which may be the first to reach
a registry that is back; so many are under way at most."""

SUSPECT_SECONDS = 4.0
"""When none of the requests has brought anything for so long, a probe looks whether the registry is
there.  If it is, their connections are dead, and they are made again: twice as late each time,
since they may be slow."""

LONGEST_SUSPECT_SECONDS = 60.0

IDLE_PAUSE_SECONDS = 15.0
"""Between two probes while nobody waits, at the longest."""

OBEYED_SECONDS = 30.0
"""A Retry-After is obeyed up to here."""

RECEIVING_SECONDS = 30.0
"""Whose bytes came more recently is not given up for lack of patience."""

LOOK_SECONDS = 1.0


class OutOfPatience(DeadlineExceeded):
    """The registry was away for longer than a reader waits."""


class NoAnswer(DeadlineExceeded):
    """A probe was not answered in time."""

    is_away = True


class GivenUp(Unavailable):
    """What was asked of a registry before it went away: its answer would never come."""

    is_away = True


class Outage:
    """Whether *origin* is away, and who waits for it, *patience* seconds at most.

    ``since`` is when it was found to be away (RFC 3339, UTC), None while it is not; ``reason`` is
    the last thing that was wrong.  Everything runs on one event loop; the probe in *nursery*.
    """

    def __init__(self, origin: Origin, nursery: trio.Nursery, patience: float = 0.0) -> None:
        self.patience = patience
        self.since: str | None = None
        self.reason = ""
        self._origin = origin
        self._nursery = nursery
        self._over = trio.Event()
        self._back = trio.Event()
        self._news = trio.Event()
        self._waiting = 0
        self._is_silent = False
        self._retry_at = 0.0
        self._began = self._returned = -inf
        self._targets: dict[Digest, tuple[Descriptor, int]] = {}
        self._attempts: dict[trio.CancelScope, tuple[Progress, Descriptor, int]] = {}
        self._is_suspicious = False

    @property
    def is_on(self) -> bool:
        """Whether the registry is away."""
        return self.since is not None

    # Requests.

    @contextmanager
    def attempt(self, progress: Progress, blob: Descriptor, start: int) -> Iterator[None]:
        """Ask for a blob from byte *start* on, within the block.

        Raises GivenUp if that outlives an outage unanswered.
        """
        progress.asked = trio.current_time()
        if not self.patience:
            yield
            return
        if self.is_on:  # its turn has come late
            raise GivenUp(f"{self._origin.repository}: not asked, since it is away")
        if not self._is_suspicious and self._origin.kind == "registry":
            self._is_suspicious = True
            self._nursery.start_soon(self._suspect)
        with trio.CancelScope() as scope:
            self._attempts[scope] = progress, blob, start
            try:
                yield
            finally:
                del self._attempts[scope]
        if self.is_on and (progress.heard or 0.0) > self._began:
            self._back.set()  # it was asked before, and has been answered
            self._news.set()
        if scope.cancelled_caught:
            raise GivenUp(f"{self._origin.repository}: asked again, now that it is back")

    def note(self, error: LazyfsError, blob: Descriptor, start: int, progress: Progress) -> None:
        """Learn that byte *start* of a blob, asked for as *progress* says, could not be had."""
        is_old = progress.asked is None or progress.asked < self._returned
        if self.patience and is_away(error) and not isinstance(error, GivenUp) and not is_old:
            self._begin(error, blob, start)

    def _begin(self, error: LazyfsError, blob: Descriptor, start: int) -> None:
        self._targets[blob.digest] = (blob, start)
        self._learn(error)
        if self.since is None:
            self.since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._began = trio.current_time()
            self._over = trio.Event()
            self._back = trio.Event()
            log.warning(
                "%s is unavailable: %s; readers wait for it, up to %g s",
                *(self._origin.repository, error.message, self.patience),
            )
            self._nursery.start_soon(self._watch)

    def _learn(self, error: LazyfsError) -> None:
        self.reason = error.message
        self._is_silent = self._is_silent or isinstance(error, DeadlineExceeded)
        asked = getattr(error, "retry_after", None)
        if asked is not None:
            from lazyfs.registry.retry import parse_retry_after  # noqa: PLC0415

            seconds = parse_retry_after(asked, time.time())
            if seconds is not None:
                self._retry_at = trio.current_time() + min(seconds, OBEYED_SECONDS)

    # Waiting.

    async def wait_over(self, blob: Descriptor, start: int, began: float | None = None) -> None:
        """Return when the registry is back, for byte *start* of a blob; at once if it is not away.

        *began* is since when a reader waits; raises OutOfPatience when that is too long.
        """
        if self.since is None:
            return
        self._targets.setdefault(blob.digest, (blob, start))
        deadline = inf if began is None else began + self.patience
        self._waiting += began is not None
        if self._waiting == 1:
            self._news.set()  # who probes may be resting
        try:
            with trio.move_on_at(deadline):
                await self._over.wait()
                return
        finally:
            self._waiting -= began is not None
        raise self._out_of_patience()

    def bear(self, error: LazyfsError, began: float) -> None:
        """Raise *error*, or what it comes to, unless a reader may go on waiting."""
        if not self.patience or not is_away(error):
            raise error
        if trio.current_time() >= began + self.patience:
            raise self._out_of_patience() from error

    def look_again(
        self, began: float, progress: Iterable[Progress], blob: Descriptor, start: int
    ) -> float:
        """Say when a reader who waits for requests should look how far they are.

        *began* is since when he waits.  Raises OutOfPatience where nothing comes any more.
        """
        now = trio.current_time()
        if not self.patience or now < began + self.patience:
            return began + self.patience if self.patience else inf
        under_way = list(progress)
        heard = [each.heard for each in under_way if each.heard is not None]
        window = min(self.patience, RECEIVING_SECONDS)
        if heard and now < max(heard) + window:
            return max(heard) + window
        asked = [each.asked for each in under_way if each.asked is not None]
        if not self.is_on and (not asked or now < max(asked) + self.patience):
            return now + LOOK_SECONDS  # it waits for others to end, who get on
        error = self._out_of_patience()
        if not self.is_on:
            self._begin(error, blob, start)
        raise error

    def _out_of_patience(self) -> OutOfPatience:
        said = f": {self.reason}" if self.reason else ""
        return OutOfPatience(
            f"{self._origin.repository}: nothing came of it for {self.patience:g} s{said}",
            hint="--patience of lazyfs mount says how long readers wait for a registry",
        )

    # The probe.

    async def _suspect(self) -> None:
        """While requests are under way, look after those that bring nothing."""
        limit = SUSPECT_SECONDS
        while self._attempts and not self.is_on:
            await trio.sleep(LOOK_SECONDS)
            silent = self._silent(limit)
            if silent is None or self.is_on:
                continue
            error = await self._ask(*silent, is_fresh=True)
            if self._silent(limit) is None or self.is_on:
                continue
            if error is not None and is_away(error):
                self._begin(error, *silent)
            else:
                limit = min(2 * limit, LONGEST_SUSPECT_SECONDS)
                self._give_up_silent(trio.current_time() - SUSPECT_SECONDS)
                await self._origin.source.reconnect()
        self._is_suspicious = False

    def _silent(self, seconds: float) -> tuple[Descriptor, int] | None:
        """Return what was asked for first, if nothing has come of anything for *seconds*."""
        limit = trio.current_time() - seconds
        silent = None
        for progress, blob, start in self._attempts.values():
            if max(progress.asked or 0.0, progress.heard or 0.0) > limit:
                return None
            silent = silent or (blob, start)
        return silent

    def _give_up_silent(self, since: float) -> None:
        """Give up the requests that have brought nothing since then."""
        for scope, (progress, _, _) in list(self._attempts.items()):
            if progress.heard is None or progress.heard < since:
                scope.cancel()

    async def _watch(self) -> None:
        back = self._back
        async with trio.open_nursery() as nursery:
            slots = trio.Semaphore(PROBES)
            idle = PAUSE_SECONDS
            await self._rest(0.0, back)  # as long as it was asked for
            while not back.is_set():
                self._news = trio.Event()
                try:
                    slots.acquire_nowait()
                    nursery.start_soon(self._probe, slots, back)
                except trio.WouldBlock:
                    pass
                idle = PAUSE_SECONDS if self._waiting else min(2 * idle, IDLE_PAUSE_SECONDS)
                await self._rest(idle, back)
            nursery.cancel_scope.cancel()
        seconds = trio.current_time() - self._began
        log.warning("%s is back after %.1f s", self._origin.repository, seconds)
        await self._go_on()

    async def _rest(self, seconds: float, back: trio.Event) -> None:
        """Wait until the next probe is due, or nobody needs one."""
        pause = seconds * (1 - random.random() / 3)
        due = max(trio.current_time() + pause, self._retry_at)
        while not back.is_set() and trio.current_time() < due:
            with trio.move_on_at(due):
                await self._news.wait()
                self._news = trio.Event()
                if self._waiting:  # somebody has come
                    soon = trio.current_time() + PAUSE_SECONDS / 2
                    due = max(min(due, soon), self._retry_at)

    async def _probe(self, slots: trio.Semaphore, back: trio.Event) -> None:
        digest, target = next(iter(self._targets.items()))
        self._targets[digest] = self._targets.pop(digest)  # another one's turn
        try:
            error = await self._ask(*target, is_fresh=self._is_silent)
        finally:
            slots.release()
        if error is not None and is_away(error):
            self._learn(error)
        else:
            back.set()  # what else may be wrong, whoever reads is told
            self._news.set()

    async def _ask(self, blob: Descriptor, start: int, *, is_fresh: bool) -> LazyfsError | None:
        """Ask for one byte; return what was wrong."""
        try:
            with trio.fail_after(PROBE_SECONDS):
                await self._origin.probe(blob, start, is_fresh=is_fresh)
        except trio.TooSlowError:
            return NoAnswer(f"{self._origin.repository}: got no answer in {PROBE_SECONDS:g} s")
        except LazyfsError as error:
            return error
        except Exception as error:  # a bug must not end the mount
            log.exception("probe of %s", self._origin.repository)
            return NoAnswer(f"{self._origin.repository}: {type(error).__name__}")
        return None

    async def _go_on(self) -> None:
        """Have all who wait ask again."""
        self._returned = trio.current_time()
        self.since = None
        self._targets.clear()
        self._give_up_silent(self._began)
        if self._is_silent:
            self._is_silent = False
            try:
                await self._origin.source.reconnect()
            except LazyfsError as error:
                log.debug("%s", error.message)
        self._over.set()


def is_away(error: LazyfsError) -> bool:
    """Say whether *error* is about a registry that is away, and no answer of it."""
    return isinstance(error, Unavailable) and error.is_away
