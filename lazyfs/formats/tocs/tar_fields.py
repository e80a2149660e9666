"""The fields of a tar header, and the records of PAX headers, as container runtimes read them.

Spec: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format".  Where these leave a choice, Go's archive/tar decides: containerd, moby and
podman read layers by it (docs/adr/0034-an-image-is-what-containerd-unpacks.md).

What is wrong with a field is a ValueError here.  No I/O.
"""

import re
from enum import Enum

import msgspec

XATTR_PREFIX = b"SCHILY.xattr."
SPARSE_MAP = b"GNU.sparse.map"
SPARSE_OFFSET, SPARSE_SIZE = b"GNU.sparse.offset", b"GNU.sparse.numbytes"
TEXT_KEYS = frozenset((b"path", b"linkpath", b"uname", b"gname"))

# Beyond any calendar, yet far from where arithmetic on time stamps overflows.
MAX_SECONDS = 10**16
MAX_INTEGER = 2**63 - 1

RECORD_RE = re.compile(rb"\+?0*([1-9][0-9]{0,6}) ")
INTEGER_RE = re.compile(rb"([+-]?)0*([0-9]{1,19})")
TIME_RE = re.compile(rb"([+-]?)0*([0-9]{1,19})(?:\.([0-9]*))?")
OCTAL_RE = re.compile(rb"[0-7]+")
# Mode, uid, gid, size and mtime as nearly every writer spells them.
NUMBERS_RE = re.compile(
    rb"([0-7]{7})\0([0-7]{7})\0([0-7]{7})\0([0-7]{11})\0([0-7]{11})[\0 ]", re.DOTALL
)
NO_DEVICE = frozenset((bytes(16), b"0000000\x000000000\0"))


class Dialect(Enum):
    """What the magic says of the fields behind it."""

    V7 = 1
    USTAR = 2
    STAR = 3
    GNU = 4


class Fields(msgspec.Struct, frozen=True, gc=False):
    """A header block's own fields; names and numbers as they stand there."""

    dialect: Dialect
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    seconds: int
    dev_major: int
    dev_minor: int


MAGICS = {b"ustar  \0": Dialect.GNU, bytes(8): Dialect.V7}


def read_fields(header: bytes) -> Fields:
    """Return what the block *header* says, or raise ValueError.

    Every number must be one, also those that its kind of member has no use for.
    """
    match = NUMBERS_RE.match(header, 100)
    if match is not None:
        octal_mode, octal_uid, octal_gid, octal_size, octal_seconds = match.groups()
        mode, uid, gid = int(octal_mode, 8), int(octal_uid, 8), int(octal_gid, 8)
        size, seconds = int(octal_size, 8), int(octal_seconds, 8)
    else:
        mode = number(header[100:108], "mode")
        uid = number(header[108:116], "uid")
        gid = number(header[116:124], "gid")
        size = number(header[124:136], "size")
        seconds = number(header[136:148], "mtime")
    name = text(header[:100])
    dialect = MAGICS.get(header[257:265]) or _dialect(header)
    major = minor = 0
    if dialect is not Dialect.V7:
        if header[329:345] not in NO_DEVICE:
            major = number(header[329:337], "devmajor")
            minor = number(header[337:345], "devminor")
        prefix = _prefix(header, dialect)
        if prefix:
            name = prefix + b"/" + name
    return Fields(dialect, name, mode, uid, gid, size, seconds, major, minor)


def _dialect(header: bytes) -> Dialect:
    if header[257:263] == b"ustar\0":
        return Dialect.STAR if header[508:512] == b"tar\0" else Dialect.USTAR
    return Dialect.GNU if header[257:265] == b"ustar  \0" else Dialect.V7


def _prefix(header: bytes, dialect: Dialect) -> bytes:
    """Return what stands before the name.

    GNU keeps two times where ustar has the prefix.  Go's writer before 1.8 wrote a prefix there
    all the same: it is taken for one where it cannot be times.
    """
    if dialect is Dialect.USTAR:
        return text(header[345:500])
    if dialect is Dialect.STAR:  # which ends it sooner, for two times
        number(header[476:488], "access time")
        number(header[488:500], "change time")
        return text(header[345:476])
    if not header[345] and not header[357]:
        return b""
    try:
        for at in (345, 357):
            if header[at]:
                number(header[at : at + 12], "time")
    except ValueError:
        prefix = text(header[345:500])
        return prefix if prefix.isascii() else b""
    return b""


