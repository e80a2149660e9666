"""Where zstd frames end: so that each can be decompressed by a thread of its own.

Spec: RFC 8878, sections 3.1.1 (frames, blocks) and 3.1.2 (skippable frames).  Pure: the caller
brings ``read``.  Only the outline is parsed; what is in the blocks is the library's business.
"""

from collections.abc import Callable

import msgspec

from lazyfs.errors import FormatError

MAGIC = 0xFD2FB528
SKIPPABLE_MAGIC = 0x184D2A50  # the last four bits are free
LARGEST_BLOCK = 128 << 10
# The longest window that zstd's command line takes without being asked; bounds our memory.
LARGEST_WINDOW = 1 << 27
SKIP_SIZE = 64 << 10

Read = Callable[[int], bytes]


class BadFrame(FormatError):
    """The bytes are no zstd frame, or one that asks for too much."""

    code = "E_ZSTD"


class FrameHeader(msgspec.Struct, frozen=True):
    """What a frame's first bytes (*data*) say; ``content_size`` is None where they do not."""

    data: bytes
    content_size: int | None
    window_size: int
    has_checksum: bool


def read_header(read: Read) -> FrameHeader | None:
    """Read to the end of the next frame's header, past skippable frames; None at the end.

    *read* returns exactly as many bytes as asked for, fewer only at the end of all.
    """
    while True:
        start = read(4)
        if not start:
            return None
        magic = int.from_bytes(start, "little")
        if len(start) == 4 and magic & ~0xF == SKIPPABLE_MAGIC:
            _skip(read, int.from_bytes(_exactly(read, 4), "little"))
            continue
        if len(start) < 4 or magic != MAGIC:
            raise BadFrame(f"zstd: {start.hex()} is not the start of a frame")
        return _rest_of_header(read, start)


def _rest_of_header(read: Read, start: bytes) -> FrameHeader:
    descriptor = _exactly(read, 1)
    flags = descriptor[0]
    is_single = bool(flags & 0x20)
    dictionary_bytes = (0, 1, 2, 4)[flags & 3]
    size_bytes = (1 if is_single else 0, 2, 4, 8)[flags >> 6]
    if flags & 0x08:
        raise BadFrame("zstd: a reserved bit of a frame is set")
    rest = _exactly(read, (0 if is_single else 1) + dictionary_bytes + size_bytes)
    if any(rest[len(rest) - size_bytes - dictionary_bytes : len(rest) - size_bytes]):
        raise BadFrame("zstd: a frame needs a dictionary")
    content_size: int | None = None
    if size_bytes:
        content_size = int.from_bytes(rest[-size_bytes:], "little")
        if size_bytes == 2:
            content_size += 256
    if is_single:
        window_size = content_size or 0
    else:
        base = 1 << (10 + (rest[0] >> 3))
        window_size = base + base // 8 * (rest[0] & 7)
    return FrameHeader(start + descriptor + rest, content_size, window_size, bool(flags & 0x04))


def read_block(read: Read) -> tuple[bytes, bool]:
    """Read one block; return its bytes, header included, and whether it is the frame's last."""
    header = _exactly(read, 3)
    value = int.from_bytes(header, "little")
    kind, size = value >> 1 & 3, value >> 3
    if kind == 3 or size > LARGEST_BLOCK:
        raise BadFrame(f"zstd: a block of type {kind} and {size} bytes is not valid")
    return header + _exactly(read, 1 if kind == 1 else size), bool(value & 1)


def read_frame(read: Read, header: FrameHeader, limit: int) -> bytes:
    """Read the rest of a frame; return all of it, at most *limit* bytes."""
    pieces, size, is_last = [header.data], len(header.data), False
    while not is_last:
        block, is_last = read_block(read)
        pieces.append(block)
        size += len(block)
        if size > limit:
            raise BadFrame(
                f"zstd: a frame is longer than {limit} bytes"
                f" for {header.content_size} bytes of content"
            )
    if header.has_checksum:
        pieces.append(_exactly(read, 4))
    return b"".join(pieces)


def checksum_of(read: Read, header: FrameHeader) -> bytes:
    """Read what follows a frame's last block."""
    return _exactly(read, 4) if header.has_checksum else b""


def _skip(read: Read, size: int) -> None:
    while size:
        size -= len(_exactly(read, min(size, SKIP_SIZE)))


def _exactly(read: Read, size: int) -> bytes:
    data = read(size) if size else b""
    if len(data) != size:
        raise BadFrame(f"zstd: the file ends after {len(data)} of {size} bytes")
    return data
