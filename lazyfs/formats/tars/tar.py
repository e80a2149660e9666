"""Read a tar stream: what a plain layer is made of.

Spec: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format"; OCI image-spec, layer.md.  An image is what containerd unpacks, so what stands
in a tar means what Go's archive/tar and containerd's archive.Apply make of it
(docs/adr/0034-an-image-is-what-containerd-unpacks.md); docs/reference/formats.md lists where
lazyfs differs, and why.

A member is read into a normalised form, not kept as the bytes of its header: a converted layer
gets new headers anyway, since entries move and names are spelled in one way.  What a container
runtime applies is kept exactly: names as bytes, kind, mode, owner, times with their nanoseconds,
link, device numbers, and extended attributes from PAX records ``SCHILY.xattr.*``.  What it ignores
is dropped: access and change times, comments, other vendors' records, and global PAX headers
(``git archive`` writes them).

Dialects understood: V7, ustar with its prefix field, star's shorter prefix, PAX, GNU long names,
base-256 numbers, and sparse files of every format.  Volume labels, multi-volume parts and unknown
types are refused by name.

``TarScanner`` takes the stream in pieces of any size and never holds a payload: it says where in
the stream each one lies.
"""

from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.tars.empty_tar import why_no_tar
from lazyfs.formats.tars.tar_member import BadTar, HeaderText, TarMember
from lazyfs.formats.tars.tar_sparse import Pieces, SparseMap, old_map, pax_map
from lazyfs.formats.tocs.paths import is_left_out, normalise_link, normalise_path
from lazyfs.formats.tocs.tar_fields import (
    MAX_SECONDS,
    XATTR_PREFIX,
    Dialect,
    Fields,
    check_sum,
    integer,
    owner,
    parse_records,
    pax_time,
    read_fields,
    text,
)
from lazyfs.formats.tocs.toc import Kind

__all__ = ["BLOCK_SIZE", "BadTar", "HeaderText", "TarMember", "TarScanner"]

BLOCK_SIZE = 512
ZERO_BLOCK = bytes(BLOCK_SIZE)

# Extended headers sit in memory; Go's archive/tar draws the line at the same size.
MAX_EXTENDED_SIZE = 1 << 20
MAX_PENDING_SIZE = 4 * MAX_EXTENDED_SIZE  # of all before one member: two long names, two of PAX
MAX_DEVICE = 2**32 - 1
NO_ID = 2**32 - 1
PIECE_COST = 1024  # bytes of a table of contents that a piece of a sparse file and a hole take

