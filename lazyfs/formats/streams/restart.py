"""Restart points: places in a deflate stream from which it can be inflated without its beginning.

Spec: RFC 1951.  A block can be decoded by whoever knows the 32 KiB of plain bytes before it, and
the bit at which it begins.  The libraries want whole bytes, so what comes before that bit in its
byte is made up: empty blocks, as many as end at the right bit.  An empty block of fixed codes has
10 bits and one of dynamic codes can have 91, so every bit of a byte can be reached.

``BlockInflater`` finds the points.  Python's zlib does not tell where a block ends; the same
library, asked through ctypes, does.
"""

import ctypes
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from lazyfs.formats.streams.inflate import Inflater, open_raw

WINDOW_SIZE = 32 << 10
TRAILER_SIZE = 8  # of a gzip member: CRC-32 and size, RFC 1952
STEP = 64 << 10

# The order in which a dynamic block lists the lengths of its code lengths' codes: RFC 1951, 3.2.7.
CODE_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)


class RestartPoint(NamedTuple):
    """A place where a block begins.

    ``blob_offset`` is that of the first byte all of which is ahead.  ``bits`` of the byte before
    it, its upper ones, are ahead too (0 to 7), and ``head`` is that byte.  ``window`` are the
    plain bytes before the point, the last 32 KiB of them or all.
    """

    blob_offset: int
    bits: int
    head: int
    window: bytes


def _bits(*fields: tuple[int, int]) -> tuple[int, int]:
    """Return the number that *fields* spell, each (value, width), lowest bit first; its width."""
    value = width = 0
    for part, size in fields:
        value |= part << width
        width += size
    return value, width


def _empty_dynamic_block() -> tuple[int, int]:
    """Return a block of dynamic codes that says nothing: 91 bits."""
    lengths = [(1 if symbol in (1, 18) else 0, 3) for symbol in CODE_ORDER[:18]]
    return _bits(
        *((0, 1), (2, 2), (0, 5), (0, 5), (len(lengths) - 4, 4)),
        *lengths,
        # Symbols 0 to 254 have no code: "18" is a run of zeros, 11 and more of them.
        *((1, 1), (138 - 11, 7), (1, 1), (117 - 11, 7)),
        # 255, the end of the block, and one distance have codes of one bit.
        *((0, 1), (0, 1), (0, 1)),
        (1, 1),  # the end of the block
    )


EMPTY_FIXED_BLOCK = _bits((0, 1), (1, 2), (0, 7))
EMPTY_DYNAMIC_BLOCK = _empty_dynamic_block()


def prefix(bits: int, head: int) -> bytes:
    """Return what to inflate first, so that the upper *bits* of *head* are where they belong."""
    taken = -bits % 8
    value = width = 0
    if taken % 2:
        value, width = EMPTY_DYNAMIC_BLOCK
    while width % 8 != taken:
        value |= EMPTY_FIXED_BLOCK[0] << width
        width += EMPTY_FIXED_BLOCK[1]
    if bits:
        value |= (head >> taken) << width
        width += bits
    return value.to_bytes(width // 8, "little")


class Restarted:
    """Inflates from a restart point to the end of the gzip member; an ``Inflater``."""

    def __init__(self, point: RestartPoint) -> None:
        self._raw: Inflater = open_raw(point.window)
        self._first = prefix(point.bits, point.head)
        self._trailer = TRAILER_SIZE  # bytes of it to come
        self.eof = False
        self.unused_data = b""
        self.unconsumed_tail = b""

    def decompress(self, data: bytes | bytearray | memoryview, max_length: int = 0, /) -> bytes:
        """Return up to *max_length* bytes more (0: no bound)."""
        if self._first:
            first, self._first = self._first, b""
            data = first + bytes(data)
        rest: bytes | bytearray | memoryview = data
        plain = b""
        if not self._raw.eof:
            plain = self._raw.decompress(data, max_length)
            self.unconsumed_tail = self._raw.unconsumed_tail
            rest = self._raw.unused_data
        if self._raw.eof:
            self.unconsumed_tail = b""
            skipped = min(self._trailer, len(rest))
            self._trailer -= skipped
            if not self._trailer:
                self.eof = True
                self.unused_data = bytes(rest[skipped:])
        return plain


class Block(NamedTuple):
    """Where a block ends and another begins, in one call's input and output.

    ``used`` bytes of the input were taken, with ``bits`` (0 to 7) of the last one still ahead;
    ``produced`` plain bytes came before.
    """

    used: int
    bits: int
    produced: int


class _Stream(ctypes.Structure):
    """zlib's z_stream: zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


Z_BLOCK = 5
Z_OK, Z_STREAM_END, Z_BUF_ERROR = 0, 1, -5
RAW = -15  # zlib's window bits for deflate data without a header
LAST_BLOCK = 64  # of data_type: the bits ahead are not a block's
BLOCK_END = 128  # of data_type: inflate stopped where a block ends


@cache
def _library() -> Any:
    """Return zlib as the system has it, None where it has none."""
    try:
        library = ctypes.CDLL("libz.so.1")
        library.inflateInit2_.argtypes = [
            *(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
        ]
        library.inflate.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.inflateEnd.argtypes = [ctypes.c_void_p]
        library.zlibVersion.restype = ctypes.c_char_p
    except (OSError, AttributeError):
        return None
    return library


def has_blocks() -> bool:
    """Say whether restart points can be found on this machine."""
    return _library() is not None


class BlockInflater:
    """Inflates raw deflate data and tells where blocks begin.

    Close it; what it raises on bad data is zlib.error.
    """

    def __init__(self) -> None:
        self._zlib = _library()
        self._stream = _Stream()
        self._output = ctypes.create_string_buffer(STEP)
        self._address = ctypes.addressof(self._stream)
        self.eof = False
        result = self._zlib.inflateInit2_(
            self._address, RAW, self._zlib.zlibVersion(), ctypes.sizeof(_Stream)
        )
        if result != Z_OK:
            raise zlib.error(f"inflateInit2: {result}")

    def close(self) -> None:
        """Give back the library's memory.  Idempotent."""
        if self._address:
            self._zlib.inflateEnd(self._address)
            self._address = 0

    def inflate(self, data: bytes) -> Iterator[tuple[bytes, Block | None, int]]:
        """Yield plain bytes, or none, and the block that begins behind them, if one does.

        The third value is how many bytes of *data* have been taken so far.  After the last block
        ``eof`` is True and the rest of *data* is left alone.
        """
        source = ctypes.create_string_buffer(data, len(data))
        stream = self._stream
        stream.next_in = ctypes.addressof(source)
        stream.avail_in = len(data)
        produced = 0
        while not self.eof:
            stream.next_out = ctypes.addressof(self._output)
            stream.avail_out = STEP
            result = self._zlib.inflate(self._address, Z_BLOCK)
            if result not in (Z_OK, Z_STREAM_END, Z_BUF_ERROR):
                text = stream.msg.decode("ascii", "replace") if stream.msg else f"code {result}"
                raise zlib.error(f"inflate: {text}")
            size = STEP - stream.avail_out
            plain = ctypes.string_at(self._output, size)
            produced += size
            used = len(data) - stream.avail_in
            self.eof = result == Z_STREAM_END
            kind = stream.data_type
            is_end = bool(kind & BLOCK_END)  # then there may be more to do without more input
            is_block = is_end and not kind & LAST_BLOCK and not self.eof
            yield plain, Block(used, kind & 7, produced) if is_block else None, used
            if result == Z_BUF_ERROR or (not stream.avail_in and stream.avail_out and not is_end):
                return
