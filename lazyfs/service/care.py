"""Looking after what is stored of a live mount.

What was hashed long ago is hashed again, slowly.  What turns out to be rotten, here or elsewhere,
leaves the kernel's memory, so that whoever reads next gets right bytes.

A server that goes on with a mount cannot know what the kernel has of it.  Its predecessor may have
read another content file than the one that is here now, or have found rot, unmarked it and died
before it told anybody; nothing in the store says so afterwards.  So all of it is forgotten.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from lazyfs.errors import LazyfsError
from lazyfs.fetch.device import Device
from lazyfs.fetch.scrub import is_due, scrub
from lazyfs.image.open import OpenImage
from lazyfs.mount.forgetting import Page
from lazyfs.mount.session import PyfuseSession
from lazyfs.rootfs.owners import Range, owners_of
from lazyfs.service.dropped import (
    ANSWER,
    Dropped,
    decode_dropped,
    runs_of,
    tell_mounts,
)
from lazyfs.store.quarantine import put_chunk_aside

LOOK_SECONDS = 3600.0
SPARED_SECONDS = 0.5
"""Between two looks at reads that pages were spared for, while there are such."""

FINISH_SECONDS = 10.0
"""How long a server that ends tries to tell others what it has found."""

log = logging.getLogger(__name__)


Found = tuple[str, list[int]]
"""The name of a layer's folder, and chunks of it whose bytes were wrong."""


