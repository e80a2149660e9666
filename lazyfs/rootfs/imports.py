"""Which modules a Python module imports when it is loaded, from its source or its bytecode.

A hint, and nothing is run: of source the statements at the start of a line are taken, of bytecode
the instructions of the module's own code, not those of its functions.  Bytecode is in the marshal
format (CPython, Python/marshal.c and PEP 552); what does not lead to instructions and names is
stepped over.  The bytes are an image's.
"""

import re
import struct
from collections.abc import Iterator

from lazyfs.errors import FormatError

PYC_HEADER_SIZE = 16
MAX_DEPTH = 100
MAX_NAMES = 1000
MAX_NAME_SIZE = 200
MAX_SOURCE_SIZE = 256 << 10
"""Bytes of a source that are looked at: larger modules import at their beginning, too.  A mebibyte
of nothing but imports would take a tenth of a second, in which no request is answered."""
# The bytecode's magic numbers: of 3.8 to 3.10, and of 3.11 to 3.13.
OLD_CODE = range(3400, 3450)
NEW_CODE = range(3450, 3600)
# The instructions that name a module, something in a module, and the upper bits of a number.
OPCODES = {
    range(3400, 3550): (108, 109, 144),
    range(3550, 3600): (75, 74, 71),  # 3.13
}
STATEMENT_RE = re.compile(rb"^(?:import|from)[ \t]+([A-Za-z_.][\w.]*)([^\n#]*)", re.M | re.A)
NAME_RE = re.compile(rb"[A-Za-z_][\w.]*", re.A)
KEYWORDS = (b"import", b"as")
REFERENCE = 0x80
SIZES = {ord("N"): 0, ord("T"): 0, ord("F"): 0, ord("S"): 0, ord("."): 0} | {
    ord("i"): 4, ord("I"): 8, ord("g"): 8, ord("y"): 16,
}  # fmt: skip
SHORT_TEXTS, LONG_TEXTS = frozenset(b"zZ"), frozenset(b"suaAt")
SHORT_FLOATS = {ord("f"): 1, ord("x"): 2}
SEQUENCES = frozenset(b"([<>")

Value = bytes | list["Value"] | None


class BadBytecode(FormatError):
    """Bytes that are no bytecode of a Python that is known here."""


def imports_of_source(source: bytes) -> list[bytes]:
    """Return the names in the import statements of *source*'s beginning, each once."""
    names: dict[bytes, None] = {}
    for match in STATEMENT_RE.finditer(source, 0, MAX_SOURCE_SIZE):
        if match[1].strip(b"."):
            names[match[1].lstrip(b".")] = None
        for name in NAME_RE.findall(match[2]):
            if name not in KEYWORDS:
                names[name] = None
        if len(names) > MAX_NAMES:
            break
    return list(names)[:MAX_NAMES]


def imports_of_bytecode(data: bytes) -> list[bytes]:
    """Return what the module in *data*, a .pyc file, imports while it is loaded.

    Modules, and names from modules, which may be modules too; each once.  Raises BadBytecode.
    """
    if len(data) < PYC_HEADER_SIZE + 1 or data[2:4] != b"\r\n":
        raise BadBytecode(f"bytecode: {data[:4]!r} is not a magic number")
    magic = int.from_bytes(data[:2], "little")
    if magic not in OLD_CODE and magic not in NEW_CODE:
        raise BadBytecode(f"bytecode: magic number {magic} is not one of Python 3.8 or later")
    try:
        code, names = _Reader(data, is_new=magic in NEW_CODE).code_and_names()
    except (IndexError, struct.error) as exc:
        raise BadBytecode(f"bytecode: it ends after {len(data)} bytes") from exc
    opcodes = next(opcodes for magics, opcodes in OPCODES.items() if magic in magics)
    numbers = _imported(code, *opcodes)
    found = dict.fromkeys(names[number] for number in numbers if number < len(names))
    return [name for name in found if 0 < len(name) <= MAX_NAME_SIZE][:MAX_NAMES]


