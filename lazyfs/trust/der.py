"""DER: the encoding of certificates, CMS and time-stamps, read strictly.

Spec: ITU-T X.690 (2021), sections 8 and 10.  Only what that permits is accepted: definite lengths
in their shortest form, shortest integers, true as 0xFF.  Two liberties are taken, and named: the
order of a SET OF is not looked at, since OpenSSL does not sort the certificates of a CMS message,
and tags above 30 do not occur in any format that lazyfs reads.

Nothing is decoded ahead: a ``Value`` is one element, its parts are read when they are asked for.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec

from lazyfs.trust.errors import Malformed

SIZE_LIMIT = 1 << 20  # bytes of a document, where the caller says nothing else
DEPTH_LIMIT = 32
PARTS_LIMIT = 4096  # elements directly in another one
OID_LIMIT = 64  # bytes
INTEGER_LIMIT = 1100  # bytes: room for the modulus of an RSA key with 8192 bits

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
UTC_TIME, GENERALIZED_TIME, SEQUENCE, SET = 0x17, 0x18, 0x30, 0x31
CONSTRUCTED = 0x20

TIME_RE = re.compile(rb"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(?:\.(\d{0,8}[1-9]))?Z")


def context(number: int, *, constructed: bool = True) -> int:
    """Return the tag ``[number]`` of the context class, as its first byte."""
    return 0x80 | (CONSTRUCTED if constructed else 0) | number


class Value(msgspec.Struct, frozen=True, gc=False):
    """One element: its tag byte, and where in ``data`` it begins, and its contents begin and end.

    Nothing is copied before it is asked for: a list of revoked certificates can be large.
    """

    tag: int
    data: bytes
    begin: int
    start: int
    end: int
    depth: int = 0

    @property
    def body(self) -> bytes:
        """The contents."""
        return self.data[self.start : self.end]

    @property
    def raw(self) -> bytes:
        """All of it as it stands: header and contents."""
        return self.data[self.begin : self.end]

    def parts(self) -> "Parts":
        """Return what is in a constructed element, to be read one after another."""
        if not self.tag & CONSTRUCTED:
            raise Malformed(f"DER: an element with tag {self.tag:#04x} has no parts")
        return Parts(self.data, self.start, self.end, self.depth + 1)

    def integer(self) -> int:
        """Return an INTEGER's value.  Section 8.3."""
        self._expect(INTEGER)
        body = self.body
        if not body or len(body) > INTEGER_LIMIT:
            raise Malformed(f"DER: an integer of {len(body)} bytes")
        if len(body) > 1 and (body[0], body[1] >> 7) in ((0x00, 0), (0xFF, 1)):
            raise Malformed("DER: an integer is not in its shortest form")
        return int.from_bytes(body, signed=True)

    def boolean(self) -> bool:
        """Return a BOOLEAN's value.  Section 11.1."""
        self._expect(BOOLEAN)
        if self.body not in (b"\x00", b"\xff"):
            raise Malformed("DER: a boolean is neither 00 nor FF")
        return self.body == b"\xff"

    def oid(self) -> str:
        """Return an OBJECT IDENTIFIER in dotted form.  Section 8.19."""
        self._expect(OID)
        body = self.body
        if not body or len(body) > OID_LIMIT or body[-1] & 0x80:
            raise Malformed("DER: an object identifier is empty, too long or cut off")
        numbers, number, is_first = [], 0, True
        for byte in body:
            if is_first and byte == 0x80:
                raise Malformed("DER: an object identifier is not in its shortest form")
            number = number << 7 | byte & 0x7F
            is_first = not byte & 0x80
            if is_first:
                numbers.append(number)
                number = 0
        top = min(numbers[0] // 40, 2)
        return ".".join(map(str, [top, numbers[0] - 40 * top, *numbers[1:]]))

    def octets(self) -> bytes:
        """Return an OCTET STRING's bytes."""
        self._expect(OCTET_STRING)
        return self.body

    def bits(self) -> bytes:
        """Return a BIT STRING's bytes; only whole bytes are accepted.  Section 8.6."""
        self._expect(BIT_STRING)
        if not self.body or self.body[0] != 0:
            raise Malformed("DER: a bit string does not consist of whole bytes")
        return self.body[1:]

    def time(self) -> datetime:
        """Return a GeneralizedTime, in UTC, fractions cut at microseconds.  Section 11.7."""
        self._expect(GENERALIZED_TIME)
        match = TIME_RE.fullmatch(self.body)
        if match is None:
            raise Malformed("DER: a time is not of the form YYYYMMDDHHMMSS[.F]Z")
        year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
        try:
            moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError as exc:
            raise Malformed("DER: a time is not in the calendar") from exc
        fraction = int((match[7] or b"").ljust(6, b"0")[:6])
        return moment + timedelta(microseconds=fraction)

    def _expect(self, tag: int) -> None:
        if self.tag != tag:
            raise Malformed(f"DER: got tag {self.tag:#04x}, expected {tag:#04x}")


class Parts:
    """The elements in another one, read in order; iterating yields those that are left."""

    def __init__(self, data: bytes, start: int, end: int, depth: int = 0) -> None:
        if depth > DEPTH_LIMIT:
            raise Malformed(f"DER: nested more than {DEPTH_LIMIT} levels deep")
        self._data = data
        self._at = start
        self._end = end
        self._depth = depth
        self._count = 0

    def __iter__(self) -> Iterator[Value]:
        while not self.is_empty():
            yield self.take()

    def is_empty(self) -> bool:
        """Say whether all has been read."""
        return self._at >= self._end

    def peek(self) -> int | None:
        """Return the next element's tag byte, None at the end."""
        return None if self.is_empty() else self._data[self._at]

    def take(self, tag: int | None = None) -> Value:
        """Return the next element, of the given tag.  Raises Malformed."""
        found = self.peek()
        if found is None:
            raise Malformed("DER: cut off")
        if tag is not None and found != tag:
            raise Malformed(f"DER: got tag {found:#04x}, expected {tag:#04x}")
        self._count += 1
        if self._count > PARTS_LIMIT:
            raise Malformed(f"DER: more than {PARTS_LIMIT} elements in one")
        begin = self._at
        start, self._at = bounds(self._data, begin, self._end)
        return Value(found, self._data, begin, start, self._at, self._depth)

    def optional(self, tag: int) -> Value | None:
        """Return the next element if it has this tag, else None."""
        return self.take(tag) if self.peek() == tag else None

    def end(self) -> None:
        """Raise Malformed unless all has been read."""
        if not self.is_empty():
            raise Malformed("DER: something stands behind what is expected")


def read(data: bytes, tag: int | None = SEQUENCE, limit: int = SIZE_LIMIT) -> Value:
    """Return the one element that *data* consists of, of the given tag.

    Raises Malformed, also for anything behind it, and for more than *limit* bytes.
    """
    if len(data) > limit:
        raise Malformed(f"DER: longer than {limit} bytes")
    parts = Parts(data, 0, len(data))
    value = parts.take(tag)
    parts.end()
    return value


def bounds(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return where the contents of the element at *at* begin and end; *end*: of what it is in.

    Sections 8.1 and 10.1.  Raises Malformed.
    """
    if data[at] & 0x1F == 0x1F:
        raise Malformed("DER: a tag above 30")
    start = at + 2
    if start > end:
        raise Malformed("DER: cut off")
    length = data[at + 1]
    if length == 0x80:
        raise Malformed("DER: an indefinite length")
    if length > 0x80:
        count = length - 0x80
        if count > 4:
            raise Malformed(f"DER: a length of {count} bytes")
        spelled = data[start : start + count]
        start += count
        if start > end:
            raise Malformed("DER: cut off")
        length = int.from_bytes(spelled)
        if length < 0x80 or spelled[0] == 0:
            raise Malformed("DER: a length is not in its shortest form")
    if start + length > end:
        raise Malformed("DER: cut off")
    return start, start + length


def encode(tag: int, *contents: bytes) -> bytes:
    """Return an element with these contents, one behind the other."""
    body = b"".join(contents)
    size = len(body)
    if size < 0x80:
        return bytes([tag, size]) + body
    spelled = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(spelled)]) + spelled + body


def encode_integer(value: int) -> bytes:
    """Return an INTEGER in its shortest form."""
    bits = value.bit_length() if value >= 0 else (~value).bit_length()
    return encode(INTEGER, value.to_bytes(bits // 8 + 1, signed=True))
