"""Small ELF files for tests: right as far as a program's needs go, and not meant to run."""

import struct
from collections.abc import Sequence

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_RUNPATH = 1, 5, 10, 29
ADDRESS = 0x40_0000  # where the first byte of the file is in memory


def make_elf(
    needed: Sequence[bytes] = (),
    *,
    interpreter: bytes = b"",
    search: bytes = b"",
    is_wide: bool = True,
    is_big: bool = False,
    filler: bytes = b"",
    others: bytes = b"",
    is_split: bool = False,
) -> bytes:
    """Return an ELF file; *filler* lies between its names and its dynamic section.

    *others* come before these names in their table; *is_split* has the filler in a segment of its
    own.
    """
    order, word = (">" if is_big else "<"), ("Q" if is_wide else "I")
    header_size, entry_size = (64, 56) if is_wide else (52, 32)
    names = bytearray(b"\0" + others)
    tags = []
    for tag, texts in ((DT_NEEDED, needed), (DT_RUNPATH, [search] if search else [])):
        for text in texts:
            tags.append((tag, len(names)))
            names += text + b"\0"
    names_at = header_size + (4 + is_split) * entry_size
    interpreter_at = names_at + len(names)
    dynamic_at = interpreter_at + len(interpreter) + 1 + len(filler)
    tags += [(DT_STRTAB, ADDRESS + names_at), (DT_STRSZ, len(names)), (0, 0)]
    dynamic = b"".join(struct.pack(order + word * 2, *tag) for tag in tags)
    filler_at = dynamic_at - len(filler)
    segments = [
        (PT_LOAD, 5, 0, ADDRESS, filler_at if is_split else dynamic_at),
        (PT_LOAD, 6, dynamic_at, ADDRESS + dynamic_at, len(dynamic)),
        (PT_DYNAMIC, 6, dynamic_at, ADDRESS + dynamic_at, len(dynamic)),
    ]
    if is_split:
        segments.append((PT_LOAD, 4, filler_at, ADDRESS + filler_at, len(filler)))
    if interpreter:
        segments.append(
            (PT_INTERP, 4, interpreter_at, ADDRESS + interpreter_at, len(interpreter) + 1)
        )
    table = b""
    for kind, flags, offset, address, size in segments:
        if is_wide:
            table += struct.pack(
                order + "IIQQQQQQ", kind, flags, offset, address, address, size, size, 4096
            )
        else:
            table += struct.pack(
                order + "8I", kind, offset, address, address, size, size, flags, 4096
            )
    ident = b"\x7fELF" + bytes([2 if is_wide else 1, 2 if is_big else 1, 1]) + bytes(9)
    header = ident + struct.pack(
        order + "HHI" + word * 3 + "IHHHHHH",
        3, 62, 1, 0, header_size, 0, 0, header_size, entry_size, len(segments), 0, 0, 0,
    )  # fmt: skip
    start = (header + table).ljust(names_at, b"\0")
    return start + bytes(names) + interpreter + b"\0" + filler + dynamic
