"""Fetching what a program that starts is about to read, as far as its own bytes tell.

Two things begin it: the image's config names the program that the image is for, and a reader that
misses a program, a script or a module names another one.  What they need is fetched side by side,
before the kernel asks for it; as soon as a file of it is here, and so verified, it is asked for
what it needs in its turn.  Where that is wrong it costs bandwidth: at most FORECAST_SIZE, in at
most six requests at once beside those that somebody waits for.  Nothing waits for it.
"""

import heapq
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import trio

from lazyfs.errors import FormatError, LazyfsError
from lazyfs.fetch.ahead.program import File, Finder, Library
from lazyfs.fetch.counts import Purpose
from lazyfs.fetch.device import Device
from lazyfs.fetch.fetch import Fetcher
from lazyfs.fetch.plan import plan_runs
from lazyfs.fetch.throttle import Throttle
from lazyfs.rootfs import elf
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.imports import imports_of_bytecode, imports_of_source
from lazyfs.store.content.presence import RESIDENT

log = logging.getLogger(__name__)

FORECAST_SIZE = 32 << 20
"""Blob bytes, altogether: what a large program with its libraries takes to start."""

WHOLE_SIZE = 8 << 20
"""A program or library up to this size is read as a whole, nearly; of a larger one some parts."""

MODULE_SIZE = 1 << 20
FILES = 2000
ORIGIN_RE = re.compile(rb"\$(?:ORIGIN\b|\{ORIGIN\})")
REQUESTS = 6


class _Request(msgspec.Struct, eq=False):
    """A run that is to be fetched: the smaller ``urgency`` first, then in order.

    ``begun`` and ``ended`` say how far it is.
    """

    urgency: int
    number: int
    dev: Device
    chunks: list[int]
    begun: trio.Event = msgspec.field(default_factory=trio.Event)
    ended: trio.Event = msgspec.field(default_factory=trio.Event)

    def __lt__(self, other: "_Request") -> bool:
        return (self.urgency, self.number) < (other.urgency, other.number)


