"""The layer table: which chunk of the blob fills which range of the layer's device.

One record per chunk, sorted by device offset, fixed size, little-endian, so that the file is used
in place through a memory map:

    header   64 bytes   magic "LFSTABL1", layout version u32, record size u32, record count u64,
                        device size u64, payload end u64 (blob offset), prefetch end u64 (blob
                        offset, all ones for no advice), payload size u64 (sum of all pieces),
                        blob order u8 (1: device order is blob order), format u8, 6 zero bytes
    records  80 bytes   device offset u64, size u64, blob offset u64, inner offset u64,
                        blob end u64, sha256 of the piece 32 bytes, codec u8, 7 zero bytes
    trailer  32 bytes   sha256 of everything before it

*blob offset* to *blob end* is the compressed range that holds the piece: it ends where the next
compressed stream of the blob begins, or at the payload end.  *inner offset* bytes come out of that
stream before the piece.  All sizes and offsets are in bytes.  A piece whose codec is HOLE is zeros
that are nowhere in the blob: its range there is empty, its sha256 32 zero bytes.
"""

import hashlib
import itertools
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from mmap import mmap

from lazyfs.errors import FormatError
from lazyfs.formats.layers import BY_NUMBER, Format
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tocs.scan import ScannedEntries
from lazyfs.formats.tocs.toc import Toc
from lazyfs.rootfs.layout import BLOCK_SIZE, LAYOUT_VERSION, BadLayout, device_offsets

MAGIC = b"LFSTABL1"
HEADER = struct.Struct("<8sIIQQQQQBB6x")
RECORD = struct.Struct("<QQQQQ32sB7x")
TRAILER_SIZE = 32
NO_ADVICE = (1 << 64) - 1
WORD = 8  # header, record and trailer are whole numbers of 64-bit words
HEADER_WORDS = HEADER.size // WORD
RECORD_WORDS = RECORD.size // WORD
DIGEST_WORD = 5
CODEC_BYTE = 72


class BadTable(FormatError):
    """Bytes that are not a layer table of this layout version."""


def build_table(toc: Toc, payload_end: int, layer_format: Format = Format.ESTARGZ) -> bytes:
    """Return the layer table of *toc*; *payload_end* is the blob offset where payloads end.

    Raises BadLayout for a chunk that begins at or behind *payload_end*.
    """
    found = None
    if isinstance(toc.entries, ScannedEntries):
        found = _scanned_records(toc.entries, payload_end)
    records, end, payload_size, in_blob_order = found or _records(toc, payload_end)
    end += -end % BLOCK_SIZE
    prefetch_end = NO_ADVICE if toc.prefetch_end is None else toc.prefetch_end
    header = HEADER.pack(
        MAGIC, LAYOUT_VERSION, RECORD.size, len(records) // RECORD.size, end, payload_end,
        prefetch_end, payload_size, in_blob_order, layer_format.number,
    )  # fmt: skip
    checksum = hashlib.sha256(header)
    checksum.update(records)
    return b"".join([header, records, checksum.digest()])


def _scanned_records(
    entries: ScannedEntries, payload_end: int
) -> tuple[bytes | bytearray, int, int, bool] | None:
    """Return the same of a scanned TOC; None where Python is to do it."""
    found = entries.native.table(payload_end)
    if found is None or not entries.inside:
        return found
    records = bytearray(found[0])
    for position, (_, _, blob_offset, _, _, _, codec) in zip(
        range(0, len(records), RECORD.size), RECORD.iter_unpack(found[0]), strict=True
    ):
        if blob_offset in entries.inside and codec != Codec.HOLE:
            records[position + CODEC_BYTE] = Codec.DEFLATE
    return records, *found[1:]


def _records(toc: Toc, payload_end: int) -> tuple[bytes | bytearray, int, int, bool]:
    """Return the records, where the last piece ends, the payload size, and the order."""
    chunks = (chunk for entry in toc.entries for chunk in entry.chunks)
    starts = sorted({chunk.blob_offset for chunk in chunks if chunk.codec != Codec.HOLE})
    if starts and starts[-1] >= payload_end:
        raise BadLayout(f"chunk: got blob offset {starts[-1]}, expected less than {payload_end}")
    ends = dict(itertools.pairwise([*starts, payload_end]))
    count = sum(len(entry.chunks) for entry in toc.entries)
    records = bytearray(count * RECORD.size)
    pack_into = RECORD.pack_into
    position = 0
    end = payload_size = blob_end = 0
    in_blob_order = True
    previous = (0, 0)
    for entry, base in zip(toc.entries, device_offsets(toc), strict=True):
        for chunk in entry.chunks:
            # A hole stands where the piece before it ends, so that it does not spoil the order.
            blob_offset = blob_end if chunk.codec == Codec.HOLE else chunk.blob_offset
            blob_end = blob_end if chunk.codec == Codec.HOLE else ends[blob_offset]
            pack_into(
                records, position, base + chunk.offset, chunk.size, blob_offset,
                chunk.inner_offset, blob_end, chunk.digest, chunk.codec,
            )  # fmt: skip
            position += RECORD.size
            end = base + chunk.offset + chunk.size
            payload_size += chunk.size
            place = (blob_offset, chunk.inner_offset)
            in_blob_order = in_blob_order and previous <= place
            previous = place
    return records, end, payload_size, in_blob_order


