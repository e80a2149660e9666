"""Tar headers in every spelling that somebody has used, and in some that nobody has."""

import random
from collections.abc import Sequence

import msgspec

BLOCK = 512
MAGICS = {"ustar": b"ustar\x0000", "gnu": b"ustar  \0", "v7": bytes(8), "star": b"ustar\x0000"}
Record = tuple[bytes, bytes]


class Header(msgspec.Struct):
    """A header block to be; what is None is spelled as usual for the dialect."""

    name: bytes
    flag: bytes = b"0"
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_600_000_000
    link: bytes = b""
    dialect: str = "ustar"
    prefix: bytes = b""
    device: tuple[int, int] | None = None
    tail: bytes = b""  # from byte 345 on, where it is not a prefix


def padded(data: bytes) -> bytes:
    """Return *data* and the zeros that fill the last block."""
    return data + bytes(-len(data) % BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    return b"%d %s=%s\n" % (rest + len(str(length)), key, value)


def extended(records: Sequence[Record], *, flag: bytes = b"x", name: bytes = b"pax") -> bytes:
    """Return an extended header with its content."""
    content = b"".join(record(*each) for each in records)
    return built(Header(name, flag, len(content))) + padded(content)


def long_name(flag: bytes, name: bytes) -> bytes:
    """Return GNU's header for a long name (L) or link (K)."""
    return built(Header(b"././@LongLink", flag, len(name) + 1, dialect="gnu")) + padded(
        name + b"\0"
    )


def built(header: Header, rng: random.Random | None = None) -> bytes:
    """Return the block; *rng* chooses odd spellings of its numbers."""
    block = bytearray(BLOCK)

    def put(at: int, data: bytes) -> None:
        block[at : at + len(data)] = data

    put(0, header.name[:100])
    put(100, number(header.mode, 8, rng))
    put(108, number(header.uid, 8, rng))
    put(116, number(header.gid, 8, rng))
    put(124, number(header.size, 12, rng))
    put(136, number(header.mtime, 12, rng))
    put(156, header.flag)
    put(157, header.link[:100])
    put(257, MAGICS[header.dialect])
    if header.device is not None:
        put(329, number(header.device[0], 8, rng))
        put(337, number(header.device[1], 8, rng))
    put(345, header.tail or header.prefix[:155])
    if header.dialect == "star":
        put(508, b"tar\0")
    return summed(block, rng)


def summed(block: bytearray, rng: random.Random | None = None) -> bytes:
    """Return *block* with its checksum, in some spelling."""
    block[148:156] = b" " * 8
    total = sum(block)
    if rng is not None and rng.random() < 0.1:
        total -= 256 * sum(byte > 127 for byte in block)  # of signed bytes
    total = max(total, 0)
    spellings = [b"%06o\0 ", b"%06o \0", b"%07o\0", b"%06o  ", b" %06o\0", b"\0%06o\0"]
    choice = spellings[0] if rng is None else rng.choice(spellings)
    block[148:156] = (choice % total).ljust(8, b"\0")
    return bytes(block)


def number(value: int, width: int, rng: random.Random | None) -> bytes:
    """Return a numeric field; in base 256 where octal digits do not do, or by chance."""
    digits = b"%o" % abs(value)
    if value < 0 or len(digits) > width:
        return base_256(value, width)
    if rng is None or rng.random() < 0.8:
        return digits.rjust(width - 1, b"0") + b"\0" if len(digits) < width else digits
    spellings = [
        digits.rjust(width, b"0"),
        base_256(value, width),
        digits.rjust(width - 1, b" ") + b" ",
        digits.rjust(width - 1, b" ") + b"\0",
        digits.ljust(width, b" "),
        digits.ljust(width, b"\0"),
        digits.rjust(width, b"\0"),
        (digits + b"\0junk").ljust(width, b"x")[:width],
    ]
    field = rng.choice(spellings)
    if len(field) != width:
        return digits.rjust(width, b"0")
    return field


def base_256(value: int, width: int) -> bytes:
    """Return a field of a number in base 256."""
    if value < 0:
        return (value % (1 << 8 * width)).to_bytes(width, "big")
    field = bytearray(value.to_bytes(width, "big"))
    field[0] |= 0x80
    return bytes(field)