class Forecast:
    """What will be read of one open image.

    *config* is the image's, as JSON's types; tasks run in *nursery*.
    """

    def __init__(
        self,
        index: ErofsIndex,
        devices: Sequence[Device],
        fetcher: Fetcher,
        nursery: trio.Nursery,
        config: Mapping[str, Any],
    ) -> None:
        self._config = config
        self._finder = Finder(index)
        self._devices = {device.number: device for device in devices}
        self._fetcher = fetcher
        self._nursery = nursery
        self._throttle: Throttle | None = None
        self._left = FORECAST_SIZE
        self._queue: list[_Request] = []
        self._number = 0
        self._workers = 0
        self._coming: dict[tuple[int, int], _Request] = {}  # by device and chunk
        self._seen: set[int] = set()
        self._places: set[tuple[int, int]] = set()
        self._library: Library | None = None
        self._pythons: dict[tuple[int, int], File] = {}  # by device and offset
        self._modules: dict[tuple[int, int], File] = {}
        self._pending = 0
        self._is_idle = trio.Event()

    async def run(self, throttle: Throttle | None = None) -> None:
        """Fetch for the program that the config names; return when that leads no further."""
        self._throttle = throttle
        self._fetcher.foresee = self.missed
        self._fetcher.begins = self.misses
        programs, arguments = self._finder.command(self._config)
        for python in self._finder.pythons():
            self._pythons[python.device, python.offset] = python
        self._want(programs, self._follow_program)
        if programs:
            self._want(self._finder.system_files(), self._follow_library)
        for program in programs:
            self._start_python(program)
        self._want(arguments, self._follow_module)
        await self.wait_settled()

    async def wait_settled(self) -> None:
        """Return when what has been named so far leads no further."""
        if self._pending:
            await self._is_idle.wait()

    def misses(self, dev: Device, chunk: int) -> None:
        """Note that a reader waits for *chunk*: what its name tells need not wait for its bytes."""
        module = self._modules.get((dev.number, dev.table.device_offset(chunk)))
        if module is not None and self._library is not None and self._left > 0:
            found = self._finder.companions(module, self._library)
            self._fetch([(file, 0, min(file.size, MODULE_SIZE)) for file in found])

    def missed(self, dev: Device, chunk: int) -> None:
        """Note that a reader has missed *chunk*, which is here now."""
        if self._left <= 0 or dev.content.states[chunk] != RESIDENT:
            return
        offset = dev.table.device_offset(chunk)
        module = self._modules.get((dev.number, offset))
        if module is not None:
            if module.nid not in self._seen:
                self._seen.add(module.nid)
                self._begin(self._follow_module, module)
            return
        if (dev.number, offset) in self._places:
            return
        self._places.add((dev.number, offset))
        python = self._pythons.get((dev.number, offset))
        if python is not None:
            self._start_python(python)
        # A file that is no module: its first bytes say whether it starts something.
        size = dev.table.size(chunk)
        first = dev.content.read(offset, min(size, 4))
        if elf.is_elf(first) or first.startswith(b"#!"):
            nameless = File(b"", 0, dev.number, offset, size)
            self._begin(self._follow_program, nameless)

    # Fetching.

    def _begin(self, follow: Callable[[File], Any], file: File) -> None:
        self._pending += 1
        self._nursery.start_soon(self._followed, follow, file)

    async def _followed(self, follow: Callable[[File], Any], file: File) -> None:
        try:
            await follow(file)
        except LazyfsError as exc:  # whoever reads it will be told
            log.debug("%r: %s", file.path, exc.message)
        except Exception:  # a guess must not end the mount
            log.exception("%r: forecast failed", file.path)
        finally:
            self._pending -= 1
            if not self._pending:
                self._is_idle.set()
                self._is_idle = trio.Event()

    def _want(self, files: Iterable[File], follow: Callable[[File], Any]) -> None:
        """Ask for *files*, each once, and have each followed when it is here."""
        fresh = []
        for file in files:
            if file.nid not in self._seen and len(self._seen) < FILES:
                self._seen.add(file.nid)
                fresh.append(file)
        urgency = 1 if follow == self._follow_module else 0
        self._fetch([(file, 0, _size_at_once(file)) for file in fresh], urgency)
        for file in fresh:
            self._begin(follow, file)

    def _fetch(self, parts: Sequence[tuple[File, int, int]], urgency: int = 0) -> None:
        """Ask for (file, offset, size) where it is missing, side by side, and return."""
        wanted: dict[int, set[int]] = {}
        for file, offset, size in parts:
            start = file.offset + offset
            end = min(start + size, file.offset + file.size)
            covering = self._devices[file.device].table.covering(start, end)
            wanted.setdefault(file.device, set()).update(covering)
        for number, found in wanted.items():
            dev = self._devices[number]
            chunks = [
                chunk
                for chunk in dev.with_stream(sorted(found))
                if (number, chunk) not in self._coming and self._spend(dev, chunk)
            ]
            for run in plan_runs(dev.table, chunks, gap=self._fetcher.pace.gap_size):
                self._number += 1
                request = _Request(urgency, self._number, dev, run.chunks)
                heapq.heappush(self._queue, request)
                self._coming.update(((number, chunk), request) for chunk in run.chunks)
        for _ in range(min(REQUESTS - self._workers, len(self._queue))):
            self._workers += 1
            self._nursery.start_soon(self._work)

    async def _work(self) -> None:
        """Fetch what is asked for, in turn, until nothing is.

        What was not begun yet a reader may ask for itself, and it is left out here then.
        """
        try:
            while self._queue:
                request = heapq.heappop(self._queue)
                dev = request.dev
                request.begun.set()
                wanted = [chunk for chunk in request.chunks if dev.is_wanted(chunk)]
                await self._fetcher.fetch_background(
                    dev, wanted, purpose=Purpose.PROGRAM, throttle=self._throttle
                )
                request.ended.set()
                for chunk in request.chunks:
                    self._coming.pop((dev.number, chunk), None)
        finally:
            self._workers -= 1

    def _spend(self, dev: Device, chunk: int) -> bool:
        if self._left <= 0:
            return False
        self._left -= dev.table.blob_end(chunk) - dev.table.blob_offset(chunk)
        return True

    async def _read(self, file: File, offset: int, size: int) -> bytes:
        """Return bytes of *file*, fetched if need be; short at its end, or where it cannot be."""
        size = min(size, file.size - offset)
        if size <= 0 or offset < 0:
            return b""
        self._fetch([(file, offset, size)], -1)
        dev = self._devices[file.device]
        start = file.offset + offset
        for chunk in dev.table.covering(start, start + size):
            request = self._coming.get((dev.number, chunk))
            if request is not None:
                await request.begun.wait()
                if chunk not in dev.flights and dev.content.states[chunk] != RESIDENT:
                    await request.ended.wait()
            flight = dev.flights.get(chunk)
            if flight is not None:
                await flight.wait()
            if dev.content.states[chunk] != RESIDENT:
                return b""
        return dev.content.read(start, size)

    # Following.

    async def _follow_program(self, file: File) -> None:
        page = await self._read(file, 0, elf.PAGE_SIZE)
        if page.startswith(b"#!"):
            programs = self._finder.script_programs(page)
            self._want(programs, self._follow_program)
            for program in programs:
                self._start_python(program)
        elif elf.is_elf(page):
            if not self._finder.library_folders:
                self._want(self._finder.system_files(), self._follow_library)
            await self._follow_elf(file, page)

    async def _follow_library(self, file: File) -> None:
        page = await self._read(file, 0, elf.PAGE_SIZE)
        if elf.is_elf(page):
            await self._follow_elf(file, page)

    async def _follow_elf(self, file: File, page: bytes) -> None:
        header = elf.parse_header(page)
        if not file.path:
            file = file._replace(size=_size_of(header, file.size))
        if header.interpreter is not None:
            name = (await self._read(file, *header.interpreter)).rstrip(b"\0")
            loader = self._finder.file(name)
            if loader is not None:
                self._finder.note_loader(loader)
                self._want([loader], self._follow_library)
        if header.dynamic is None:
            return
        dynamic = elf.parse_dynamic(await self._read(file, *header.dynamic), header)
        if file.size > WHOLE_SIZE:
            names = (*dynamic.search, *dynamic.needed)
            self._fetch([(file, *dynamic.name_range(name)) for name in names], -1)
            parts = [(file, offset, min(size, WHOLE_SIZE)) for offset, size in dynamic.ranges]
            self._fetch(parts)
        search = await self._names(file, dynamic, dynamic.search)
        folders = [folder for text in search for folder in text.split(b":")]
        origin = file.path.rpartition(b"/")[0]
        if file.path:  # without it only those folders are known that are named in full
            folders = [ORIGIN_RE.sub(lambda _: origin, folder) for folder in folders]
        needed = await self._names(file, dynamic, dynamic.needed)
        self._want(self._finder.libraries(needed, folders), self._follow_library)

    async def _names(self, file: File, dynamic: elf.Dynamic, places: Sequence[int]) -> list[bytes]:
        """Return the names at *places* of a table that may be large: those pages alone are read."""
        ranges = map(dynamic.name_range, places)
        names = [elf.parse_name(await self._read(file, *each)) for each in ranges]
        return [name for name in names if name]

    def _start_python(self, program: File) -> None:
        library = self._finder.python_library(program)
        if library is None or self._library is not None:
            return
        self._library = library
        if not self._finder.library_folders:
            self._want(self._finder.system_files(), self._follow_library)
        self._want(self._finder.python_libraries(program, library), self._follow_library)
        self._want(self._finder.python_start(library), self._follow_module)
        self._nursery.start_soon(self._note_modules, library)

    async def _note_modules(self, library: Library) -> None:
        """Learn where modules lie: thousands, so what has been asked for goes out first."""
        for modules in self._finder.modules(library):
            await trio.lowlevel.checkpoint()
            for module in modules:
                self._modules[module.device, module.offset] = module

    async def _follow_module(self, file: File) -> None:
        if not file.path.endswith((b".py", b".pyc", b".pth")) or file.size > MODULE_SIZE:
            await self._follow_library(file)  # nothing more where it is none
            return
        data = await self._read(file, 0, file.size)
        try:
            is_source = not file.path.endswith(b".pyc")
            names = imports_of_source(data) if is_source else imports_of_bytecode(data)
        except FormatError as exc:
            log.debug("%r: %s", file.path, exc.message)
            return
        found = self._finder.python_modules(file.path, names, self._library)
        self._want(found, self._follow_module)


def _size_at_once(file: File) -> int:
    """Return how much of *file* is asked for before anything of it is known."""
    return file.size if file.size <= WHOLE_SIZE else elf.PAGE_SIZE


def _size_of(header: elf.Header, least: int) -> int:
    """Return how large a file is of which only the header is known, at least."""
    return max([least, *(segment.offset + segment.size for segment in header.segments)])