class LayerTable:
    """A layer table in a buffer (bytes or a memory map), read in place.

    Records are named by their number, 0 to ``count`` - 1, in the order of their device offsets.
    The table keeps views of the buffer: ``release`` drops them, so that a map can be closed.
    """

    count: int
    device_size: int
    payload_end: int
    payload_size: int
    format: Format
    holes: frozenset[int]
    """The numbers of the pieces that are zeros, and nowhere in the blob."""
    prefetch_end: int | None
    """Blob offset up to which the producer advises to prefetch; 0: do not; None: no advice."""

    def __init__(self, buffer: bytes | bytearray | memoryview | mmap) -> None:
        """Check magic, version, sizes and the trailer's digest; raises BadTable."""
        size = len(buffer)
        if size < HEADER.size + TRAILER_SIZE:
            raise BadTable(
                f"layer table: got {size} bytes, expected at least {HEADER.size + TRAILER_SIZE}"
            )
        magic, version, record_size, *fields = HEADER.unpack_from(buffer)
        self.count, self.device_size, self.payload_end, prefetch_end, self.payload_size = fields[:5]
        self.prefetch_end = None if prefetch_end == NO_ADVICE else prefetch_end
        self._in_blob_order = fields[5] == 1
        if magic != MAGIC:
            raise BadTable(f"layer table: got magic {magic!r}, expected {MAGIC!r}")
        if (version, record_size) != (LAYOUT_VERSION, RECORD.size):
            raise BadTable(
                f"layer table: got layout {version} with records of {record_size} bytes, "
                f"expected {LAYOUT_VERSION} with {RECORD.size}"
            )
        if fields[6] not in BY_NUMBER:
            raise BadTable(f"layer table: got format {fields[6]}, expected one of {[*BY_NUMBER]}")
        self.format = BY_NUMBER[fields[6]]
        body_size = HEADER.size + self.count * RECORD.size
        if size != body_size + TRAILER_SIZE:
            raise BadTable(
                f"layer table: got {size} bytes for {self.count} records, "
                f"expected {body_size + TRAILER_SIZE}"
            )
        self._view = memoryview(buffer).cast("B")
        trailer = hashlib.sha256(self._view[:body_size]).digest()
        if self._view[body_size:] != trailer:
            self._view.release()
            raise BadTable("layer table: the sha256 trailer is not that of the file")
        self._words = _words(self._view)
        stop = body_size // WORD
        self._device_offsets = self._words[HEADER_WORDS:stop:RECORD_WORDS]
        self._by_blob: array[int] | None = None
        self._codecs = self._view[HEADER.size + CODEC_BYTE : body_size : RECORD.size]
        self.holes = frozenset(self._find_holes())

    @property
    def buffer(self) -> memoryview:
        """The bytes that are read."""
        return self._view

    def release(self) -> None:
        """Give up the views of the buffer; the table must not be used afterwards."""
        self._codecs.release()
        self._device_offsets.release()
        self._words.release()
        self._view.release()

    def covering(self, start: int, end: int) -> range:
        """Return the numbers of the records that overlap device bytes *start* to *end*."""
        if start >= end:
            return range(0)
        first = bisect_right(self._device_offsets, start) - 1
        if first < 0 or self.device_offset(first) + self.size(first) <= start:
            first += 1
        return range(first, bisect_left(self._device_offsets, end, lo=first))

    def device_offset(self, record: int) -> int:
        """Return where the piece begins in the device."""
        return self._words[HEADER_WORDS + record * RECORD_WORDS]

    def size(self, record: int) -> int:
        """Return the size of the piece."""
        return self._words[HEADER_WORDS + record * RECORD_WORDS + 1]

    def blob_offset(self, record: int) -> int:
        """Return where the compressed stream that holds the piece begins in the blob."""
        return self._words[HEADER_WORDS + record * RECORD_WORDS + 2]

    def inner_offset(self, record: int) -> int:
        """Return how many decompressed bytes of the stream come before the piece."""
        return self._words[HEADER_WORDS + record * RECORD_WORDS + 3]

    def blob_end(self, record: int) -> int:
        """Return the blob offset at which the next compressed stream begins."""
        return self._words[HEADER_WORDS + record * RECORD_WORDS + 4]

    def digest(self, record: int) -> bytes:
        """Return the raw sha256 of the piece (32 bytes)."""
        start = (HEADER_WORDS + record * RECORD_WORDS + DIGEST_WORD) * WORD
        return self._view[start : start + 32].tobytes()

    def codec(self, record: int) -> int:
        """Return how the piece lies in the blob, one of ``Codec``."""
        return self._codecs[record]

    def digests(self) -> list[bytes]:
        """Return the raw sha256 of every piece, by record number."""
        first = HEADER.size + DIGEST_WORD * WORD
        stop = HEADER.size + self.count * RECORD.size
        body = self._view[first:stop].tobytes() if self.count else b""
        return [body[at : at + 32] for at in range(0, len(body), RECORD.size)]

    def _find_holes(self) -> list[int]:
        codecs = self._codecs.tobytes()
        if not codecs.count(Codec.HOLE):
            return []
        return [record for record, codec in enumerate(codecs) if codec == Codec.HOLE]

    def by_blob(self) -> Sequence[int]:
        """Return all record numbers sorted by (blob offset, inner offset)."""
        if self._in_blob_order:  # every producer's layout but that of hand-made TOCs
            return range(self.count)
        if self._by_blob is None:
            offsets = self._words[HEADER_WORDS + 2 : -4 : RECORD_WORDS].tolist()
            inner = self._words[HEADER_WORDS + 3 : -4 : RECORD_WORDS].tolist()
            order = sorted(zip(offsets, inner, range(self.count), strict=True))
            self._by_blob = array("Q", [record for _, _, record in order])
        return self._by_blob


def _words(view: memoryview) -> memoryview:
    """Return *view* as little-endian 64-bit words; a copy where the machine is big-endian."""
    if sys.byteorder == "little":
        return view.cast("Q")
    swapped = array("Q", view.tobytes())
    swapped.byteswap()
    return memoryview(swapped)
