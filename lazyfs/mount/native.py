"""Driver 2: threads of C own the connection; Python fetches what is missing.

``pyfuse3.init`` makes the mount, which is the part that differs between root, fusermount3 and user
namespaces, and is left alone then: pyfuse3's own loop never runs beside the threads, since two
readers of one connection would take requests from each other.  The threads answer everything from
the mapped index, tables and presence maps, and from the content files.  What is not resident, and
the few attributes that change, they put into a queue; an eventfd wakes the event loop:

    MISS        make a range resident, then "answer it", or an errno; where the store could not
                take the bytes (a full disk), or loses them, the bytes themselves
    ATTRIBUTE   ask the callable for the value
    HINT        a reader has reached the chunk that read-ahead marked
    FAULT       a request failed because of what is on disk: written to the log

The connection can outlive its server (connection.py).  Inode numbers are nids and there are no
handles, so that a new server needs nothing of the old one but what the greeting agreed on.

An interrupted reader is answered by the threads at once; its fetch lives on, and its answer finds
nobody.  Where very many wait, work for those that have gone away is given up.  Contract of the
threads: native/include/lazyfs_core.h.
"""

import logging
import os
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from lazyfs._native import ATTRIBUTE, HINT, MISS, Server
from lazyfs.errors import MountFailed, StoreError
from lazyfs.mount import point
from lazyfs.mount.connection import Connection, with_clones
from lazyfs.mount.contents import NativeImage
from lazyfs.mount.errnos import errno_of
from lazyfs.mount.faults import FaultLog
from lazyfs.mount.forgetting import Page, forget_apart
from lazyfs.mount.session import PyfuseSession

if TYPE_CHECKING:  # they are in the stub only
    from lazyfs._native import Event, Layer

log = logging.getLogger(__name__)

THREADS = 2  # one is often faster by a little; two go on when one waits for the disk
MAX_READ = 1 << 20
PAGE_SIZE = 4096
NO_MARK = 0xFFFFFFFF
LOOK_SECONDS = 1.0  # how often first reads are looked at while they are recorded
MAX_TASKS = 1024
"""Misses that are worked on at once.  Each takes some kilobytes, and waits while the registry is
away; those beyond wait as numbers."""
SWEEP_SECONDS = 0.1  # between two looks at who has gone away, while there are more
REQUESTS = {1: "lookup", 3: "getattr", 5: "readlink", 15: "read", 22: "getxattr", 23: "listxattr",
            28: "readdir", 44: "readdir"}  # fmt: skip


class StoreDamaged(StoreError):
    """What is on disk of an image contradicts itself, or cannot be read."""


