"""The presence map of a layer on disk: which chunks of which content file are believed.

    ABSENT     nothing is known of the chunk's bytes
    DOUBTFUL   it was marked once: its bytes are hashed before they are believed again
    RESIDENT   verified and written

The header says of which content file the marks speak (inode, size, time of its last change), of
which boot of the machine and of which time they are, and has a digest of itself and the marks for
when nobody uses the map.  Whoever opens it alone and finds that any of this does not hold turns
every RESIDENT into DOUBTFUL.  Format: docs/format.md.
"""

import fcntl
import functools
import hashlib
import os
import stat
import struct
import time
from pathlib import Path

import msgspec

from lazyfs.rootfs.layout import LAYOUT_VERSION
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.locks import lock_for_use
from lazyfs.store.content.regular import open_regular
from lazyfs.store.content.whole import write_whole

HEADER_SIZE = 4096  # a page, so that marks never share one with ``clean``
MAGIC = b"LFSPRES1"
VERSION = 2
OLD_VERSION = 1  # its header ends after the number of chunks
PREFIX = struct.Struct("<8sIIQ")
HEADER = struct.Struct("<8sIIQI4xQQQQ16s")
SEAL_SIZE = 32
ABSENT, DOUBTFUL, RESIDENT = 0, 1, 2

DOUBT_SECONDS = 7 * 86400
"""Marks are doubted when their chunks were hashed longer ago than that."""

UNCLEAN = "an unclean stop"

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN_BOOT = bytes(16)


class Header(msgspec.Struct, frozen=True):
    """What the map says of itself and of the content file.

    ``inode``, ``size`` and ``changed_at`` (of its status, in ns) are those of the content file when
    the map was left; ``since`` is the time (in s since 1970) after which each marked chunk was
    hashed.  ``size`` is that of the device.
    """

    is_clean: bool
    count: int
    layout: int = 0
    size: int = 0
    inode: int = 0
    changed_at: int = 0
    since: int = 0
    boot: bytes = UNKNOWN_BOOT
    version: int = VERSION

    def pack(self) -> bytes:
        """Return the bytes, without the seal."""
        return HEADER.pack(
            MAGIC, VERSION, self.is_clean, self.count, self.layout, self.size, self.inode,
            self.changed_at, self.since, self.boot,
        )  # fmt: skip

    def fits(self, table: LayerTable) -> bool:
        """Say whether the marks are those of *table*'s chunks."""
        if self.version == OLD_VERSION:
            return self.count == table.count
        wanted = (table.count, LAYOUT_VERSION, table.device_size)
        return (self.count, self.layout, self.size) == wanted


def map_size(table: LayerTable) -> int:
    """Return the size of the map of *table*'s chunks."""
    return HEADER_SIZE + max(1, table.count)


def doubted(marks: memoryview) -> bytes:
    """Return *marks* with every RESIDENT turned into DOUBTFUL."""
    return bytes(marks).replace(bytes([RESIDENT]), bytes([DOUBTFUL]))


def write_marks(fd: int, marks: bytes) -> None:
    """Set all marks of the map *fd* (OSError); what others mark meanwhile may be forgotten."""
    write_whole(fd, marks, HEADER_SIZE)


def new_header(table: LayerTable, content: os.stat_result, *, is_clean: bool) -> Header:
    """Return the header of a map whose marks are made from now on, of the file *content*."""
    return Header(
        is_clean=is_clean,
        count=table.count,
        layout=LAYOUT_VERSION,
        size=table.device_size,
        inode=content.st_ino,
        changed_at=content.st_ctime_ns,
        since=int(time.time()),
        boot=boot_id(),
    )


def read_header(fd: int) -> Header | None:
    """Return the header of the map *fd*; None where there is none of a version that is known."""
    data = os.pread(fd, HEADER.size, 0)
    if len(data) < HEADER.size:
        return None
    magic, version, clean, count, *rest = HEADER.unpack(data)
    if magic != MAGIC or version not in (OLD_VERSION, VERSION):
        return None
    if version == OLD_VERSION:
        return Header(clean == 1, count, version=version)
    return Header(clean == 1, count, *rest)


def write_header(fd: int, header: Header, marks: bytes | memoryview | None = None) -> None:
    """Write *header*, sealed over *marks*; without these it is no clean one, and has no seal."""
    packed = header.pack()
    seal = bytes(SEAL_SIZE) if marks is None else _seal(packed, marks)
    write_whole(fd, packed + seal, 0)


