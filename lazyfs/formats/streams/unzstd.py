"""Taking zstd frames apart, with a bound on what comes out of them: the one place that does.

Spec: RFC 8878.  64 KiB of frames can stand for gigabytes.  Of the library's ways only the one that
*pushes* output is bounded: at most a block of 128 KiB at a time, and whoever receives it can end
it all by raising.
"""

from collections.abc import Callable

import zstandard

from lazyfs.errors import FormatError

# Twice what the encoders of the official producers ask for at their highest levels.
WINDOW_SIZE = 64 << 20
ZSTD_ERRORS: tuple[type[Exception], ...] = (zstandard.ZstdError, MemoryError)

Write = Callable[[bytes], object]


class BadFrame(FormatError):
    """A zstd frame is damaged, or holds more than it may."""


class _Enough(Exception):
    """As much as is allowed has come out."""


class _Sink:
    """A file for zstandard."""

    __slots__ = ("write",)

    def __init__(self, write: Write) -> None:
        self.write = write


def open_frames(write: Write) -> Callable[[bytes | memoryview], object]:
    """Return a function that takes compressed bytes, and gives *write* what comes out of them.

    Frames may follow each other, skippable ones among them, and be cut anywhere.  What *write*
    raises comes through, and so does zstandard's error; then nothing more may be pushed.  A last
    frame that is cut short is not noticed.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_SIZE)
    return decompressor.stream_writer(_Sink(write)).write  # type: ignore[arg-type]


def unzstd(data: bytes | memoryview, limit: int, what: str) -> bytes:
    """Return what the frames in *data* hold, *limit* bytes at most; raises BadFrame."""
    pieces: list[bytes] = []
    size = 0

    def write(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if size > limit:
            raise _Enough
        pieces.append(piece)

    try:
        open_frames(write)(data)
    except _Enough:
        raise BadFrame(
            f"{what}: {len(data)} compressed bytes expand to more than {limit} bytes"
        ) from None
    except ZSTD_ERRORS as exc:
        raise BadFrame(f"{what}: the zstd data are damaged: {exc}") from exc
    return b"".join(pieces)


def open_short_frames(limit: int) -> Callable[[memoryview, int], bytes]:
    """Return a function of a frame and a number of bytes that decompresses in one go.

    It returns what the first frame holds if it says that this is up to *limit* bytes, or if it
    says nothing and the number suffices; else it returns nothing, or raises one of ZSTD_ERRORS.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_SIZE)

    def decompress(data: memoryview, need: int) -> bytes:
        # The library makes as much room as a frame declares, whatever that is.
        declared: int = zstandard.frame_content_size(data)
        if declared > limit:
            return b""
        return decompressor.decompress(data, max_output_size=need)

    return decompress
