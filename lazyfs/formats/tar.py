"""Read a tar stream: what a plain layer is made of.

Spec: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format"; OCI image-spec, layer.md.

A member is read into a normalised form, not kept as the bytes of its header: a converted layer
gets new headers anyway, since entries move and names are spelled in one way.  What a container
runtime applies is kept exactly: names as bytes, kind, mode, owner, times with their nanoseconds,
link, device numbers, and extended attributes from PAX records ``SCHILY.xattr.*``.  What it ignores
is dropped: access and change times, comments, other vendors' records, and global PAX headers
(``git archive`` writes them).

Dialects understood: V7, ustar with its prefix field, star's shorter prefix, PAX, GNU long names
and base-256 numbers.  Sparse members, volume labels, multi-volume parts and unknown types are
refused by name: expanding a sparse map would need a second description of the payload, and no
image builder writes them.

``TarScanner`` takes the stream in pieces of any size and never holds a payload: it says where in
the stream each one lies.
"""

import re

import msgspec

from lazyfs.errors import FormatError
from lazyfs.formats.empty_tar import why_no_tar
from lazyfs.formats.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.paths import normalise_path
from lazyfs.formats.toc import Kind

BLOCK_SIZE = 512
ZERO_BLOCK = bytes(BLOCK_SIZE)

# Extended headers sit in memory; Go's archive/tar draws the line at the same size.
MAX_EXTENDED_SIZE = 1 << 20
MAX_PENDING_SIZE = 4 * MAX_EXTENDED_SIZE  # of all before one member: two long names, two of PAX
MAX_SIZE = 2**63 - 1
MAX_ID = 2**32 - 1
# Beyond any calendar, yet far from where arithmetic on time stamps overflows.
MAX_SECONDS = 10**16

XATTR_PREFIX = b"SCHILY.xattr."