class Care:
    """Looks after the store for the mount of *image* by *session*; ``run`` is its task.

    Other servers' records are in *runtime*.  *is_successor*: the kernel has pages that another
    server has answered with.
    """

    def __init__(
        self,
        image: OpenImage,
        session: PyfuseSession,
        runtime: Path,
        *,
        is_successor: bool = False,
    ) -> None:
        self._image, self._session, self._runtime = image, session, runtime
        self._is_successor = is_successor
        self._send, self._receive = trio.open_memory_channel[Found](math.inf)
        self._send_others, self._receive_others = trio.open_memory_channel[Found](math.inf)
        # How often rot was found here, and how much of that the kernel has forgotten.  What a
        # predecessor has left counts as found once.
        self._noted, self._forgotten = int(is_successor), 0
        self._has_forgotten = trio.Event()
        self._spared: list[Page] = []
        self._has_spared = trio.Event()
        # What other mounts have not been told of: layer and chunk, and how often it was found.
        self._untold: Counter[tuple[str, int]] = Counter()
        image.contents.doubts.dropped = self._note
        image.contents.doubts.keep = partial(_keep, image)

    def _note(self, device: Device, chunks: list[int]) -> None:
        name = device.content.folder.name
        self._noted += 1
        self._untold.update((name, chunk) for chunk in chunks)
        self._send.send_nowait((name, chunks))

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forget)
            nursery.start_soon(self._forget_spared)
            nursery.start_soon(self._tell)
            nursery.start_soon(self._scrub)

    async def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Answer whoever has dropped chunks, when the kernel has forgotten them."""
        dropped = decode_dropped(question)
        if dropped is None:
            return {"type": "error", "message": "dropped: there are no layers with chunks"}
        layers = dict(dropped.layers)
        for device in self._image.devices:
            name = device.content.folder.name
            runs = layers.get(name, [])
            if runs is None or device.content.is_apart():
                await trio.to_thread.run_sync(device.content.doubt)
                layers[name] = None
            elif runs:
                await trio.to_thread.run_sync(_suspect, device, runs)
        count = await self._forget_pages(Dropped(layers))
        noted = self._noted
        while self._forgotten < noted:  # found here before whoever asks could find it
            await self._has_forgotten.wait()
        return {"type": ANSWER, "files": count}

    async def _forget(self) -> None:
        """Have the kernel forget what was found to be wrong here, and before, by whoever."""
        if self._is_successor:
            try:
                _, spared = await forget_all(self._image, self._session)
                self._spare(spared)
            except Exception:  # the mount must go on
                log.exception("%s: pages of the server before", self._session.mountpoint)
            self._note_forgotten(1)
        while True:
            found, count = await _collected(self._receive)
            try:
                dropped = Dropped({each: list(runs_of(found[each])) for each in found})
                await self._forget_pages(dropped)
            except Exception:  # the mount must go on
                log.exception("%s: dropped chunks", self._session.mountpoint)
            self._note_forgotten(count)
            for each in found.items():
                self._send_others.send_nowait(each)

    def _note_forgotten(self, count: int) -> None:
        self._forgotten += count
        self._has_forgotten.set()
        self._has_forgotten = trio.Event()

    async def _forget_pages(self, dropped: Dropped) -> int:
        """Have the kernel forget what it may have of *dropped*; return how many files it was in."""
        count, spared = await forget_pages(self._image, self._session, dropped)
        self._spare(spared)
        return count

    def _spare(self, pages: list[Page]) -> None:
        if pages:
            self._spared += pages
            self._has_spared.set()

    async def _forget_spared(self) -> None:
        """Have the kernel forget what was spared for a read, when that has been answered.

        The read brought right bytes.  But a newer kernel may keep what it knew of one large page,
        and pyfuse3 does not say which reads go past the pages.
        """
        while True:
            await self._has_spared.wait()
            self._has_spared = trio.Event()
            while self._spared:
                await trio.sleep(SPARED_SECONDS)
                pages, self._spared = sorted(set(self._spared)), []
                try:
                    self._spared += await self._session.invalidate(pages)
                except Exception:  # the mount must go on
                    log.exception("%s: spared pages", self._session.mountpoint)

    async def _tell(self) -> None:
        """Tell the other mounts; apart, because two servers may tell each other."""
        while True:
            found, _ = await _collected(self._receive_others)
            await self._tell_others(found)
            told = Counter((name, chunk) for name, chunks in found.items() for chunk in chunks)
            self._untold -= told

    async def _tell_others(self, found: Mapping[str, list[int]]) -> None:
        tell = partial(tell_mounts, self._runtime, self._image.store.root, found)
        try:
            await trio.to_thread.run_sync(tell, abandon_on_cancel=True)
        except Exception:  # the mount must go on
            log.exception("%s: telling others", self._session.mountpoint)

    async def finish(self) -> None:
        """Tell other mounts what ``run`` has not got to: after this process nobody knows of it."""
        found: dict[str, list[int]] = {}
        for name, chunk in self._untold:
            found.setdefault(name, []).append(chunk)
        if found:
            with trio.move_on_after(FINISH_SECONDS):
                await self._tell_others(found)

    async def _scrub(self) -> None:
        while True:
            # Not all mounts of a layer at the same time: the first one does it for all.
            await trio.sleep(LOOK_SECONDS * random.uniform(0.5, 1))
            for device in self._image.devices:
                if is_due(device):
                    try:
                        await scrub(device, self._image.contents.doubts)
                    except Exception:
                        log.exception("%s: hashing again", self._session.mountpoint)


async def _collected(
    channel: "trio.MemoryReceiveChannel[Found]",
) -> tuple[dict[str, list[int]], int]:
    """Wait for something, and return all that there is by then, and in how many pieces it came."""
    found: dict[str, list[int]] = {}
    name, chunks = await channel.receive()
    count = 0
    while True:
        count += 1
        found.setdefault(name, []).extend(chunks)
        try:
            name, chunks = channel.receive_nowait()
        except trio.WouldBlock:
            return found, count


def _suspect(device: Device, runs: Iterable[tuple[int, int]]) -> None:
    """Doubt chunks: who found them wrong may not have been able to say so in the map we use."""
    for first, stop in runs:
        stop = min(stop, device.table.count)
        if 0 <= first < stop:
            device.content.suspect(first, stop - 1)


def _keep(image: OpenImage, device: Device, chunk: int) -> None:
    put_chunk_aside(image.store, device.content, chunk)


async def forget_all(image: OpenImage, session: PyfuseSession) -> tuple[int, list[Page]]:
    """Have the kernel forget what it has of any file; returns what ``forget_pages`` does."""
    names = [device.content.folder.name for device in image.devices]
    return await forget_pages(image, session, Dropped(dict.fromkeys(names)))


async def forget_pages(
    image: OpenImage, session: PyfuseSession, dropped: Dropped
) -> tuple[int, list[Page]]:
    """Have the kernel forget what it may have of *dropped*.

    Returns how many files that was in, and pages that were spared for reads that are waiting.
    """
    count, spared = 0, []
    for device in image.devices:
        name = device.content.folder.name
        if name not in dropped.layers:
            continue
        runs = dropped.layers[name]
        ranges = _ranges(device, [(0, device.table.count)] if runs is None else runs)

        def find(number: int = device.number, where: Sequence[Range] = ranges) -> list[Any]:
            return list(owners_of(image.index, number, where))

        try:
            pages = await trio.to_thread.run_sync(find)
        except LazyfsError as error:
            log.warning("%s: %s", session.mountpoint, error.message)
            continue
        count += len({nid for nid, _, _ in pages})
        spared += await session.invalidate(pages)
    return count, spared


def _ranges(device: Device, runs: Iterable[tuple[int, int]]) -> list[Range]:
    """Return the device ranges of runs of chunks; what is no chunk is left out."""
    table, found = device.table, []
    for first, stop in sorted(runs):
        stop = min(stop, table.count)
        if 0 <= first < stop:
            end = table.device_offset(stop - 1) + table.size(stop - 1)
            found.append((table.device_offset(first), end))
    return found
