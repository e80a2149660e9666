"""What is asked of a registry before its image is ready to be opened.

While the command fetches and merges TOCs, the server has nothing to do, and the link little.  As
soon as the manifest is known the server is told (``Foreseen``).  It connects then, and asks for the
ranges of blobs that the image's profile names.  What comes is kept as it came; the fetcher of the
open image reads it as it reads the registry's answers, and verifies it like those.  Where the
profile is wrong it costs bandwidth: EARLY_SIZE at most, which is what is held in memory, too.
"""

import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from lazyfs.digest import parse_digest
from lazyfs.errors import LazyfsError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.fetch.origins.pace import Pace
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import parse_reference
from lazyfs.registry.config.access import AccessOptions
from lazyfs.registry.source import Source
from lazyfs.store.paths import Store
from lazyfs.store.profiles import load_alike, load_profile

log = logging.getLogger(__name__)

EARLY_SIZE = 16 << 20
"""Compressed bytes, altogether: a second of a link of 128 Mbit/s."""

REQUESTS = 4
"""At once.  The TOCs, which everything else waits for, share the link with them."""


WAKE_SIZE = 256 << 10
"""Whoever reads is woken for so many bytes at a time: what is decoded at once, in ``transfer``."""


class ForeseenLayer(msgspec.Struct, frozen=True):
    """A layer by its descriptor; ``toc_digest`` is what its annotations claim."""

    media_type: str
    digest: str
    size: int
    toc_digest: str

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor."""
        return Descriptor(self.media_type, parse_digest(self.digest), self.size)


class Foreseen(msgspec.Struct, frozen=True):
    """An image that is being prepared; travels between processes as JSON.

    ``layers`` are all of its layers, bottom first; None for one without a TOC.
    """

    requested: str
    repository: str
    manifest_digest: str
    layers: tuple[ForeseenLayer | None, ...]
    store_dir: str

    def encode(self) -> bytes:
        """Return the JSON form."""
        return msgspec.json.encode(self)

    @staticmethod
    def decode(data: bytes) -> "Foreseen":
        """Return what ``encode`` made of it."""
        return msgspec.json.decode(data, type=Foreseen)


class EarlyRange:
    """Bytes *start* to *end* of a blob, on their way or here; nothing vouches for them."""

    def __init__(self, descriptor: Descriptor, start: int, end: int) -> None:
        self.descriptor = descriptor
        self.start = start
        self.end = end
        self._pieces: list[bytes] = []
        self._is_over = False
        self._more = trio.Event()

    async def fetch(self, source: Source, pace: Pace) -> None:
        """Ask *source* for the range; what goes wrong only ends it."""
        started = pace.started()
        unseen = 0
        try:
            async with source.open_range(self.descriptor, self.start, self.end) as body:
                async for data in body:
                    if not self._pieces:
                        pace.answered(started)
                    pace.received(len(data))
                    self._pieces.append(data)
                    unseen += len(data)
                    if unseen >= WAKE_SIZE:
                        self._wake()
                        unseen = 0
        except LazyfsError as exc:
            log.debug("%s", exc.message)  # whoever reads on will be told
        finally:
            pace.ended()
            self._is_over = True
            self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = trio.Event()

    @asynccontextmanager
    async def open_range(
        self, source: Source, start: int, end: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a part of the range, like ``Source.open_range``; *source* has what never came."""
        body = self._read(source, start, end)
        try:
            yield body
        finally:
            await body.aclose()

    async def _read(self, source: Source, start: int, end: int) -> AsyncGenerator[bytes, None]:
        position = self.start
        number = 0
        while position < end:
            while number == len(self._pieces) and not self._is_over:
                await self._more.wait()
            if number == len(self._pieces):
                break
            data = self._pieces[number]
            number += 1
            part = data[max(0, start - position) : max(0, end - position)]
            position += len(data)
            if part:
                yield part
        if position < end:
            async with source.open_range(self.descriptor, max(start, position), end) as rest:
                async for data in rest:
                    yield data


class Early:
    """What is asked for before an image is open; tasks run in *nursery*.

    ``origin`` is None until ``begin``; whoever opens the image goes on with it, and with ``pace``.
    *is_watched* as for ``Origin``.
    """

    def __init__(self, nursery: trio.Nursery, *, is_watched: bool = False) -> None:
        self.origin: Origin | None = None
        self._is_watched = is_watched
        self.pace = Pace(trio.current_time)
        self._nursery = nursery
        self._waiting: deque[EarlyRange] = deque()
        self._begun: list[EarlyRange] = []

    def begin(self, foreseen: Foreseen, access: AccessOptions, *, is_profiled: bool) -> None:
        """Connect to where *foreseen* is; ask for what its profile names if *is_profiled*."""
        layers = [layer for layer in foreseen.layers if layer is not None]
        if not layers or access.is_offline:
            return
        reference = parse_reference(foreseen.requested)
        self.origin = Origin(reference, access, is_watched=self._is_watched)
        if is_profiled:
            self._waiting.extend(_profiled(foreseen))
        if self._waiting:
            for _ in range(REQUESTS):
                self._nursery.start_soon(self._work, self.origin)
            return
        # What a first request costs beyond its own round trip: connection, token, redirect.
        for layer in itertools.islice(itertools.cycle(layers), REQUESTS):
            first = EarlyRange(layer.descriptor, 0, min(1, layer.size))
            self._nursery.start_soon(first.fetch, self.origin.source, Pace(trio.current_time))

    async def _work(self, origin: Origin) -> None:
        while self._waiting:
            each = self._waiting.popleft()
            self._begun.append(each)
            await each.fetch(origin.source, self.pace)

    def take(self) -> list[EarlyRange]:
        """Return what has been asked for; nothing more will be."""
        self._waiting.clear()
        begun, self._begun = self._begun, []
        return begun


def _profiled(foreseen: Foreseen) -> Iterator[EarlyRange]:
    """Yield what the image's profile names, in order, but for layers of which something is here.

    Without one, what that of another image of the repository names of layers that both have.
    """
    store = Store(Path(foreseen.store_dir))
    profile = load_profile(store, parse_digest(foreseen.manifest_digest))
    if profile is None:
        profile = load_alike(store, foreseen.repository)
    if profile is None:
        return
    layers = {
        layer.toc_digest: layer
        for layer in foreseen.layers
        if layer is not None
        and not (store.layer_path(parse_digest(layer.toc_digest)) / "table").exists()
    }
    size = 0
    for number, start, end in profile.ranges:
        layer = layers.get(profile.layers[number])
        if layer is None or end > layer.size:
            continue
        size += end - start
        if size > EARLY_SIZE:
            return
        yield EarlyRange(layer.descriptor, start, end)


@asynccontextmanager
async def open_early(*, is_watched: bool = False) -> AsyncIterator[Early]:
    """Yield what can begin early; its tasks, and its connections, end with the context."""
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        early = Early(nursery, is_watched=is_watched)
        try:
            yield early
        except Exception as exc:
            error = exc  # raised below: the nursery would wrap it in a group
        finally:
            nursery.cancel_scope.cancel()
            if early.origin is not None:
                with trio.CancelScope(shield=True):
                    await early.origin.aclose()
    if error is not None:
        raise error
