"""The provenance table: which layer each inode of a rootfs index comes from.

    header   32 bytes   magic "LFSPROV1", record size u32, zero u32, record count u64, 8 zero bytes
    records  40 bytes   nid u32, layer u16, flags u16 (1: has a digest), sha256 of the file 32 bytes
    trailer  32 bytes   sha256 of everything before it

Little-endian, sorted by nid, used in place through a memory map.  Layers count from 0, the bottom
layer.  Directories that no layer has an entry for have no record.
"""

import hashlib
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from mmap import mmap

import msgspec

from lazyfs.errors import FormatError
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tocs.toc import Kind, TocEntry
from lazyfs.rootfs.merge import Node

MAGIC = b"LFSPROV1"
HEADER = struct.Struct("<8sIIQ8x")
RECORD = struct.Struct("<IHH32s")
TRAILER_SIZE = 32
HAS_DIGEST = 1
WORD = 4  # header, record and trailer are whole numbers of 32-bit words
EMPTY_DIGEST = hashlib.sha256(b"").digest()


class BadProvenance(FormatError):
    """Bytes that are not a provenance table."""


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where an inode comes from: the layer's number from the bottom, and the file's sha256."""

    layer: int
    digest: bytes | None


def build_provenance(nodes: Iterable[Node]) -> bytes:
    """Return the provenance table of *nodes*, which come in the order of their nids."""
    pack = RECORD.pack
    records = []
    for node in nodes:
        entry = node.entry
        if entry is None:
            continue
        digest = _digest(entry) if node.kind == Kind.REGULAR else None
        if digest is None:
            records.append(pack(node.nid, node.layer, 0, b""))
        else:
            records.append(pack(node.nid, node.layer, HAS_DIGEST, digest))
    return complete_provenance(b"".join(records))


def complete_provenance(records: bytes) -> bytes:
    """Return the table that holds *records*."""
    body = HEADER.pack(MAGIC, RECORD.size, 0, len(records) // RECORD.size) + records
    return body + hashlib.sha256(body).digest()


def _digest(entry: TocEntry) -> bytes | None:
    """Return the sha256 of a whole regular file, None if its producer does not say."""
    if not entry.chunks:
        return EMPTY_DIGEST
    if len(entry.chunks) == 1 and entry.chunks[0].codec != Codec.HOLE:
        return entry.chunks[0].digest
    return entry.digest


class Provenance:
    """A provenance table in a buffer (bytes or a memory map), read in place.

    The table keeps views of the buffer: ``release`` drops them, so that a map can be closed.
    """

    def __init__(self, buffer: bytes | bytearray | memoryview | mmap) -> None:
        """Check magic, sizes and the trailer's digest; raises BadProvenance."""
        size = len(buffer)
        if size < HEADER.size + TRAILER_SIZE:
            raise BadProvenance(
                f"provenance: got {size} bytes, expected at least {HEADER.size + TRAILER_SIZE}"
            )
        magic, record_size, _, count = HEADER.unpack_from(buffer)
        if (magic, record_size) != (MAGIC, RECORD.size):
            raise BadProvenance(
                f"provenance: got magic {magic!r} and records of {record_size} bytes, "
                f"expected {MAGIC!r} and {RECORD.size}"
            )
        body_size = HEADER.size + count * RECORD.size
        if size != body_size + TRAILER_SIZE:
            raise BadProvenance(
                f"provenance: got {size} bytes for {count} records, "
                f"expected {body_size + TRAILER_SIZE}"
            )
        self._view = memoryview(buffer).cast("B")
        trailer = hashlib.sha256(self._view[:body_size]).digest()
        if self._view[body_size:] != trailer:
            self._view.release()
            raise BadProvenance("provenance: the sha256 trailer is not that of the file")
        words = _words(self._view)
        self._nids = words[HEADER.size // WORD : body_size // WORD : RECORD.size // WORD]

    @property
    def buffer(self) -> memoryview:
        """The bytes that are read."""
        return self._view

    def release(self) -> None:
        """Give up the views of the buffer; the table must not be used afterwards."""
        self._nids.release()
        self._view.release()

    def of(self, nid: int) -> Origin | None:
        """Return the origin of inode *nid*, or None where no layer has an entry for it."""
        number = bisect_left(self._nids, nid)
        if number == len(self._nids):
            return None
        found, layer, flags, digest = RECORD.unpack_from(
            self._view, HEADER.size + number * RECORD.size
        )
        if found != nid:
            return None
        return Origin(layer, digest if flags & HAS_DIGEST else None)


def _words(view: memoryview) -> memoryview:
    """Return *view* as little-endian 32-bit words; a copy where the machine is big-endian."""
    if sys.byteorder == "little":
        return view.cast("I")
    swapped = array("I", view.tobytes())
    swapped.byteswap()
    return memoryview(swapped)