KINDS = {
    b"0": Kind.REGULAR,
    b"\0": Kind.REGULAR,
    b"7": Kind.REGULAR,  # "contiguous": a hint about the disk, read as 0
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
REFUSED = {
    b"S": "a GNU sparse file",
    b"D": "a GNU directory dump",
    b"M": "a part of a multi-volume archive",
    b"V": "a volume label",
}
EXTENDED = b"xgLK"  # headers that say something about the next member

RECORD_RE = re.compile(rb"([1-9][0-9]{0,6}) ")
INTEGER_RE = re.compile(rb"-?[0-9]{1,20}")
TIME_RE = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
OCTAL_RE = re.compile(rb" *([0-7]*)[ \0]*")


class BadTar(FormatError):
    """A layer's tar stream cannot be understood."""


class TarMember(msgspec.Struct, frozen=True, gc=False):
    """One member of a tar.

    The fields are those of ``TocEntry`` and mean the same.  ``offset`` is where the payload
    starts in the tar stream, for regular files.  ``user_name`` and ``group_name`` are as stored.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_seconds: int = 0
    mtime_nanoseconds: int = 0
    link: bytes = b""
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    user_name: bytes = b""
    group_name: bytes = b""
    offset: int = 0


class HeaderText(msgspec.Struct, frozen=True, gc=False):
    """What a member's header says in its own words; ``end`` is the tar offset behind it.

    ``name`` and ``link`` are not normalised, ``mode`` may have the bits of a kind in it, times are
    (seconds, nanoseconds).  ``is_after_global``: a global PAX header stands before it.
    """

    name: bytes
    link: bytes
    mode: int
    end: int
    access_time: tuple[int, int] | None = None
    change_time: tuple[int, int] | None = None
    is_after_global: bool = False


class TarScanner:
    """Finds the members of a tar that arrives in pieces.

    Feed every piece in order, then call ``finish``.  Bytes after the end-of-archive blocks are
    ignored, as every unpacker does, but where nothing came before them: a file system's image may
    begin with zeros, and is no empty tar.  *texts*, if given, gets a HeaderText for each member.
    """

    def __init__(
        self, limits: Limits = DEFAULT_LIMITS, *, texts: list[HeaderText] | None = None
    ) -> None:
        self._limits = limits
        self._texts = texts
        self._is_after_global = False
        self._position = 0
        self._skip = 0
        self._buffer = bytearray()
        self._wanted = BLOCK_SIZE
        self._extended_type = b""  # type of the extended header whose content is being collected
        self._extended_size = 0
        self._records: dict[bytes, bytes] = {}
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._pending = False  # an extended header waits for its member
        self._zero_blocks = 0
        self._count = 0
        self._held_size = 0  # of names and extended headers of all members, at most
        self._pending_size = 0  # of the extended headers before the next member

    def feed(self, data: bytes | memoryview) -> list[TarMember]:
        """Take the next piece of the stream; return the members whose headers are complete."""
        found: list[TarMember] = []
        view = memoryview(data)
        at = 0
        while at < len(view):
            if self._skip:
                step = min(self._skip, len(view) - at)
                self._skip -= step
            elif self._zero_blocks == 2:
                step = len(view) - at
                if not self._count and (why := why_no_tar(self._position + step, view[at:])):
                    raise BadTar(why)
            else:
                step = min(self._wanted - len(self._buffer), len(view) - at)
                self._buffer += view[at : at + step]
            at += step
            self._position += step
            if len(self._buffer) == self._wanted:
                content = bytes(self._buffer)
                self._buffer.clear()
                member = self._take(content)
                if member is not None:
                    found.append(member)
        return found

    def finish(self) -> None:
        """Raise BadTar if the stream was cut short.

        A stream that just ends between two members is complete: some producers leave out the
        end-of-archive blocks, and unpackers do not ask for them.
        """
        if self._skip:
            raise BadTar(f"tar: got {self._position} bytes, expected {self._skip} more of a file")
        if self._buffer or self._pending or self._extended_type:
            raise BadTar(f"tar: got {self._position} bytes, expected more of a header")

    def _take(self, content: bytes) -> TarMember | None:
        """Handle one header block, or the content of an extended header."""
        if self._extended_type:
            kind, self._extended_type = self._extended_type, b""
            self._wanted = BLOCK_SIZE
            self._take_extended(kind, content[: self._extended_size])
            return None
        if content == ZERO_BLOCK:
            if self._pending:
                raise BadTar(f"tar: got the end at {self._position}, expected a member")
            self._zero_blocks += 1
            return None
        where = self._position - BLOCK_SIZE
        if self._zero_blocks:
            raise BadTar(f"tar: got a block at {where}, expected the archive's second end block")
        try:
            _check_sum(content, where)
        except BadTar as exc:
            if self._count or content[257:262] == b"ustar":
                raise
            raise BadTar(f"layer: got {content[:16]!r}… at its start, expected a tar") from exc
        self._count += 1
        if self._count > self._limits.entries:
            raise BadTar(f"tar: got more than {self._limits.entries} members, expected fewer")
        kind = content[156:157]
        try:
            if kind in EXTENDED:
                self._start_extended(kind, content)
                return None
            member = self._member(kind, content)
        except ValueError as exc:
            raise BadTar(f"tar member at {where}: {exc}") from exc
        self._records, self._long_name, self._long_link = {}, None, None
        self._pending = False
        self._held_size += len(member.path) + len(member.link) + self._pending_size
        self._pending_size = 0
        # A table of contents that told them would be refused: better before they fill the memory.
        if self._held_size > self._limits.toc_size:
            raise BadTar(
                f"tar: got more than {self._limits.toc_size} bytes of names and extended headers,"
                " expected fewer"
            )
        return member

    def _start_extended(self, kind: bytes, header: bytes) -> None:
        size = _number(header[124:136], "size")
        if not 0 <= size <= MAX_EXTENDED_SIZE:
            raise ValueError(f"got an extended header of {size} bytes, expected fewer")
        if kind == b"g":
            self._is_after_global = True
        else:
            self._pending = True
            self._pending_size += size
            if self._pending_size > MAX_PENDING_SIZE:
                raise ValueError(
                    f"got extended headers of {self._pending_size} bytes before one member,"
                    f" expected at most {MAX_PENDING_SIZE}"
                )
        if size:
            self._extended_type, self._extended_size = kind, size
            self._wanted = _padded(size)

    def _take_extended(self, kind: bytes, content: bytes) -> None:
        if kind == b"L":
            self._long_name = content.split(b"\0", 1)[0]
        elif kind == b"K":
            self._long_link = content.split(b"\0", 1)[0]
        elif kind == b"x":
            try:
                # A second header before one member adds to the first, key by key.
                self._records.update(parse_records(content))
            except ValueError as exc:
                raise BadTar(f"PAX header before {self._position}: {exc}") from exc

    def _member(self, type_flag: bytes, header: bytes) -> TarMember:
        """Return the member that *header* and the extended headers before it describe.

        Raises ValueError with the reason; a record with an empty value counts as absent, but for
        extended attributes, which may be empty.
        """
        records = self._records
        for key in records:
            if key.startswith(b"GNU.sparse."):
                raise ValueError("got a GNU sparse file, expected a plain one")
        if type_flag in REFUSED:
            raise ValueError(f"got {REFUSED[type_flag]}, expected a file")
        kind = KINDS.get(type_flag)
        if kind is None:
            raise ValueError(f"got type {type_flag!r}, expected one of 0 to 7, x, g, L, K")
        name = records.get(b"path") or self._long_name or _name(header)
        if type_flag == b"\0" and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # as V7 spelled it
        path = normalise_path(name, self._limits)
        if not path and kind is not Kind.DIRECTORY:
            raise ValueError(f"got {name[:100]!r}, expected a name")
        size = self._integer(b"size", header[124:136], MAX_SIZE)
        if kind is Kind.REGULAR:
            self._skip = _padded(size)
        elif type_flag == b"\0" and size:
            raise ValueError(f"{name[:100]!r}: got a directory of {size} bytes, expected 0")
        else:
            size = 0  # no payload follows, whatever the field says
        seconds, nanoseconds = _time(records.get(b"mtime"), header[136:148])
        is_device = kind in (Kind.CHAR, Kind.BLOCK)
        if self._texts is not None:
            self._texts.append(self._text(name, header))
        return TarMember(
            path=path,
            kind=kind,
            mode=_number(header[100:108], "mode") & 0o7777,
            uid=self._integer(b"uid", header[108:116], MAX_ID),
            gid=self._integer(b"gid", header[116:124], MAX_ID),
            size=size,
            mtime_seconds=seconds,
            mtime_nanoseconds=nanoseconds,
            link=self._link(kind, header),
            dev_major=self._integer(b"devmajor", header[329:337], MAX_ID) if is_device else 0,
            dev_minor=self._integer(b"devminor", header[337:345], MAX_ID) if is_device else 0,
            xattrs=_xattrs(records, self._limits),
            user_name=records.get(b"uname") or _text(header[265:297]),
            group_name=records.get(b"gname") or _text(header[297:329]),
            offset=self._position if kind is Kind.REGULAR else 0,
        )

    def _integer(self, key: bytes, field: bytes, maximum: int) -> int:
        text = self._records.get(key)
        if text:
            if INTEGER_RE.fullmatch(text) is None:
                raise ValueError(f"got {key.decode()} {text[:40]!r}, expected a number")
            value = int(text)
        else:
            value = _number(field, key.decode())
        if not 0 <= value <= maximum:
            raise ValueError(f"got {key.decode()} {value}, expected 0 to {maximum}")
        return value

    def _link(self, kind: Kind, header: bytes) -> bytes:
        if kind not in (Kind.SYMLINK, Kind.HARDLINK):
            return b""
        link = self._raw_link(header)
        if kind is Kind.HARDLINK:
            link = normalise_path(link, self._limits)
        if not link or b"\0" in link or len(link) > self._limits.link_size:
            raise ValueError(f"got a link to {link[:100]!r} ({len(link)} bytes), expected a target")
        return link

    def _raw_link(self, header: bytes) -> bytes:
        return self._records.get(b"linkpath") or self._long_link or _text(header[157:257])

    def _text(self, name: bytes, header: bytes) -> HeaderText:
        return HeaderText(
            name,
            self._raw_link(header),
            _number(header[100:108], "mode"),
            self._position,
            self._spare_time(b"atime"),
            self._spare_time(b"ctime"),
            self._is_after_global,
        )

    def _spare_time(self, key: bytes) -> tuple[int, int] | None:
        """Return a time that nothing here depends on, so that a bad one is none."""
        record = self._records.get(key)
        try:
            return _time(record, b"0") if record else None
        except ValueError:
            return None


def parse_records(content: bytes) -> dict[bytes, bytes]:
    """Return the records of a PAX extended header, or raise ValueError.

    Each is ``LENGTH KEY=VALUE\\n``, the length counting itself; the last of equal keys wins.
    Values are bytes: attributes are binary, and names need not be UTF-8.
    """
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        match = RECORD_RE.match(content, at)
        end = at + int(match[1]) if match else 0
        if match is None or end > len(content) or content[end - 1 : end] != b"\n":
            raise ValueError(f"got {content[at : at + 40]!r}, expected LENGTH KEY=VALUE")
        key, equals, value = content[match.end() : end - 1].partition(b"=")
        if not key or not equals or b"\0" in key:
            raise ValueError(f"got {content[at : at + 40]!r}, expected LENGTH KEY=VALUE")
        records[key] = value
        at = end
    return records


def _check_sum(header: bytes, where: int) -> None:
    """Raise BadTar unless the header's sum is right: of bytes, or of signed ones (old tars)."""
    try:
        stated = _number(header[148:156], "checksum")
    except ValueError as exc:
        raise BadTar(f"tar header at {where}: {exc}") from exc
    unsigned = sum(header) - sum(header[148:156]) + 8 * 0x20
    if stated == unsigned:
        return
    high = sum(byte > 127 for byte in header) - sum(byte > 127 for byte in header[148:156])
    if stated != unsigned - 256 * high:
        raise BadTar(f"tar header at {where}: got checksum {stated}, expected {unsigned}")


def _number(field: bytes, what: str) -> int:
    """Return a numeric field: octal digits, or base 256 if the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False)
        bits = 8 * len(field)
        if field[0] & 0x40:
            return value - (1 << bits)
        return value - (1 << (bits - 1))
    match = OCTAL_RE.fullmatch(field.split(b"\0", 1)[0])
    if match is None:
        raise ValueError(f"got {what} {field!r}, expected octal digits")
    return int(match[1] or b"0", 8)


def _time(record: bytes | None, field: bytes) -> tuple[int, int]:
    """Return (seconds, nanoseconds), the latter counting forward, also before 1970."""
    if record:
        match = TIME_RE.fullmatch(record)
        if match is None:
            raise ValueError(f"got mtime {record[:40]!r}, expected seconds")
        seconds = int(match[2])
        nanoseconds = int((match[3] or b"").ljust(9, b"0")[:9])
        if match[1]:
            seconds, nanoseconds = -seconds - (nanoseconds > 0), -nanoseconds % 10**9
    else:
        seconds, nanoseconds = _number(field, "mtime"), 0
    if abs(seconds) > MAX_SECONDS:
        raise ValueError(f"got mtime {seconds}, expected at most {MAX_SECONDS} either way")
    return seconds, nanoseconds


def _name(header: bytes) -> bytes:
    name = _text(header[:100])
    if header[257:263] != b"ustar\0":
        return name  # GNU keeps other things where ustar has the prefix
    end = 476 if header[508:512] == b"tar\0" else 500  # star ends it sooner, for two times
    prefix = _text(header[345:end])
    return prefix + b"/" + name if prefix else name


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _xattrs(records: dict[bytes, bytes], limits: Limits) -> tuple[tuple[bytes, bytes], ...]:
    found: list[tuple[bytes, bytes]] = []
    for key, value in records.items():
        if not key.startswith(XATTR_PREFIX):
            continue
        name = key[len(XATTR_PREFIX) :]
        if not 0 < len(name) <= limits.xattr_name_size or len(value) > limits.xattr_value_size:
            raise ValueError(
                f"got an xattr of {len(name)} + {len(value)} bytes, expected a name of at most "
                f"{limits.xattr_name_size} and a value of at most {limits.xattr_value_size}"
            )
        found.append((name, value))
    return tuple(sorted(found))


def _padded(size: int) -> int:
    return -(-size // BLOCK_SIZE) * BLOCK_SIZE