class NativeSession(PyfuseSession):
    """A mount of *image* that C threads serve; the same life as that of a PyfuseSession."""

    driver = "native"
    has_successor = True

    def __init__(
        self,
        image: NativeImage,
        mountpoint: str,
        *,
        threads: int | None = None,
        max_read: int | None = None,
        serves_devices: bool = False,
    ) -> None:
        super().__init__(image, mountpoint)
        self._serves_devices = serves_devices
        self._image = image
        self._threads = threads or THREADS
        self._max_read = (max_read or MAX_READ) // PAGE_SIZE * PAGE_SIZE
        self._server: Server | None = None
        self._ready = trio.Event()
        self._faults = FaultLog(image)
        self._attributes = list(image.attributes.items())
        self._touched = 0
        self._tasks: dict[int, trio.CancelScope] = {}
        self._backlog: deque[Event] = deque()
        self._swept = 0.0
        self._descriptors: list[int] = []
        self._adopted: Connection | None = None

    def mount(self, options: set[str]) -> None:
        """Make the mount with libfuse's *options*; raises MountFailed."""
        if "allow_root" in options:  # libfuse's loop checks who asks; the kernel lets all in
            raise MountFailed(
                "driver native does not support allow_root: the kernel would let every user in",
                hint="mount with --driver pyfuse3",
            )
        super().mount(options)
        try:
            self._descriptors = with_clones(self._first, self._threads)
            self._server = self._make_server()
        except (OSError, ValueError) as error:
            point.unmount(self.mountpoint, lazy=True)
            self.close()
            raise MountFailed(f"driver native on {self.mountpoint}: {error}") from error

    def adopt(self, connection: Connection) -> None:
        """Go on with a mount that another server made; its descriptors are ours from now on.

        Raises MountFailed.
        """
        self._adopted = connection
        self._descriptors = list(connection.descriptors)
        self.device = connection.device
        try:
            self._server = self._make_server()
        except (OSError, ValueError) as error:
            self.close()
            raise MountFailed(f"driver native on {self.mountpoint}: {error}") from error

    def connection(self) -> Connection | None:
        """Return what a successor has to be given; after ``wait_ready``."""
        if self._adopted is not None:
            return self._adopted
        counts = self.statistics()
        return Connection(
            tuple(self._descriptors), self.device, counts["protocol_minor"], counts["init_flags"]
        )

    def _make_server(self) -> Server:
        image = self._image
        layers: list[Layer] = [
            (layer.table, layer.states, layer.content_fd, names.digest, names.diff_id)
            for layer, names in zip(image.native_layers(), image.layers, strict=True)
        ]
        attributes = [
            (name, None if callable(value) else value) for name, value in self._attributes
        ]
        return Server(
            self._descriptors[0],
            image.index.buffer,
            image.provenance.buffer,
            layers,
            attributes,
            threads=self._threads,
            max_read=self._max_read,
            share_device=True,  # a clone that no keeper holds would end with this process
            serves_devices=self._serves_devices,
            clones=self._descriptors[1:],
            adopted_minor=0 if self._adopted is None else self._adopted.minor,
        )

    async def serve(self) -> None:
        """Answer requests until the mount is gone."""
        server = self._server
        assert server is not None, "serve before mount"
        server.start()
        if self._adopted is not None:
            self._adopted.resend()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_touches, server)
                while not server.is_gone():
                    await trio.lowlevel.wait_readable(server)
                    if server.is_ready():
                        self._ready.set()
                    self._note_touches(server)
                    for event in server.take():
                        try:
                            self._begin(server, nursery, event)
                        except Exception:  # a bug must cost a hint, not the mount
                            log.exception("native driver: event %s", event)
                nursery.cancel_scope.cancel()
        finally:
            if self._server is not None:
                server.stop()
                self._note_touches(server)

    async def wait_ready(self) -> None:
        """Wait until the kernel has greeted us."""
        await self._ready.wait()

    async def unmount(self) -> None:
        """Unmount; lazily when it is in use."""
        if self._server is not None:
            self._note_touches(self._server)
        await super().unmount()

    async def invalidate(self, pages: Sequence[Page]) -> list[Page]:
        """Have the kernel forget pages of files; return those that are spared."""
        if self._server is None:
            return []
        work = partial(forget_apart, self._descriptors[0], pages, self._server.forget)
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    def close(self) -> None:
        """Let go of the connection; what is still mounted answers ENOTCONN from now on."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._adopted is None:
            super().close()  # closes the first one
            del self._descriptors[:1]
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def statistics(self) -> dict[str, int]:
        """Return the threads' counts; hand on what they have read for the first time."""
        if self._server is None:
            return {}
        self._note_touches(self._server)
        return self._server.statistics()

    def _begin(self, server: Server, nursery: trio.Nursery, event: "Event") -> None:
        kind, request, device, nid, _, _, _, number = event
        if kind == MISS:
            self._backlog.append(event)
            self._work_off(server, nursery)
        elif kind == ATTRIBUTE:
            self._answer_attribute(server, request, number)
        elif kind == HINT:
            self._image.contents.reached(device, number)
            self._set_mark(server, device)
        else:
            self._faults.of_request(
                REQUESTS.get(number, f"request {number}"),
                nid,
                StoreDamaged("store: its data contradicts itself, or is too short"),
            )

    def _work_off(self, server: Server, nursery: trio.Nursery) -> None:
        """Begin with what waits, as far as there may be more tasks."""
        if len(self._tasks) >= MAX_TASKS:
            self._sweep(server)
        while self._backlog and len(self._tasks) < MAX_TASKS:
            event = self._backlog.popleft()
            scope = self._tasks[event[1]] = trio.CancelScope()
            nursery.start_soon(self._run, server, nursery, event, scope)

    def _sweep(self, server: Server) -> None:
        """Give up work for readers that have gone away; what is on its way for them is not."""
        now = trio.current_time()
        if now < self._swept + SWEEP_SECONDS:
            return
        for request, scope in self._tasks.items():
            if not server.waits(request):
                scope.cancel()
        self._backlog = deque(event for event in self._backlog if server.waits(event[1]))
        self._swept = trio.current_time()

    async def _run(
        self, server: Server, nursery: trio.Nursery, event: "Event", scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                await self._fetch(server, event)
        finally:
            del self._tasks[event[1]]
            if self._backlog:
                self._work_off(server, nursery)

    async def _fetch(self, server: Server, event: "Event") -> None:
        _, request, device, nid, offset, start, size, is_lost = event
        contents = self._image.contents
        try:
            if is_lost and not contents.lost(device, start, size):
                server.ignore_holes(device)
            await contents.ensure(device, start, start + size)
            self._set_mark(server, device)
            if not server.answer(request):
                data = await contents.read(device, start, size)
                if not server.answer_bytes(request, data):
                    raise AssertionError(f"contents: got {len(data)} bytes, expected {size}")
        except Exception as error:
            await trio.to_thread.run_sync(self._faults.of_read, nid, offset, size, error)
            server.answer_error(request, errno_of(error))

    def _answer_attribute(self, server: Server, request: int, number: int) -> None:
        name, value = self._attributes[number]
        try:
            server.answer_attribute(request, value() if callable(value) else value)
        except Exception as error:
            self._faults.of_request(f"getxattr {name!r}", self._image.index.root_nid, error)
            server.answer_error(request, errno_of(error))

    def _set_mark(self, server: Server, device: int) -> None:
        chunk = self._image.contents.mark(device)
        server.mark(device, NO_MARK if chunk is None else chunk)

    def _note_touches(self, server: Server) -> bool:
        """Hand on what was read for the first time; say whether more is wanted."""
        touches = server.touches(self._touched)
        self._touched += len(touches)
        try:
            return self._image.contents.touched(touches)
        except Exception:
            log.exception("native driver: %d first reads", len(touches))
            return False

    async def _follow_touches(self, server: Server) -> None:
        while True:
            if not self._note_touches(server):
                return
            await trio.sleep(LOOK_SECONDS)
