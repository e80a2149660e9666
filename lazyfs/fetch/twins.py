"""Chunks that another layer of the store holds already: copied instead of fetched.

Images of one family differ by a layer that was built again, most of whose files are the same as
before.  Chunks are the same when their digests are; what is copied is hashed first, like
everything that was not verified in this session.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

import msgspec

from lazyfs.errors import LazyfsError
from lazyfs.fetch.device import Device
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import ABSENT, RESIDENT
from lazyfs.store.layers import load_table
from lazyfs.store.paths import Store
from lazyfs.store.usage import layers_in

CANDIDATES = 32
"""How many layers are compared, the most recently used ones: each costs a few milliseconds."""


class Twin(msgspec.Struct, frozen=True):
    """The same chunk in another layer's content."""

    content: LayerContent
    chunk: int


class Twins:
    """The chunks of *devices* that other layers of *store* may hold.

    ``search`` and ``copy`` block, and run in worker threads; until ``search`` has ended there are
    no twins.  The layers they are in are kept open, and so safe from eviction, until the last twin
    has been copied or ``close`` is called.
    """

    def __init__(self, store: Store, devices: Sequence[Device]) -> None:
        self._store = store
        self._devices = devices
        self._opened: list[LayerContent] = []
        self._twins: dict[tuple[int, int], Twin] = {}
        self._is_closed = False
        self._changed = Condition()
        self._busy = 0  # threads that use the other layers' descriptors
        self._has_searched = False

    def are_possible(self) -> bool:
        """Say whether the store has other layers than these."""
        own = {device.content.folder for device in self._devices}
        return any(folder not in own for folder in self._store.layers.glob("*"))

    def search(self) -> None:
        """Find the twins."""
        with self._using_layers() as is_open:
            if is_open:
                self._search()
        self._has_searched = True
        if not self._twins:
            self.close()

    def _search(self) -> None:
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        for device in self._devices:
            for chunk, digest in enumerate(device.table.digests()):
                # The digest of a hole stands for nothing: it must not make a twin of anything.
                if device.content.states[chunk] != RESIDENT and chunk not in device.table.holes:
                    wanted.setdefault(digest, []).append((device.number, chunk))
        own = {device.content.folder for device in self._devices}
        candidates = [
            usage.toc_digest
            for usage in reversed(layers_in(self._store))
            if self._store.layer_path(usage.toc_digest) not in own
        ]
        for toc_digest in candidates[:CANDIDATES]:
            if self._is_closed or not wanted:
                return
            table = load_table(self._store, toc_digest)
            if table is None:
                continue
            digests = table.digests()
            if wanted.keys().isdisjoint(digests):
                continue
            try:
                content = LayerContent(self._store.layer_path(toc_digest), table)
            except LazyfsError:
                continue
            self._opened.append(content)
            for chunk, digest in enumerate(digests):
                if digest not in wanted or content.states[chunk] == ABSENT or chunk in table.holes:
                    continue
                for place in wanted.pop(digest):
                    self._twins[place] = Twin(content, chunk)

    def has(self, device: Device, chunks: Sequence[int]) -> bool:
        """Say whether any of *chunks* has a twin."""
        twins = self._twins
        return bool(twins) and any((device.number, chunk) in twins for chunk in chunks)

    def copy(self, device: Device, chunks: Sequence[int]) -> int:
        """Copy those of *chunks* that have a twin; return how many bytes that were.

        What cannot be copied, for whatever reason, is left to be fetched.
        """
        with self._using_layers() as is_open:
            size = self._copy(device, chunks) if is_open else 0
        if self._has_searched and not self._twins:
            self.close()
        return size

    def _copy(self, device: Device, chunks: Sequence[int]) -> int:
        size = 0
        for chunk in chunks:
            twin = self._twins.pop((device.number, chunk), None)
            if twin is None or twin.content.states[twin.chunk] == ABSENT:
                continue
            # A TOC may claim a digest and another size.  What lies behind the twin is of another
            # file, perhaps of an image that this one must know nothing of.
            if twin.content.table.size(twin.chunk) != device.table.size(chunk):
                continue
            if not twin.content.is_right(twin.chunk):
                continue
            try:
                offset = twin.content.table.device_offset(twin.chunk)
                device.content.copy(chunk, twin.content.fd, offset)
            except (LazyfsError, OSError):
                continue
            size += device.table.size(chunk)
        return size

    def close(self) -> None:
        """Let go of the other layers, after the threads that use them.  Idempotent."""
        with self._changed:
            self._is_closed = True
            self._twins.clear()
            # A descriptor must not be closed, and so become another file's, under a copy.
            self._changed.wait_for(lambda: not self._busy)
            opened, self._opened = self._opened, []
            for content in opened:
                content.close()

    @contextmanager
    def _using_layers(self) -> Iterator[bool]:
        """Keep the other layers open; False if they were let go of already."""
        with self._changed:
            is_open = not self._is_closed
            self._busy += 1
        try:
            yield is_open
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