def _imported(code: bytes, import_name: int, import_from: int, extended: int) -> Iterator[int]:
    """Yield the numbers of the names that are imported; an instruction is two bytes."""
    high = 0
    for opcode, low in zip(code[::2], code[1::2], strict=False):
        if opcode == extended:
            high = (high | low) << 8 & 0xFFFFFF
            continue
        if opcode in (import_name, import_from):
            yield high | low
        high = 0


class _Reader:
    """Steps through marshalled objects; texts and tuples of them are kept, nothing else."""

    def __init__(self, data: bytes, *, is_new: bool) -> None:
        self._data = data
        self._at = PYC_HEADER_SIZE
        self._is_new = is_new
        self._known: list[Value] = []

    def code_and_names(self) -> tuple[bytes, list[bytes]]:
        """Return the instructions, and the names they use, of the code object that comes next."""
        if self._byte() & ~REFERENCE != ord("c"):
            raise BadBytecode("bytecode: it does not begin with a code object")
        if self._data[self._at - 1] & REFERENCE:
            self._known.append(None)
        self._skip(4 * (5 if self._is_new else 6))
        code = self._value(0)
        self._value(0)  # the constants, functions among them
        names = self._value(0)
        if not isinstance(code, bytes) or not isinstance(names, list):
            raise BadBytecode("bytecode: a code object has no instructions or names")
        return code, [name if isinstance(name, bytes) else b"" for name in names]

    def _byte(self) -> int:
        byte = self._data[self._at]
        self._at += 1
        return byte

    def _number(self) -> int:
        (number,) = struct.unpack_from("<i", self._data, self._at)
        self._at += 4
        return int(number)

    def _skip(self, size: int) -> None:
        if size < 0 or self._at + size > len(self._data):
            raise BadBytecode(
                f"bytecode: it ends after {len(self._data)} bytes, within an object of {size} bytes"
            )
        self._at += size

    def _text(self, size: int) -> bytes:
        start = self._at
        self._skip(size)
        return self._data[start : self._at]

    def _value(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise BadBytecode(f"bytecode: objects are nested deeper than {MAX_DEPTH}")
        byte = self._byte()
        kind = byte & ~REFERENCE
        if kind == ord("r"):
            return self._known[self._number()]
        place = None
        if byte & REFERENCE:  # the place is taken before what is in it is read
            place = len(self._known)
            self._known.append(None)
        value = self._of_kind(kind, depth + 1)
        if place is not None:
            self._known[place] = value
        return value

    def _of_kind(self, kind: int, depth: int) -> Value:
        if kind in SHORT_TEXTS:
            return self._text(self._byte())
        if kind in LONG_TEXTS:
            return self._text(self._number())
        if kind == ord(")"):
            return [self._value(depth) for _ in range(self._byte())]
        if kind in SEQUENCES:
            count = self._number()
            if not 0 <= count <= len(self._data):
                raise BadBytecode(f"bytecode: {count} objects do not fit into the file")
            return [self._value(depth) for _ in range(count)]
        size = SIZES.get(kind)
        if size is not None:
            self._skip(size)
        elif kind == ord("c"):
            self._code(depth)
        elif kind == ord("l"):
            self._skip(2 * abs(self._number()))
        elif kind in SHORT_FLOATS:
            for _ in range(SHORT_FLOATS[kind]):
                self._skip(self._byte())
        elif kind == ord(":"):
            for _ in range(3):
                self._value(depth)
        elif kind == ord("{"):
            while self._data[self._at] & ~REFERENCE != ord("0"):
                self._value(depth)
            self._at += 1
        else:
            raise BadBytecode(f"bytecode: kind of object {kind} is not known")
        return None

    def _code(self, depth: int) -> None:
        self._skip(4 * (5 if self._is_new else 6))
        for _ in range(8):
            self._value(depth)
        self._skip(4)
        for _ in range(2 if self._is_new else 1):
            self._value(depth)