def check_sum(header: bytes) -> str | None:
    """Return what is wrong with a header's sum: of its bytes, or (old tars) of signed ones."""
    field = header[148:156]
    unsigned = sum(header) - sum(field) + 8 * 0x20
    if field == b"%06o\0 " % unsigned:  # as nearly every writer spells it
        return None
    try:
        stated = _octal(field, "checksum")
    except ValueError as exc:
        return str(exc)
    if stated == unsigned:
        return None
    high = sum(byte > 127 for byte in header) - sum(byte > 127 for byte in field)
    if stated == unsigned - 256 * high:
        return None
    return f"got checksum {stated}, expected {unsigned}"


def number(field: bytes, what: str) -> int:
    """Return a numeric field: octal digits, or base 256 if the first bit is set."""
    if not field[0] & 0x80:
        return _octal(field, what)
    value = int.from_bytes(field, "big") - (1 << 8 * len(field) - 1)
    if field[0] & 0x40:
        value -= 1 << 8 * len(field) - 1
    if not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
        raise ValueError(f"{what} {value} does not fit into 64 bits")
    return value


def _octal(field: bytes, what: str) -> int:
    # Blanks and NULs may stand on either side; what follows a NUL behind digits is no part of it.
    digits = field.strip(b" \0").split(b"\0", 1)[0]
    if not digits:
        return 0
    if OCTAL_RE.fullmatch(digits) is None:
        raise ValueError(f"{what} {field!r} is not an octal number")
    return int(digits, 8)


def integer(record: bytes, key: str) -> int:
    """Return the value of a PAX record that is a number."""
    match = INTEGER_RE.fullmatch(record)
    value = int(match[1] + match[2]) if match else MAX_INTEGER + 1
    if not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
        raise ValueError(f"{key} {record[:40]!r} is not a number of 64 bits")
    return value


def pax_time(record: bytes, key: str) -> tuple[int, int]:
    """Return (seconds, nanoseconds), the latter counting forward, also before 1970."""
    match = TIME_RE.fullmatch(record)
    if match is None or int(match[2]) > MAX_INTEGER:
        raise ValueError(f"{key} {record[:40]!r} is not a time in seconds")
    seconds = int(match[2])
    nanoseconds = int((match[3] or b"").ljust(9, b"0")[:9])
    if match[1] == b"-":
        seconds, nanoseconds = -seconds - (nanoseconds > 0), -nanoseconds % 10**9
    return seconds, nanoseconds


def owner(value: int, key: str) -> int:
    """Return a uid or gid as the kernel takes it: 32 bits; -1 leaves that of who unpacks, 0."""
    if not -(2**31) <= value < 2**32:
        raise ValueError(f"{key} {value} does not fit into 32 bits")
    return 0 if value in (-1, 2**32 - 1) else value % 2**32


def text(field: bytes) -> bytes:
    """Return a field's bytes up to a NUL."""
    return field.split(b"\0", 1)[0]


def parse_records(content: bytes) -> dict[bytes, bytes]:
    """Return the records of a PAX extended header, or raise ValueError.

    Each is ``LENGTH KEY=VALUE\\n``, the length counting itself; the last of equal keys wins.
    Values are bytes: attributes are binary, and names need not be UTF-8.  The pairs of keys that
    GNU's sparse format 0.0 repeats become the one record of format 0.1.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    at = 0
    while at < len(content):
        match = RECORD_RE.match(content, at)
        end = at + int(match[1]) if match else 0
        if match is None or end > len(content) or content[end - 1 : end] != b"\n":
            raise ValueError(f"{content[at : at + 40]!r} is not of the form LENGTH KEY=VALUE")
        key, equals, value = content[match.end() : end - 1].partition(b"=")
        if not key or not equals or b"\0" in (value if key in TEXT_KEYS else key):
            raise ValueError(f"{content[at : at + 40]!r} is not of the form LENGTH KEY=VALUE")
        if key in (SPARSE_OFFSET, SPARSE_SIZE):
            if key != (SPARSE_SIZE if len(sparse) % 2 else SPARSE_OFFSET) or b"," in value:
                raise ValueError(f"{key.decode()} is out of order: offsets and sizes alternate")
            sparse.append(value)
        else:
            records[key] = value
        at = end
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records
