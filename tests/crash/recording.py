"""What a program changes in a folder, as a list of events; recorder/ writes them down.

The log is believed only when the tree that it makes is the real one in the end: what the recorder
did not see would be states that nobody looks at.
"""

import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
SOURCES = Path(__file__).with_name("recorder")
HEAD = struct.Struct("<BQQQqqIII")
BOOT_ID = "00000000-1111-2222-3333-444444444444\n"
SECONDS = 120  # the longest that a workload may take


class Kind(IntEnum):
    """As in recorder/log.h."""

    MKDIR = 1
    CREATE = 2
    WRITE = 3
    TRUNCATE = 4
    PUNCH = 5
    ALLOCATE = 6
    RENAME = 7
    LINK = 8
    UNLINK = 9
    SYMLINK = 10
    FSYNC = 11
    FDATASYNC = 12
    SYNC = 13
    MAPPED = 14
    MARK = 15
    EXCHANGE = 16


class Event(NamedTuple):
    """A change.  ``object``, ``folder`` and ``other`` are numbers of files and folders."""

    kind: Kind
    object: int
    folder: int
    other: int
    offset: int
    size: int
    name: str
    other_name: str
    data: bytes

    def __str__(self) -> str:
        words = [self.kind.name, f"{self.folder}/{self.name}" if self.name else ""]
        words += [f"{self.other}/{self.other_name}" if self.other_name else "", f"#{self.object}"]
        if self.kind is Kind.MARK:
            return f"MARK {self.data.decode()}"
        if self.kind in (Kind.WRITE, Kind.MAPPED):
            words.append(f"{self.offset}+{len(self.data)}")
        if self.kind in (Kind.TRUNCATE, Kind.PUNCH, Kind.ALLOCATE):
            words.append(f"{self.offset}+{self.size}")
        return " ".join(word for word in words if word)


class Node(NamedTuple):
    """A file, folder or link at the beginning: *data* is its bytes, or where it points."""

    number: int
    mode: int
    data: bytes
    names: Mapping[str, int]


class Recording(NamedTuple):
    """The tree before, by numbers; number 0 is the root.  And what changed it."""

    nodes: Mapping[int, Node]
    events: Sequence[Event]


class Incomplete(Exception):
    """The recorder has not seen everything."""


class WorkloadFailed(Exception):
    """What was to be recorded has failed."""


def why_no_recorder() -> str | None:
    """Say why nothing can be recorded here, or None."""
    if shutil.which("cc") is None:
        return "no C compiler"
    return None


@cache
def library() -> Path:
    """Compile the recorder, once per process."""
    target = Path(mkdtemp(prefix="lazyfs-crash-")) / "recorder.so"
    words = ["cc", "-std=gnu11", "-O2", "-g", "-Wall", "-shared", "-fPIC", "-o", target]
    sources = sorted(SOURCES.glob("*.c"))
    subprocess.run([*words, *sources, "-ldl"], check=True, timeout=SECONDS)
    return target


def remove_library() -> None:
    """Remove what ``library`` has made."""
    if library.cache_info().currsize:
        shutil.rmtree(library().parent, ignore_errors=True)
        library.cache_clear()


def record(
    root: Path, command: Sequence[str], scratch: Path, *, is_same_boot: bool = False
) -> Recording:
    """Run *command*, and return what it and its children change below *root*.

    *scratch* is a folder for what the recorder needs.  The machine's boot id is another one for
    *command* than for whoever looks afterwards, unless *is_same_boot*.
    """
    root = root.resolve()
    nodes, numbers = _look(root)
    log, lock, boot = (scratch / name for name in ("log", "lock", "boot_id"))
    log.write_bytes(b"")
    lock.write_bytes(bytes(4096))
    boot.write_text(BOOT_ID)
    variables = {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "LAZYFS_CRASH_LOG": str(log),
        "LAZYFS_CRASH_LOCK": str(lock),
        "LAZYFS_CRASH_ROOT": str(root),
    }
    if not is_same_boot:
        variables["LAZYFS_CRASH_BOOT_ID"] = str(boot)
    said = subprocess.run(
        command,
        env=variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if said.returncode:
        raise WorkloadFailed(f"{command}: {said.returncode}\n{said.stdout}{said.stderr}")
    return Recording(nodes, _read(log.read_bytes(), numbers))


def _look(root: Path) -> tuple[dict[int, Node], dict[int, int]]:
    """Return the tree below *root* by our numbers, and these by inode."""
    nodes: dict[int, Node] = {}
    numbers: dict[int, int] = {}

    def look(path: Path) -> int:
        status = path.lstat()
        if status.st_ino in numbers:
            return numbers[status.st_ino]
        number = numbers[status.st_ino] = len(numbers)
        data, names = b"", {}
        if stat.S_ISDIR(status.st_mode):
            names = {name: look(path / name) for name in sorted(os.listdir(path))}
        elif stat.S_ISLNK(status.st_mode):
            data = os.fsencode(os.readlink(path))
        else:
            data = path.read_bytes()
        nodes[number] = Node(number, status.st_mode, data, names)
        return number

    look(root)
    return nodes, numbers


def _read(log: bytes, numbers: dict[int, int]) -> list[Event]:
    """Return the events, with numbers of ours: the kernel gives out inode numbers again."""
    events = []
    place = 0
    following = len(numbers)
    while place < len(log):
        (size,) = struct.unpack_from("<I", log, place)
        kind, *inodes, offset, length, name, other_name, data = HEAD.unpack_from(log, place + 4)
        kind = Kind(kind)
        words = []
        at = place + 4 + HEAD.size
        for each in (name, other_name, data):
            words.append(log[at : at + each])
            at += each
        place += 4 + size
        if at != place:
            raise Incomplete("the log is damaged")
        if kind in (Kind.MKDIR, Kind.CREATE, Kind.SYMLINK):
            numbers[inodes[0]] = following
            following += 1
        try:
            found = [numbers[each] if each else -1 for each in inodes]
        except KeyError:
            raise Incomplete(f"{kind.name} {words[0]!r}: of what nobody has made") from None
        name_, other_, payload = os.fsdecode(words[0]), os.fsdecode(words[1]), words[2]
        events.append(Event(kind, *found, offset, length, name_, other_, payload))
    return events
