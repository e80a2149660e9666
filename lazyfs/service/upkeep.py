"""Keeping the store within its budget while a mount fills it.

Looking and evicting are the disk's work, and done in a thread.  Other servers do the same at the
same time; they take turns (store/upkeep/evict.py).  What fails here costs room on the disk and
nothing else: it is said once, and the mount goes on.
"""

import logging
from collections.abc import Callable

import trio

from lazyfs.errors import StoreError
from lazyfs.store.paths import Store, store_error
from lazyfs.store.upkeep.budget import Budget
from lazyfs.store.upkeep.evict import evict

LOOK_SECONDS = 60.0
SLAB_SIZE = 64 << 20
"""Room is made, and believed to be there, for so many bytes at once: others fill the store too."""
SLAB_SHARE = 20  # and for no more than one part in so many of the budget

log = logging.getLogger(__name__)


class Upkeep:
    """Keeps *store* within *budget*; *grown* counts what this server has stored.

    ``make_room`` is for filling in the background, ``run`` looks at what readers have stored, and
    ``look`` is for when something has ended: filling, or the mount, whose layers may go then.
    """

    def __init__(self, store: Store, budget: Budget, grown: Callable[[], int]) -> None:
        self._store = store
        self._budget = budget
        self._grown = grown
        self._seen = -1
        self._left = 0
        self._lock = trio.Lock()
        self._has_failed = False

    async def make_room(self, size: int) -> bool:
        """Say whether *size* bytes may be stored that nobody wants yet; evicts what is older.

        What was granted and is not stored yet is not seen: some requests more than fit are.
        """
        async with self._lock:
            if size > self._left:
                self._left = await self._room(size)
            if size > self._left:
                log.debug("cache %s: no room for %d more bytes", self._store.root, size)
                return False
            self._left -= size
            return True

    async def run(self) -> None:
        """Look now and then, if anything was stored since."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            if self._grown() != self._seen:
                await self.look()

    async def look(self) -> None:
        """Evict what is too much now."""
        async with self._lock:
            self._seen = self._grown()
            self._left = await self._room(0)

    async def _room(self, size: int) -> int:
        """Make room for *size* bytes, as far as that is possible; return how many may be stored."""
        return await trio.to_thread.run_sync(self._make_room, size)

    def _make_room(self, size: int) -> int:
        try:
            budget = self._budget.size_in(self._store.root)
            slab = max(size, min(SLAB_SIZE, budget // SLAB_SHARE)) if size else 0
            done = evict(self._store, max(0, budget - slab))
        except (StoreError, OSError) as error:
            self._complain(error)
            return SLAB_SIZE + size  # what cannot be measured does not end the filling
        if done.freed_size:
            log.info("cache %s: freed %d bytes", self._store.root, done.freed_size)
        return min(budget - done.allocated_size, SLAB_SIZE + size)

    def _complain(self, error: StoreError | OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            if isinstance(error, OSError):
                error = store_error(self._store.root, error)
            log.warning("%s; the cache may exceed its budget", error.message)
