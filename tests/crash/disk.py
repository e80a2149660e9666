"""What a disk may hold after a loss of power, from what a program did to it.

The model, for ext4 (data=ordered, delayed allocation) and xfs, and for less than they promise:

Contents.  What was written up to the last fsync or fdatasync of a file is there.  Of what came
later any page may be there or not, in the state after any of the writes; a page is torn at 512
bytes.  The size is that after any of the changes since: so a file may be longer than what was
written of it, and has zeros there.  A file that was made smaller does not get old bytes back.

Names.  ``Order.JOURNAL``: a filesystem keeps the order of all of its changes of names, and after a
loss of power has those up to some point.  An fsync brings the file's own changes to the disk, and
with them what came before; one that has nothing to bring brings nothing.  ``Order.FOLDERS``, which
is less than these two promise: each folder has an order of its own; an fsync of the folder brings
what it says to the disk, and one of a file the name that the file has, and those of its folders.
Each of the root's folders is a filesystem of its own.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tests.crash.recording import Event, Kind, Recording

PAGE = 4096
SECTOR = 512
ZERO_PAGE = bytes(PAGE)
CHANGES = {
    *(Kind.WRITE, Kind.TRUNCATE, Kind.PUNCH, Kind.ALLOCATE, Kind.MAPPED),
}
NAMING = {*(Kind.MKDIR, Kind.CREATE, Kind.RENAME, Kind.LINK, Kind.UNLINK, Kind.SYMLINK)}
NAMING |= {Kind.EXCHANGE}
NEVER = -1


class Order(Enum):
    """How names are kept in order."""

    JOURNAL = "journal"
    FOLDERS = "folders"


class Content(NamedTuple):
    """A file's bytes: whole pages by number; what is missing is a hole."""

    size: int
    pages: Mapping[int, bytes]

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield offsets and bytes, in order."""
        for number, page in sorted(self.pages.items()):
            start = number * PAGE
            if start < self.size:
                yield start, page[: self.size - start]


EMPTY = Content(0, {})


class File:
    """A file's history: its content after each of its changes, by the event's place."""

    def __init__(self, first: Content) -> None:
        self.places = [NEVER]
        self.contents = [first]
        self.shrunk = [NEVER]  # places at which it was made smaller
        self.synced: list[int] = [NEVER]  # places of fsync and fdatasync

    def change(self, place: int, event: Event) -> None:
        """Take a change."""
        size, pages = self.contents[-1]
        pages = dict(pages)
        if event.kind in (Kind.WRITE, Kind.MAPPED):
            _put(pages, event.offset, event.data)
            if event.kind is Kind.WRITE:
                size = max(size, event.offset + len(event.data))
        elif event.kind is Kind.TRUNCATE:
            if event.size < size:
                self.shrunk.append(place)
                _clear(pages, event.size, size)
            size = event.size
        elif event.kind is Kind.PUNCH:
            _clear(pages, event.offset, event.offset + event.size)
        else:
            size = max(size, event.offset + event.size)
        self.places.append(place)
        self.contents.append(Content(size, pages))

    def versions(self, place: int, floor: int) -> tuple[int, int]:
        """Return the numbers of the content that is safe and of the last one, at *place*.

        *floor* is a place up to which the file was made smaller for certain.
        """
        synced = max((each for each in self.synced if each <= place), default=NEVER)
        shrunk = max((each for each in self.shrunk if each <= floor), default=NEVER)
        return self.number(max(synced, shrunk)), self.number(place)

    def number(self, place: int) -> int:
        """Return the number of the content at *place*."""
        found = 0
        for number, each in enumerate(self.places):
            if each <= place:
                found = number
        return found

    def shrinks_between(self, first: int, last: int) -> list[int]:
        """Return the numbers of the contents by which the file was made smaller."""
        return [self.number(each) for each in self.shrunk if first < self.number(each) <= last]


def _put(pages: dict[int, bytes], offset: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        number, within = divmod(offset + done, PAGE)
        size = min(PAGE - within, len(data) - done)
        page = pages.get(number, ZERO_PAGE)
        pages[number] = page[:within] + data[done : done + size] + page[within + size :]
        done += size


def _clear(pages: dict[int, bytes], start: int, end: int) -> None:
    for number in [each for each in pages if each * PAGE < end and (each + 1) * PAGE > start]:
        first, last = max(start - number * PAGE, 0), min(end - number * PAGE, PAGE)
        page = pages[number]
        kept = page[:first] + bytes(last - first) + page[last:]
        if any(kept):
            pages[number] = kept
        else:
            del pages[number]


class Disk:
    """A recording, understood."""

    def __init__(self, recording: Recording) -> None:
        self.events: Sequence[Event] = recording.events
        self.nodes = recording.nodes
        self.files: dict[int, File] = {}
        self.links: dict[int, bytes] = {}
        self.folders: set[int] = set()
        self.filesystem: dict[int, int] = {}  # of each folder, file and link
        for number, node in recording.nodes.items():
            if stat.S_ISDIR(node.mode):
                self.folders.add(number)
            elif stat.S_ISLNK(node.mode):
                self.links[number] = node.data
            else:
                pages: dict[int, bytes] = {}
                _put(pages, 0, node.data)
                self.files[number] = File(Content(len(node.data), pages))
        self._place_filesystems()
        self._naming: list[int] = []
        self._floors: dict[tuple[int, int], int] = {}
        self._touched: dict[int, list[int]] = {}  # what an fsync of each would bring to the disk
        for place, event in enumerate(self.events):
            self._take(place, event)

    def _place_filesystems(self) -> None:
        def walk(number: int, filesystem: int) -> None:
            self.filesystem[number] = filesystem
            for inner in self.nodes[number].names.values():
                walk(inner, filesystem)

        self.filesystem[0] = 0
        for inner in self.nodes[0].names.values():
            walk(inner, inner)

    def _take(self, place: int, event: Event) -> None:
        kind = event.kind
        if kind in CHANGES:
            self.files[event.object].change(place, event)
            self._touched.setdefault(event.object, []).append(place)
        elif kind in NAMING:
            self._naming.append(place)
            where = event.folder if event.other < 0 else event.other
            if kind is Kind.MKDIR:
                self.folders.add(event.object)
            elif kind is Kind.CREATE:
                self.files[event.object] = File(EMPTY)
            elif kind is Kind.SYMLINK:
                self.links[event.object] = event.data
            if event.object >= 0 and event.object not in self.filesystem:
                self.filesystem[event.object] = (
                    event.object if where == 0 else self.filesystem.get(where, 0)
                )
            for each in {event.object, event.folder, event.other} - {-1}:
                self._touched.setdefault(each, []).append(place)
        elif kind in (Kind.FSYNC, Kind.FDATASYNC) and event.object in self.files:
            self.files[event.object].synced.append(place)
        elif kind is Kind.SYNC:
            for number, file in self.files.items():
                if self.filesystem.get(number) == self.filesystem.get(event.object):
                    file.synced.append(place)

    @cached_property
    def marks(self) -> list[tuple[int, str]]:
        """What the workload said, and when."""
        return [(at, e.data.decode()) for at, e in enumerate(self.events) if e.kind is Kind.MARK]

    def floor(self, filesystem: int, place: int) -> int:
        """Return up to which event the names of a filesystem are on the disk (Order.JOURNAL)."""
        key = filesystem, place
        if key not in self._floors:
            self._floors[key] = self._find_floor(filesystem, place)
        return self._floors[key]

    def _find_floor(self, filesystem: int, place: int) -> int:
        found = NEVER
        for at in range(place + 1):
            event = self.events[at]
            if event.kind not in (Kind.FSYNC, Kind.FDATASYNC, Kind.SYNC):
                continue
            if self.filesystem.get(event.object) != filesystem:
                continue
            if event.kind is Kind.SYNC:
                found = at
                continue
            touched = self._touched.get(event.object, ())
            if event.kind is Kind.FDATASYNC:  # the times are not needed, nor other names
                touched = [each for each in touched if self._grows(each)]
            found = max([found, *(each for each in touched if each < at)])
        return found

    def _grows(self, place: int) -> bool:
        """Say whether fdatasync has to write a file's metadata for a change."""
        event = self.events[place]
        if event.kind is Kind.CREATE:
            return True
        if event.kind not in CHANGES:
            return False
        file = self.files[event.object]
        now = file.number(place)
        return now > 0 and file.contents[now].size != file.contents[now - 1].size

    def folder_floor(self, folder: int, place: int) -> int:
        """Return up to which event a folder's names are on the disk (Order.FOLDERS)."""
        found = NEVER
        for at in range(place + 1):
            event = self.events[at]
            is_synced = event.kind is Kind.FSYNC and event.object == folder
            if event.kind is Kind.SYNC:
                is_synced = self.filesystem.get(event.object) == self.filesystem.get(folder)
            if is_synced:
                found = at
            elif event.kind is Kind.FSYNC:
                found = max(found, self._led_by(folder, event.object, at))
        return found

    def _led_by(self, folder: int, number: int, place: int) -> int:
        """Return since when *folder* leads to a file or folder that is synced at *place*."""
        for at in range(place, NEVER, -1):
            event = self.events[at]
            if event.object != number or event.kind not in NAMING:
                continue
            parent = event.folder if event.other < 0 else event.other
            if parent == folder:
                return at
            return NEVER if parent < 0 else self._led_by(folder, parent, place)
        return NEVER

    def names(self, cut_of: Mapping[int, int], default: int) -> dict[int, dict[str, int]]:
        """Return all folders with what they name, each up to its place in *cut_of*."""
        found = {number: dict(self.nodes[number].names) for number in self.nodes}
        found = {number: names for number, names in found.items() if number in self.folders}
        for number in self.folders:
            found.setdefault(number, {})
        for place in self._naming:
            event = self.events[place]
            here = place <= cut_of.get(event.folder, default) if event.folder >= 0 else True
            there = place <= cut_of.get(event.other, default) if event.other >= 0 else here
            names = found.get(event.folder, {})
            if event.kind in (Kind.MKDIR, Kind.CREATE, Kind.SYMLINK, Kind.LINK):
                if here and event.name:
                    names[event.name] = event.object
            elif event.kind is Kind.UNLINK:
                if here:
                    names.pop(event.name, None)
            elif event.kind is Kind.RENAME and there:
                found[event.other][event.other_name] = event.object
                if here and (event.folder, event.name) != (event.other, event.other_name):
                    names.pop(event.name, None)
            elif event.kind is Kind.EXCHANGE and here and there:
                others = found[event.other]
                old = others.get(event.other_name)
                others[event.other_name] = event.object
                if old is not None:
                    names[event.name] = old
        return found


