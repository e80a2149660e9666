"""Take the compression off a plain layer, and note where its decoding can be begun again.

Spec: RFC 1952 (gzip; members may follow each other), RFC 8878 (zstd frames, skippable ones among
them).  Which one it is, the first bytes say.

A *span* is a stretch of the uncompressed layer that can be decoded without what comes before: from
the beginning of a gzip member or of a zstd frame, or, with what it refers to of the 32 KiB before
it (windows.py), from a block of a deflate stream.  A new one begins at the first such place after
``span_size`` bytes.  Nothing of size is kept: output comes in pieces of 128 KiB at most (1 MiB
without spans), whatever the input claims.

A member's CRC-32 and size, and a frame's checksum, must be right, as every unpacker requires.
"""

import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import zstandard

from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.compression import (
    GZIP_MAGIC,
    ZSTD_MAGIC,
    ZSTD_WINDOW_SIZE,
    BadCompression,
    check_head,
    is_zstd,
)
from lazyfs.formats.streams.inflate import INFLATE_ERRORS, crc32, open_raw
from lazyfs.formats.streams.restart import (
    WINDOW_SIZE,
    Block,
    BlockInflater,
    RestartPoint,
    has_blocks,
)
from lazyfs.formats.streams.windows import LookBack, unpack_window

SPAN_SIZE = 128 << 10
"""A first command of python reads 4.4 MB of eStargz; by spans of this size it is 5.8 MB, of twice
the size 7.1, of 1 MiB 12.4."""

NO_SPANS = 0
PIECE_SIZE = 64 << 10
READ_SIZE = 1 << 20
HEAD_SIZE = 4  # what tells one compression from another
TRAILER_SIZE = 8
MAX_GZIP_HEADER = 1 << 17
FEXTRA, FNAME, FCOMMENT, FHCRC = 4, 8, 16, 2
RLE_BLOCK = 1
MAX_BLOCK = 128 << 10
NO_WINDOWS: Mapping[int, bytes] = MappingProxyType({})


class Span(NamedTuple):
    """Where a span begins: in the blob and in the uncompressed layer, both in bytes.

    ``codec`` is GZIP with a member's header, DEFLATE with a block in the middle of one, ZSTD with a
    frame's header.  ``bits`` and ``head`` are those of a ``RestartPoint``, for DEFLATE; ``window``
    is packed (windows.py).
    """

    blob_offset: int
    plain_offset: int
    codec: Codec
    bits: int = 0
    head: int = 0
    window: bytes = b""

    def point(self) -> RestartPoint:
        """Return where decoding begins; raises BadCompression for a window that is damaged."""
        window = unpack_window(self.window)
        return RestartPoint(self.blob_offset, self.bits, self.head, window)


class PlainStream(Protocol):
    """A layer whose compression is being taken off.

    ``windows`` are those of spans, packed, by the span's blob offset.  They are complete after
    ``finish``: what a window is good for, only the data behind it tell, so spans come without.
    """

    codec: Codec

    @property
    def windows(self) -> Mapping[int, bytes]: ...

    def feed(self, data: bytes) -> Iterator[bytes | Span]:
        """Take the next bytes of the blob; yield plain ones, and each span before its bytes."""
        ...

    def finish(self) -> None:
        """Say that nothing follows; raises BadCompression if something should."""
        ...

    def close(self) -> None:
        """Give back what libraries hold.  Idempotent."""
        ...


def open_stream(head: bytes, span_size: int = SPAN_SIZE) -> PlainStream:
    """Return the stream of a layer that starts with *head*, four bytes or more.

    *span_size* NO_SPANS is for one without spans, which is faster.
    """
    if head.startswith(GZIP_MAGIC):
        return GzipStream(span_size)
    if is_zstd(head):
        return ZstdStream(span_size)
    check_head(head)
    return RawStream()


class RawStream:
    """A tar that is not compressed: every byte of it can be read alone, so it has no spans."""

    codec = Codec.RAW
    windows = NO_WINDOWS

    def feed(self, data: bytes) -> Iterator[bytes | Span]:
        """Yield *data*."""
        for at in range(0, len(data), PIECE_SIZE):
            yield data[at : at + PIECE_SIZE]

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Blocks(Protocol):
    """What inflates one member: ``BlockInflater``, or ``_NoBlocks`` where there is no zlib."""

    eof: bool

    def inflate(self, data: bytes) -> Iterator[tuple[bytes, Block | None, int]]: ...

    def close(self) -> None: ...


class _NoBlocks:
    """Inflates without telling where blocks begin."""

    def __init__(self, piece_size: int = PIECE_SIZE) -> None:
        self._inflater = open_raw(b"")
        self._piece_size = piece_size
        self.eof = False

    def inflate(self, data: bytes) -> Iterator[tuple[bytes, Block | None, int]]:
        rest = data
        while not self.eof:
            plain = self._inflater.decompress(rest, self._piece_size)
            self.eof = self._inflater.eof
            rest = self._inflater.unused_data if self.eof else self._inflater.unconsumed_tail
            yield plain, None, len(data) - len(rest)
            if not rest and len(plain) < self._piece_size:
                return

    def close(self) -> None: ...