def is_sealed(fd: int, header: Header, marks: bytes | memoryview) -> bool:
    """Say whether header and *marks* are as they were left."""
    return os.pread(fd, SEAL_SIZE, HEADER.size) == _seal(header.pack(), marks)


def _seal(packed: bytes, marks: bytes | memoryview) -> bytes:
    hasher = hashlib.sha256(packed)
    hasher.update(marks)
    return hasher.digest()


def why_doubtful(fd: int, header: Header, marks: memoryview, content: os.stat_result) -> str:
    """Return why the marks of a map that nobody uses are not believed; empty if they are."""
    if not header.is_clean:
        return UNCLEAN
    if header.version == OLD_VERSION:
        return "use by another release of lazyfs"
    if not is_sealed(fd, header, marks):
        return "damage to the presence map"
    found = content.st_ino, content.st_size, content.st_ctime_ns
    if found != (header.inode, header.size, header.changed_at):
        return "a change of the content file"
    if header.boot == UNKNOWN_BOOT or header.boot != boot_id():
        return "a restart of the machine"
    if not is_recent(header.since):
        return "a long time"
    return ""


def is_recent(since: int) -> bool:
    """Say whether what was hashed after *since* (in s since 1970) is believed for that still."""
    now = time.time()
    return now - DOUBT_SECONDS < since <= now + 1


@functools.cache
def boot_id() -> bytes:
    """Return which start of the machine this is, UNKNOWN_BOOT where that cannot be known."""
    try:
        boot = bytes.fromhex(BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return UNKNOWN_BOOT
    return boot if len(boot) == len(UNKNOWN_BOOT) else UNKNOWN_BOOT


def lock_presence(folder: Path) -> tuple[int, bool]:
    """Return a layer's presence map, locked, and whether the lock is exclusive (nobody else's)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        _remove_foreign(folder / "presence")
        fd = os.open(folder / "presence", flags, 0o600)
        try:
            alone = lock_for_use(fd)
            # Removal holds the exclusive lock and unlinks: what we locked may be gone.
            if os.path.samestat(os.fstat(fd), os.stat(folder / "presence")):
                return fd, alone
        except FileNotFoundError:
            pass
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _remove_foreign(path: Path) -> None:
    """Remove what we did not make: a link, a pipe, a socket, a device (OSError)."""
    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            os.unlink(path)
    except FileNotFoundError:
        pass


def retire(folder: Path, fd: int) -> None:
    """Take the map *fd* off the folder: its users go on with it, who comes next makes another."""
    try:
        if os.path.samestat(os.fstat(fd), os.stat(folder / "presence")):
            os.unlink(folder / "presence")
    except FileNotFoundError:
        pass


def open_content(folder: Path) -> tuple[int, bool]:
    """Return the content file, made where it is missing, and whether it was made (OSError)."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    path = folder / "content"
    while True:
        _remove_foreign(path)
        try:
            return os.open(path, flags), False
        except FileNotFoundError:
            pass
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileExistsError:
            continue


def marks_in(folder: Path) -> bytes:
    """Return the marks of a layer by a look at its files; none where they speak of another file.

    A look only: whoever opens the layer may find reasons to doubt them.
    """
    try:
        with open_regular(folder / "presence") as file:
            header = read_header(file.fileno())
            marks = file.readall()[HEADER_SIZE:]
        content = os.stat(folder / "content")
    except OSError:
        return b""
    if header is None or len(marks) != max(1, header.count):
        return b""
    is_meant = (content.st_ino, content.st_size) == (header.inode, header.size)
    return marks if is_meant or header.version == OLD_VERSION else b""


def is_complete(folder: Path) -> bool:
    """Say whether all chunks of a layer are marked as resident, by a look at its files."""
    marks = marks_in(folder)
    return bool(marks) and not marks.strip(bytes([RESIDENT]))


def reset(fd: int, size: int) -> None:
    """Make a map of *size* bytes without a mark; what the content file holds is not believed."""
    os.ftruncate(fd, 0)
    # Allocated, not sparse: a store into a mapped hole on a full disk would be a SIGBUS.
    os.posix_fallocate(fd, 0, size)


def is_mine(fd: int) -> bool:
    """Say whether *fd* has no other user, and keep it so (flock)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