class State(NamedTuple):
    """A tree that may be left: names and contents by number, and how it came about."""

    disk: Disk
    place: int
    names: Mapping[int, Mapping[str, int]]
    contents: Mapping[int, Content]
    story: str

    def content(self, number: int) -> Content:
        """Return what a file has: what was chosen, or all that was written up to the end."""
        chosen = self.contents.get(number)
        if chosen is not None:
            return chosen
        file = self.disk.files[number]
        return file.contents[file.number(self.place)]

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield relative paths and numbers, folders before what is in them."""
        waiting = [("", 0)]
        seen = set()
        while waiting:
            path, number = waiting.pop()
            if path:
                yield path, number
            if number in self.disk.folders:
                if number in seen:
                    continue  # a folder that was moved, and is in both places
                seen.add(number)
                for name, inner in sorted(self.names[number].items(), reverse=True):
                    waiting.append((f"{path}/{name}" if path else name, inner))

    def fingerprint(self) -> int:
        """Return what two states have in common only if they are the same tree."""
        parts: list[object] = []
        for path, number in self.walk():
            if number in self.disk.files:
                content = self.content(number)
                pages = tuple((at, page) for at, page in sorted(content.pages.items()) if any(page))
                parts.append((path, number, content.size, hash(pages)))
            else:
                parts.append((path, self.disk.links.get(number, b"")))
        return hash(tuple(parts))

    def write(self, root: Path) -> None:
        """Make the tree in the empty folder *root*."""
        made: dict[int, Path] = {}
        for path, number in self.walk():
            target = root / path
            if number in self.disk.folders:
                target.mkdir(mode=0o700)
            elif number in self.disk.links:
                os.symlink(self.disk.links[number], target)
            elif number in made:
                os.link(made[number], target)
            else:
                made[number] = target
                content = self.content(number)
                fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    for offset, data in content.pieces():
                        os.pwrite(fd, data, offset)
                    os.ftruncate(fd, content.size)
                finally:
                    os.close(fd)


def last_state(disk: Disk) -> State:
    """Return the tree with everything that was done."""
    place = len(disk.events) - 1
    return State(disk, place, disk.names({}, place), {}, "everything")