class GzipStream:
    """Gzip members, one after the other."""

    codec = Codec.GZIP

    def __init__(self, span_size: int = SPAN_SIZE) -> None:
        self._span_size = span_size
        self._position = 0  # in the blob
        self._produced = 0
        self._next_span = 0  # plain offset from which a new one may begin
        self._buffer = b""  # of a header or a trailer that is not here yet
        self._is_trailer = False
        self._crc = 0  # of the member
        self._member_start = 0  # plain offset
        self._blocks: _Blocks | None = None
        self._window = b""
        self._last_byte = 0
        self._looking: dict[int, LookBack] = {}
        self.windows: dict[int, bytes] = {}

    def feed(self, data: bytes) -> Iterator[bytes | Span]:
        """Take the next bytes of the blob."""
        try:
            self._look(list(self._looking), data)
            while data:
                if self._is_trailer:
                    data = self._advance(data, self._take_trailer(data))
                elif self._blocks is None:
                    start = self._position - len(self._buffer)
                    taken = self._take_header(data)
                    data = self._advance(data, taken)
                    if self._span_size and self._blocks is not None and self._is_due():
                        yield self._begin(Span(start, self._produced, Codec.GZIP))
                else:
                    used = 0
                    for plain, block, taken in self._blocks.inflate(data):
                        used = taken
                        if plain:
                            self._produced += len(plain)
                            self._crc = crc32(plain, self._crc)
                            if self._span_size:
                                self._window = (self._window + plain)[-WINDOW_SIZE:]
                            yield plain
                        if block is not None and self._is_due():
                            yield self._begin(self._span_at(data, block))
                    data = self._advance(data, used)
                    if self._blocks.eof:
                        self.close()
                        self._keep(list(self._looking))
                        self._window = b""
                        self._is_trailer = True
        except INFLATE_ERRORS as exc:
            raise BadCompression(f"layer: the gzip stream is damaged: {exc}") from exc

    def finish(self) -> None:
        """Raise BadCompression in the middle of a member."""
        if self._is_trailer or self._buffer or self._blocks is not None:
            raise BadCompression("layer: the gzip stream is cut short")

    def close(self) -> None:
        """Give back what zlib holds."""
        if self._blocks is not None:
            self._blocks.close()
            self._blocks = None

    def _advance(self, data: bytes, used: int) -> bytes:
        if used:
            self._position += used
            self._last_byte = data[used - 1]
        return data[used:]

    def _is_due(self) -> bool:
        return self._produced >= self._next_span

    def _begin(self, span: Span) -> Span:
        self._next_span = span.plain_offset + self._span_size
        return span

    def _span_at(self, data: bytes, block: Block) -> Span:
        at = self._position + block.used
        head = 0
        if block.bits:
            head = data[block.used - 1] if block.used else self._last_byte
        if at not in self.windows and at not in self._looking:
            self._looking[at] = LookBack(RestartPoint(at, block.bits, head, self._window))
            self._look([at], memoryview(data)[block.used :])
        return Span(at, self._produced, Codec.DEFLATE, block.bits, head)

    def _look(self, places: list[int], data: bytes | memoryview) -> None:
        """Let the windows at *places* see what follows."""
        for at in places:
            self._looking[at].feed(data)
        self._keep([at for at in places if self._looking[at].is_done])

    def _keep(self, places: list[int]) -> None:
        for at in places:
            self.windows[at] = self._looking.pop(at).packed()

    def _take_header(self, data: bytes) -> int:
        """Take bytes of *data* for a member's header; begin the member once it is complete."""
        old = len(self._buffer)
        whole = self._buffer + data[: MAX_GZIP_HEADER - old]
        size = gzip_header_size(whole)
        if size is None:
            if len(whole) >= MAX_GZIP_HEADER:
                raise BadCompression(f"layer: a gzip header is longer than {MAX_GZIP_HEADER} bytes")
            self._buffer = whole
            return len(data)
        self._buffer = b""
        self._crc, self._member_start = 0, self._produced
        if not self._span_size:
            self._blocks = _NoBlocks(READ_SIZE)
        else:
            self._blocks = BlockInflater() if has_blocks() else _NoBlocks()
        return size - old

    def _take_trailer(self, data: bytes) -> int:
        """Take bytes of *data* for a member's trailer; compare it once it is complete."""
        taken = data[: TRAILER_SIZE - len(self._buffer)]
        self._buffer += taken
        if len(self._buffer) == TRAILER_SIZE:
            stated, self._buffer, self._is_trailer = self._buffer, b"", False
            size = (self._produced - self._member_start) & 0xFFFFFFFF
            found = self._crc.to_bytes(4, "little") + size.to_bytes(4, "little")
            if stated != found:
                raise BadCompression(
                    f"layer: got a gzip member with CRC-32 and size {stated.hex()},"
                    f" expected {found.hex()}"
                )
        return len(taken)