KINDS = {
    b"0": Kind.REGULAR,
    b"\0": Kind.REGULAR,
    b"7": Kind.REGULAR,  # "contiguous": a hint about the disk, read as 0
    b"S": Kind.REGULAR,  # sparse, as GNU wrote them before PAX
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
REFUSED = {
    b"D": "a GNU directory dump",
    b"M": "a part of a multi-volume archive",
    b"V": "a volume label",
}
EXTENDED = b"xgLK"  # headers that say something about the next member


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
        self._padding = 0  # at the end of what is skipped
        self._buffer = bytearray()
        self._wanted = BLOCK_SIZE
        self._extended_type = b""  # type of the extended header whose content is being collected
        self._extended_size = 0
        self._records: dict[bytes, bytes] = {}
        self._long_name = b""
        self._long_link = b""
        self._sparse: _Sparse | None = None  # a member that waits for the rest of its map
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

        A stream that just ends behind a payload is complete: some producers leave out its padding
        or the end-of-archive blocks, and unpackers do not ask for them.
        """
        if self._skip > self._padding:
            missing = self._skip - self._padding
            raise BadTar(
                f"tar: it ends after {self._position} bytes, {missing} before the end of a file"
            )
        if self._extended_type and len(self._buffer) >= self._extended_size:
            self._take_extended(self._extended_type, bytes(self._buffer[: self._extended_size]))
        elif self._buffer or self._extended_type or self._sparse is not None:
            raise BadTar(f"tar: it ends after {self._position} bytes, within a header")

    def _take(self, content: bytes) -> TarMember | None:
        """Handle one header block, the content of an extended header, or a block of a map."""
        if self._extended_type:
            kind, self._extended_type = self._extended_type, b""
            self._wanted = BLOCK_SIZE
            self._take_extended(kind, content[: self._extended_size])
            return None
        where = self._position - BLOCK_SIZE
        if self._sparse is None:
            if content == ZERO_BLOCK:
                self._zero_blocks += 1
                return None
            if self._zero_blocks:
                raise BadTar(
                    f"tar: the block at {where} follows a block of zeros, which ends a tar"
                )
            self._check_sum(content, where)
            self._note_count(1)
        kind = content[156:157]
        try:
            if self._sparse is not None:
                self._sparse.take(content)
                member = self._sparse_member(self._sparse)
            else:
                fields = read_fields(content)
                if kind in EXTENDED:
                    self._start_extended(kind, fields.size)
                    return None
                member = self._member(kind, fields, content)
        except ValueError as exc:
            raise BadTar(f"tar member at {where}: {exc}") from exc
        if member is None:
            return None
        self._records, self._long_name, self._long_link = {}, b"", b""
        self._held_size += len(member.path) + len(member.link) + self._pending_size
        self._pending_size = 0
        if member.pieces:
            self._held_size += PIECE_COST * len(member.pieces)
            self._note_count(2 * len(member.pieces))
        # A table of contents that told them would be refused: better before they fill the memory.
        if self._held_size > self._limits.toc_size:
            raise BadTar(
                f"tar: names and extended headers take more than {self._limits.toc_size} bytes"
            )
        return member

    def _check_sum(self, header: bytes, where: int) -> None:
        problem = check_sum(header)
        if problem is None:
            return
        if self._count or header[257:262] == b"ustar":
            raise BadTar(f"tar header at {where}: {problem}")
        raise BadTar(f"layer: it is not a tar, it begins with {header[:16]!r}…")

    def _note_count(self, more: int) -> None:
        self._count += more
        if self._count > self._limits.entries:
            raise BadTar(f"tar: more than {self._limits.entries} members")

    def _start_extended(self, kind: bytes, size: int) -> None:
        if not 0 <= size <= MAX_EXTENDED_SIZE:
            raise ValueError(
                f"got an extended header of {size} bytes, expected at most {MAX_EXTENDED_SIZE}"
            )
        if kind == b"g":
            self._is_after_global = True
        self._pending_size += size
        if self._pending_size > MAX_PENDING_SIZE:
            raise ValueError(
                f"got extended headers of {self._pending_size} bytes before one member,"
                f" expected at most {MAX_PENDING_SIZE}"
            )
        if size:
            self._extended_type, self._extended_size = kind, size
            self._wanted = _padded(size)
        else:
            self._take_extended(kind, b"")

    def _take_extended(self, kind: bytes, content: bytes) -> None:
        if kind == b"L":
            self._long_name = text(content)
            return
        if kind == b"K":
            self._long_link = text(content)
            return
        try:
            records = parse_records(content)
        except ValueError as exc:
            raise BadTar(f"PAX header before {self._position}: {exc}") from exc
        if kind == b"x":
            self._records = records  # the last of several before one member speaks for it
        else:  # a global one is a member to the reader whose rules these are, and says nothing
            self._records, self._long_name, self._long_link = {}, b"", b""
            self._pending_size = 0

    def _member(self, type_flag: bytes, fields: Fields, header: bytes) -> TarMember | None:
        """Return the member that *header* and the extended headers before it describe.

        None for a sparse file whose map is still to come.  Raises ValueError with the reason; a
        record with an empty value counts as absent, but for extended attributes, which may be
        empty.
        """
        records = self._records
        name = self._long_name or records.get(b"path") or fields.name
        kind = KINDS.get(type_flag) or self._unknown(type_flag, name)
        size = fields.size
        if kind is Kind.REGULAR and size < 0:
            raise ValueError(f"size {size} is negative")
        if record := records.get(b"size"):
            size = integer(record, "size")
        if type_flag == b"\0" and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # as V7 spelled it
        if kind is Kind.REGULAR and size < 0:
            raise ValueError(f"size {size} is negative")
        found: SparseMap | None = None
        if type_flag == b"S":
            if fields.dialect is not Dialect.GNU:
                raise ValueError("a sparse file of type S lacks the magic of GNU tar")
            found = old_map(header)
        elif records:
            found = pax_map(records, size)
            if found is not None:
                name = records.get(b"GNU.sparse.name") or name
        if found is None:
            return self._complete(kind, name, fields, header, size, size, None)
        if kind is not Kind.REGULAR:
            raise ValueError(f"a {kind.name.lower()} cannot be sparse")
        waiting = _Sparse(found, size, (name, fields, header))
        return self._sparse_member(waiting)

    def _unknown(self, type_flag: bytes, name: bytes) -> Kind:
        """Return what a member of a type without a meaning is taken for, or raise ValueError.

        Of whiteouts, and of what has no name, no unpacker asks the type.
        """
        if is_left_out(normalise_path(name, self._limits)):
            return Kind.REGULAR
        if type_flag in REFUSED:
            raise ValueError(f"it is {REFUSED[type_flag]}, not a file")
        raise ValueError(f"type {type_flag!r} is not one of 0 to 7, S, x, g, L, K")

    def _sparse_member(self, waiting: "_Sparse") -> TarMember | None:
        """Return the sparse file whose map is complete; None while it is not."""
        found = waiting.map
        if found.wants_block:
            self._sparse = waiting
            return None
        self._sparse = None
        pieces = found.pieces(waiting.stored_size)
        name, fields, header = waiting.member
        return self._complete(
            Kind.REGULAR, name, fields, header, found.real_size, waiting.stored_size, pieces
        )

    def _complete(
        self,
        kind: Kind,
        name: bytes,
        fields: Fields,
        header: bytes,
        size: int,
        stored_size: int,
        pieces: Pieces | None,
    ) -> TarMember:
        records = self._records
        path = normalise_path(name, self._limits)
        if kind is not Kind.REGULAR:
            size = stored_size = 0  # no payload follows, whatever the field says
            if not path and kind is not Kind.DIRECTORY:
                kind = Kind.REGULAR  # of no name, and left out
        if kind is Kind.REGULAR:
            self._padding = -stored_size % BLOCK_SIZE
            self._skip = stored_size + self._padding
        seconds, nanoseconds, user, group = fields.seconds, 0, b"", b""
        uid, gid = fields.uid, fields.gid
        if records:
            if record := records.get(b"mtime"):
                seconds, nanoseconds = pax_time(record, "mtime")
            if record := records.get(b"uid"):
                uid = integer(record, "uid")
            if record := records.get(b"gid"):
                gid = integer(record, "gid")
            for key in (b"atime", b"ctime"):
                if record := records.get(key):
                    pax_time(record, key.decode())
            user, group = records.get(b"uname", b""), records.get(b"gname", b"")
        if abs(seconds) > MAX_SECONDS:
            seconds, nanoseconds = 0, 0  # as container runtimes do from the year 2262 on
        if fields.dialect is not Dialect.V7:
            user, group = user or text(header[265:297]), group or text(header[297:329])
        is_device = kind is Kind.CHAR or kind is Kind.BLOCK
        if is_device or kind is Kind.FIFO:
            _check_device(fields.dev_major, fields.dev_minor)
        if self._texts is not None:
            self._texts.append(self._text(name, fields, header))
        is_root = kind is Kind.DIRECTORY and not path
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if records and (is_root or not is_left_out(path)):
            xattrs = _xattrs(records, self._limits)
        return TarMember(
            path,
            kind,
            fields.mode & 0o7777,
            uid if 0 <= uid < NO_ID else owner(uid, "uid"),
            gid if 0 <= gid < NO_ID else owner(gid, "gid"),
            size,
            seconds,
            nanoseconds,
            b"" if kind is Kind.REGULAR or kind is Kind.DIRECTORY else self._link(kind, header),
            fields.dev_major if is_device else 0,
            fields.dev_minor if is_device else 0,
            xattrs,
            user,
            group,
            self._position if kind is Kind.REGULAR else 0,
            pieces,
        )

    def _link(self, kind: Kind, header: bytes) -> bytes:
        if kind is not Kind.SYMLINK and kind is not Kind.HARDLINK:
            return b""
        link = self._raw_link(header)
        if kind is Kind.HARDLINK:
            link = normalise_link(link, self._limits)
        if not link or b"\0" in link or len(link) > self._limits.link_size:
            raise ValueError(f"link target {link[:100]!r} ({len(link)} bytes) is not valid")
        return link

    def _raw_link(self, header: bytes) -> bytes:
        return self._long_link or self._records.get(b"linkpath") or text(header[157:257])

    def _text(self, name: bytes, fields: Fields, header: bytes) -> HeaderText:
        return HeaderText(
            name,
            self._raw_link(header),
            fields.mode,
            self._position,
            self._spare_time(b"atime"),
            self._spare_time(b"ctime"),
            self._is_after_global,
        )

    def _spare_time(self, key: bytes) -> tuple[int, int] | None:
        record = self._records.get(key)
        return pax_time(record, key.decode()) if record else None


class _Sparse:
    """A sparse file whose map is being read; ``member`` is its name, and its header."""

    __slots__ = ("map", "member", "stored_size")

    def __init__(
        self, found: SparseMap, stored_size: int, member: tuple[bytes, Fields, bytes]
    ) -> None:
        self.map = found
        self.stored_size = stored_size
        self.member = member

    def take(self, block: bytes) -> None:
        """Take the next block of the map."""
        if self.map.is_in_payload:
            if self.stored_size < BLOCK_SIZE:
                raise ValueError(f"its sparse map ends after {self.stored_size} bytes of a block")
            self.stored_size -= BLOCK_SIZE
        self.map.take_block(block)


def _xattrs(records: dict[bytes, bytes], limits: Limits) -> tuple[tuple[bytes, bytes], ...]:
    found: list[tuple[bytes, bytes]] = []
    for key, value in records.items():
        if not key.startswith(XATTR_PREFIX):
            continue
        name = key[len(XATTR_PREFIX) :]
        if not 0 < len(name) <= limits.xattr_name_size or len(value) > limits.xattr_value_size:
            raise ValueError(
                f"got an xattr with a name of {len(name)} and a value of {len(value)} bytes, "
                f"expected at most {limits.xattr_name_size} and {limits.xattr_value_size}"
            )
        found.append((name, value))
    return tuple(sorted(found))


def _check_device(*numbers: int) -> None:
    if min(numbers) < 0 or max(numbers) > MAX_DEVICE:
        raise ValueError(f"got device numbers {numbers}, expected 0 to {MAX_DEVICE}")


def _padded(size: int) -> int:
    return -(-size // BLOCK_SIZE) * BLOCK_SIZE
