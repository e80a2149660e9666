"""Inflating gzip members: the one place that chooses the library.

isal does it at about twice the speed of zlib; where it is not installed, zlib does.
"""

import zlib
from collections.abc import Callable
from typing import Any, Protocol

_LIBRARY: Any = zlib
try:
    from isal import isal_zlib

    _LIBRARY = isal_zlib
except ImportError:
    pass

_decompressobj: Callable[..., "Inflater"] = _LIBRARY.decompressobj
crc32: Callable[[bytes, int], int] = _LIBRARY.crc32

GZIP = 31  # zlib's wbits for "a gzip header and trailer, any window"
RAW = -15  # "neither"

# What either library raises on data that is not gzip.
INFLATE_ERRORS: tuple[type[Exception], ...] = (zlib.error, _LIBRARY.error)


class Inflater(Protocol):
    """One gzip member being inflated, with the semantics of zlib's decompression objects."""

    eof: bool
    unused_data: bytes
    unconsumed_tail: bytes

    def decompress(self, data: bytes | bytearray | memoryview, max_length: int = 0, /) -> bytes:
        """Return up to *max_length* bytes more (0: no bound)."""
        ...


def open_member() -> Inflater:
    """Return an inflater for one gzip member."""
    return _decompressobj(GZIP)


def open_raw(window: bytes) -> Inflater:
    """Return an inflater for deflate data without a header, that follow the plain *window*."""
    return _decompressobj(RAW, zdict=window) if window else _decompressobj(RAW)