def gzip_header_size(data: bytes) -> int | None:
    """Return the size of the member's header that *data* begin with, None if more is needed."""
    if not GZIP_MAGIC.startswith(data[:2]) and data[:2] != GZIP_MAGIC:
        raise BadCompression(f"layer: {data[:4]!r} after a gzip member is not another member")
    if len(data) < 10:
        return None
    if data[2] != 8:
        raise BadCompression(f"layer: got gzip method {data[2]}, expected 8")
    flags, at = data[3], 10
    if flags & FEXTRA:
        if len(data) < at + 2:
            return None
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for flag in (FNAME, FCOMMENT):
        if flags & flag:
            end = data.find(b"\0", at)
            if end < 0:
                return None
            at = end + 1
    if flags & FHCRC:
        at += 2
        if (
            len(data) >= at
            and data[at - 2 : at] != zlib.crc32(data[: at - 2]).to_bytes(4, "little")[:2]
        ):
            raise BadCompression("layer: the CRC of a gzip header is wrong")
    return at if len(data) >= at else None


class ZstdStream:
    """Zstd frames, one after the other, decoded block by block."""

    codec = Codec.ZSTD
    windows = NO_WINDOWS

    def __init__(self, span_size: int = SPAN_SIZE) -> None:
        self._span_size = span_size
        self._position = 0
        self._produced = 0
        self._next_span = 0
        self._buffer = bytearray()
        self._skip = 0  # bytes of a skippable frame
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._has_checksum = False
        self._is_last = False  # block seen: the checksum is next

    def feed(self, data: bytes) -> Iterator[bytes | Span]:
        """Take the next bytes of the blob."""
        self._buffer += data
        try:
            while self._skip or len(self._buffer) >= self._needed():
                if self._skip:
                    skipped = min(self._skip, len(self._buffer))
                    self._skip -= skipped
                    self._drop(skipped)
                    if not self._buffer:
                        return
                elif self._frame is None:
                    start = self._position
                    is_frame = self._begin_frame()
                    if self._span_size and is_frame and self._produced >= self._next_span:
                        self._next_span = self._produced + self._span_size
                        yield Span(start, self._produced, Codec.ZSTD)
                elif plain := self._decode_block(self._needed()):
                    self._produced += len(plain)
                    yield plain
        except zstandard.ZstdError as exc:
            raise BadCompression(f"layer: the zstd stream is damaged: {exc}") from exc

    def finish(self) -> None:
        """Raise BadCompression in the middle of a frame."""
        if self._skip or self._buffer or self._frame is not None:
            raise BadCompression("layer: the zstd stream is cut short")

    def close(self) -> None:
        """Do nothing: the library frees what it holds."""

    def _drop(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._position += size
        return taken

    def _needed(self) -> int:
        """Return how many bytes the next step takes, at least."""
        buffer = self._buffer
        if self._frame is None:
            if len(buffer) < 5:
                return 5
            if not is_zstd(buffer):
                raise BadCompression(
                    f"layer: {bytes(buffer[:4])!r} after a zstd frame is not another frame"
                )
            return _frame_header_size(buffer[4]) if buffer.startswith(ZSTD_MAGIC) else 8
        if self._is_last:
            return 4
        if len(buffer) < 3:
            return 3
        header = int.from_bytes(buffer[:3], "little")
        size = header >> 3
        if (header >> 1) & 3 != RLE_BLOCK and size > MAX_BLOCK:
            raise BadCompression(
                f"layer: got a zstd block of {size} bytes, expected at most {MAX_BLOCK}"
            )
        return 3 + (1 if (header >> 1) & 3 == RLE_BLOCK else size)

    def _begin_frame(self) -> bool:
        """Take a frame's header; say whether it is one with content."""
        if not self._buffer.startswith(ZSTD_MAGIC):
            self._skip = int.from_bytes(self._buffer[4:8], "little")
            self._drop(8)
            return False
        header = self._drop(_frame_header_size(self._buffer[4]))
        self._has_checksum = bool(header[4] & 4)
        self._is_last = False
        window = ZSTD_WINDOW_SIZE
        self._frame = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
        self._frame.decompress(header)
        return True

    def _decode_block(self, size: int) -> bytes:
        assert self._frame is not None
        frame = self._frame
        if self._is_last:  # the checksum
            plain = frame.decompress(self._drop(4))
            self._frame = None
            return plain
        is_last = bool(self._buffer[0] & 1)
        plain = frame.decompress(self._drop(size))
        if is_last:
            self._is_last = self._has_checksum
            if not self._has_checksum:
                self._frame = None
        return plain


def _frame_header_size(descriptor: int) -> int:
    """Return the size of a frame's header, magic included: RFC 8878, 3.1.1.1."""
    is_single = bool(descriptor & 0x20)
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    content = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
    return 5 + (0 if is_single else 1) + dictionary + content
