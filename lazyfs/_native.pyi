"""The native core: ``native/include/lazyfs_core.h`` for Python.  May be missing.

A core that was compiled from other sources is not used: the digest of this file stands in
``lazyfs/__init__.py`` and in ``native/module.h`` (tests/mounts/test_native_sources.py).  Where the
meaning of bytes changes that both sides read, say so here, and the digest is another one.
"""

from typing_extensions import Buffer

MISS: int
ATTRIBUTE: int
HINT: int
FAULT: int
MAX_THREADS: int

Layer = tuple[Buffer, Buffer, int, str, str]
"""Layer table, presence map (a byte per chunk), content file, digest, diffID."""

Event = tuple[int, int, int, int, int, int, int, int]
"""Kind, id, device, nid, offset in the file, offset in the device, size, number.

The number of a MISS is 1 where its bytes are marked, and the content file does not have them.
"""

def keep_used(window: Buffer, low: Buffer, high: Buffer, /) -> bytes:
    """Return *window* with zeros where no place names it; halves of places beside each other."""

def guard(mapped: Buffer, /) -> None:
    """Have pages of a map that its file cannot give any more be zeros; OSError.

    *mapped* must be given to ``unguard`` before it is unmapped.
    """

def unguard(mapped: Buffer, /) -> None:
    """End that."""

class Server:
    """Answers one FUSE connection in threads of its own, from INIT on.

    Holds the buffers until ``close``; descriptors stay the caller's.  Raises ValueError for bytes
    that contradict themselves, OSError when the system refuses, ValueError after ``close``.
    """

    def __init__(
        self,
        fd: int,
        index: Buffer,
        provenance: Buffer,
        layers: list[Layer],
        attributes: list[tuple[bytes, bytes | None]],
        *,
        threads: int = 1,
        max_waiting: int = ...,
        max_touches: int = ...,
        max_read: int = ...,
        share_device: bool = False,
        stays: bool = False,
        clones: list[int] = ...,
        adopted_minor: int = 0,
        serves_devices: bool = False,
    ) -> None: ...
    def start(self) -> None:
        """Start the threads, once."""

    def stop(self) -> None:
        """End the threads and wait for that; the mount may still be there."""

    def close(self) -> None:
        """Stop, and give the buffers back.  Idempotent."""

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to take or to look at."""

    def is_ready(self) -> bool:
        """Say whether the kernel's greeting has been answered."""

    def is_gone(self) -> bool:
        """Say whether all threads have ended."""

    def take(self) -> list[Event]:
        """Return what has happened; at most a few hundred events at a time, never blocks."""

    def answer(self, request: int, /) -> bool:
        """Answer a miss from the content file; False: it is not there, the request waits on."""

    def waits(self, request: int, /) -> bool:
        """Say whether somebody still waits for a request."""

    def answer_bytes(self, request: int, data: Buffer, /) -> bool:
        """Answer a miss with all of its bytes; False: another size was asked for."""

    def answer_attribute(self, request: int, value: Buffer, /) -> None:
        """Give the value of an attribute."""

    def answer_error(self, request: int, number: int, /) -> None:
        """Make a request fail with errno *number*."""

    def mark(self, device: int, chunk: int, /) -> None:
        """Ask for one HINT when *chunk* is next read; replaces the device's mark."""

    def forget(self, fd: int, nid: int, offset: int, size: int, /) -> list[tuple[int, int]]:
        """Have the kernel forget pages of a file, by the connection *fd*; blocks until it has.

        Returns what is spared, (offset, size): pages of reads that wait to be answered.  Those that
        are asked for meanwhile are waited for.  No error where the kernel has nothing of the file.
        """

    def ignore_holes(self, device: int, /) -> None:
        """Take holes of the device's file for zeros that were written."""

    def touches(self, start: int = 0, /) -> list[tuple[int, int]]:
        """Return (device, chunk) of first reads, in their order, from number *start* on."""

    def statistics(self) -> dict[str, int]:
        """Return counts; names as in the header."""

class Toc:
    """A scanned table of contents; entries count from 0, in the producer's order."""

    def facts(self) -> tuple[int, int, int, int | None, bytes]:
        """Return counts of entries and chunks, device size, prefetch end, tarSplitDigest."""

    def xattrs(self) -> list[tuple[int, bytes, bytes]]:
        """Return (entry, path, JSON object) where there are any; NULs between a path's names."""

    def table(self, payload_end: int, /) -> tuple[bytes, int, int, bool] | None:
        """Return a layer table's records, and of its header: the last piece's end in the device,
        the payload size, whether they are in blob order.  None: the twin has to say what is wrong.
        """

class Tree:
    """The layers of an image, merged."""

    def xattrs(self) -> list[tuple[int, int]]:
        """Return (layer, entry) of inodes with extended attributes, in the order of nids."""

    def write(
        self, start: int, bodies: tuple[bytes, ...], root: bytes | None, /
    ) -> tuple[bytearray, bytes, int, int] | None:
        """Return the index without superblock and devices, provenance records, count of inodes,
        and the root's nid.

        Inodes begin at byte *start*; *bodies* are of what ``xattrs`` returned, *root* replaces the
        root's.  None: the twin has to do it.
        """

def scan_toc(data: bytes, codec: int, limits: tuple[int, ...], /) -> Toc | None:
    """Return what the JSON of a TOC says, None where that is unusual or wrong.

    Holds *data*, which must not change, as bytes do not.
    """

def has_plain_keys(data: bytes, names: bytes, /) -> bool:
    """Say that no object of the JSON *data* has two equal keys, or one of *names* in another case.

    *names* are separated by NULs.  False where that is not sure.
    """

def merge_tocs(layers: tuple[Toc, ...], /) -> Tree | None:
    """Lay *layers* over each other, bottom first; None where that is unusual or wrong."""
