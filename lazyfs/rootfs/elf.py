"""What an ELF file needs to run: its interpreter, its libraries, and what of it is read at once.

Spec: System V ABI, "Object Files" and "Dynamic Linking"; both classes, both byte orders.  Read in
three steps, since a file may not be here as a whole: the first page tells where the dynamic
section lies, that one where the names are.  The bytes are an image's: what is wrong is BadElf.
"""

import struct

import msgspec

from lazyfs.errors import FormatError

MAGIC = b"\x7fELF"
PAGE_SIZE = 4096
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
PF_W = 2
DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH = 1, 5, 15, 29
DT_STRSZ = 10
DT_RELA, DT_RELASZ, DT_REL, DT_RELSZ, DT_JMPREL, DT_PLTRELSZ = 7, 8, 17, 18, 23, 2
DT_SYMTAB, DT_HASH, DT_GNU_HASH = 6, 4, 0x6FFFFEF5
MAX_SEGMENTS = 64
MAX_DYNAMIC_SIZE = 64 << 10
MAX_NAMES = 256
MAX_NAME_SIZE = 4096


class BadElf(FormatError):
    """An ELF file that breaks a rule of its format, or one that is too odd to be a program's."""


class Segment(msgspec.Struct, frozen=True):
    """A loadable segment: offset and size in the file, its address in memory."""

    offset: int
    address: int
    size: int
    is_writable: bool


class Header(msgspec.Struct, frozen=True):
    """What the first page tells; ``interpreter`` and ``dynamic`` are (offset, size) or None."""

    is_wide: bool
    is_big: bool
    segments: tuple[Segment, ...]
    interpreter: tuple[int, int] | None
    dynamic: tuple[int, int] | None

    def place(self, address: int) -> int | None:
        """Return where in the file the byte at *address* lies, None for nowhere."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                return segment.offset + address - segment.address
        return None


class Dynamic(msgspec.Struct, frozen=True):
    """What the dynamic section tells.

    ``names`` is (offset, size) in the file of the table of names, of any size; ``needed`` and
    ``search`` are offsets in it.  ``ranges`` are the (offset, size) that a dynamic linker reads at
    once.
    """

    names: tuple[int, int]
    needed: tuple[int, ...]
    search: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]

    def name_range(self, name: int) -> tuple[int, int]:
        """Return (offset, size) in the file of what the name at *name* of the table takes at most.

        The size is 0 outside of the table.
        """
        offset, size = self.names
        return offset + name, max(min(size - name, MAX_NAME_SIZE), 0)


def is_elf(data: bytes) -> bool:
    """Say whether a file that begins with *data* is an ELF file."""
    return data.startswith(MAGIC)


def parse_header(page: bytes) -> Header:
    """Return what the first page of an ELF file, or all of a shorter one, says."""
    if not is_elf(page) or len(page) < 52 or page[4] not in (1, 2) or page[5] not in (1, 2):
        raise BadElf(f"ELF header: {page[:16]!r} does not begin one of 32 or 64 bits")
    is_wide, is_big = page[4] == 2, page[5] == 2
    order = ">" if is_big else "<"
    try:
        if is_wide:
            (start,) = struct.unpack_from(order + "Q", page, 32)
            entry_size, count = struct.unpack_from(order + "HH", page, 54)
            entry = struct.Struct(order + "IIQQQQ")
        else:
            (start,) = struct.unpack_from(order + "I", page, 28)
            entry_size, count = struct.unpack_from(order + "HH", page, 42)
            entry = struct.Struct(order + "IIIIIII")
        if count > MAX_SEGMENTS or entry_size < entry.size:
            raise BadElf(f"ELF header: {count} segments of {entry_size} bytes are not valid")
        segments = []
        interpreter = dynamic = None
        for number in range(count):
            fields = entry.unpack_from(page, start + number * entry_size)
            if is_wide:
                kind, flags, offset, address, _, size = fields
            else:
                kind, offset, address, _, size, _, flags = fields
            if kind == PT_LOAD:
                segments.append(Segment(offset, address, size, bool(flags & PF_W)))
            elif kind == PT_DYNAMIC:
                dynamic = offset, min(size, MAX_DYNAMIC_SIZE)
            elif kind == PT_INTERP and size <= MAX_NAME_SIZE:
                interpreter = offset, size
    except (struct.error, OverflowError) as exc:  # the second from 2^63 on
        raise BadElf(f"ELF header: got {len(page)} bytes, expected all segments in them") from exc
    return Header(is_wide, is_big, tuple(segments), interpreter, dynamic)


def parse_dynamic(data: bytes, header: Header) -> Dynamic:
    """Return what the dynamic section in *data* says."""
    word = "Q" if header.is_wide else "I"
    pair = struct.Struct((">" if header.is_big else "<") + word * 2)
    needed: list[int] = []
    search: list[int] = []
    single: dict[int, int] = {}
    for tag, value in pair.iter_unpack(data[: len(data) - len(data) % pair.size]):
        if tag == 0:
            break
        if tag == DT_NEEDED:
            needed.append(value)
        elif tag in (DT_RPATH, DT_RUNPATH):
            search.append(value)
        else:
            single[tag] = value
    names = header.place(single.get(DT_STRTAB, -1))
    if names is None:
        raise BadElf("ELF dynamic section: it has no table of names")
    ranges = [
        (segment.offset, segment.size)
        for segment in header.segments
        if segment.is_writable or segment.offset <= names < segment.offset + segment.size
    ]
    for start_tag, size_tag in (
        (DT_RELA, DT_RELASZ),
        (DT_REL, DT_RELSZ),
        (DT_JMPREL, DT_PLTRELSZ),
        (DT_STRTAB, DT_STRSZ),
        (DT_SYMTAB, None),
        (DT_HASH, None),
        (DT_GNU_HASH, None),
    ):
        place = header.place(single.get(start_tag, -1))
        if place is not None:
            ranges.append((place, single.get(size_tag, PAGE_SIZE) if size_tag else PAGE_SIZE))
    names_size = single.get(DT_STRSZ, PAGE_SIZE)
    return Dynamic(
        (names, names_size), tuple(needed[:MAX_NAMES]), tuple(search[:MAX_NAMES]), tuple(ranges)
    )


def parse_name(data: bytes) -> bytes:
    """Return the name that *data* begin with, empty where it does not end in them."""
    name, end, _ = data.partition(b"\0")
    return name if end else b""
