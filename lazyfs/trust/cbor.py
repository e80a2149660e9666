"""CBOR: the encoding of COSE envelopes, read strictly.

Spec: RFC 8949.  Accepted is what its section 4.2.1 asks of a careful writer, except for the order
of maps: definite lengths and the shortest form of every number.  No name occurs twice in a map,
names are integers or text.  Floating-point numbers, which no envelope needs, are refused.
"""

from typing import Any

import msgspec

from lazyfs.trust.errors import Malformed

SIZE_LIMIT = 1 << 20  # bytes
DEPTH_LIMIT = 16
ITEMS_LIMIT = 10_000  # in a whole document

# Simple values: section 3.3.
SIMPLE: dict[int, Any] = {20: False, 21: True, 22: None}


class Tagged(msgspec.Struct, frozen=True):
    """A value with a tag.  Section 3.4."""

    tag: int
    value: Any


def decode(data: bytes, limit: int = SIZE_LIMIT) -> Any:
    """Return the one item that *data* consists of.

    Values are int, bytes, str, list, dict, Tagged, bool and None.  Raises Malformed, also for
    anything behind the item, more than *limit* bytes, 16 levels or 10,000 items.
    """
    if len(data) > limit:
        raise Malformed(f"CBOR: longer than {limit} bytes")
    reader = _Reader(data)
    value = reader.item(0)
    if reader.at != len(data):
        raise Malformed("CBOR: something stands behind the document")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.items = 0

    def item(self, depth: int) -> Any:
        """Return the item that begins here.  Section 3.1."""
        if depth > DEPTH_LIMIT:
            raise Malformed(f"CBOR: nested more than {DEPTH_LIMIT} levels deep")
        self.items += 1
        if self.items > ITEMS_LIMIT:
            raise Malformed(f"CBOR: more than {ITEMS_LIMIT} items")
        first = self.take(1)[0]
        major, detail = first >> 5, first & 0x1F
        if major == 7:
            if detail not in SIMPLE:
                raise Malformed("CBOR: a floating-point number or an unknown simple value")
            return SIMPLE[detail]
        argument = self.argument(detail)
        if major == 0:
            return argument
        if major == 1:
            return -1 - argument
        if major == 2:
            return self.take(argument)
        if major == 3:
            return self.text(argument)
        if major == 4:
            # However many are announced: each takes a byte at least, and the data ends.
            return [self.item(depth + 1) for _ in range(argument)]
        if major == 5:
            return self.map(argument, depth)
        return Tagged(argument, self.item(depth + 1))

    def argument(self, detail: int) -> int:
        if detail < 24:
            return detail
        if detail > 27:
            raise Malformed("CBOR: an indefinite length or a reserved form")
        size = 1 << (detail - 24)
        value = int.from_bytes(self.take(size))
        smallest = 24 if size == 1 else 1 << (4 * size)
        if value < smallest:
            raise Malformed("CBOR: a number is not in its shortest form")
        return value

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise Malformed("CBOR: cut off")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def text(self, size: int) -> str:
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            raise Malformed("CBOR: text is not UTF-8") from None

    def map(self, count: int, depth: int) -> dict[int | str, Any]:
        found: dict[int | str, Any] = {}
        for _ in range(count):
            name = self.item(depth + 1)
            if type(name) not in (int, str):  # a bool is an int to isinstance
                raise Malformed("CBOR: a name in a map is neither an integer nor text")
            if name in found:
                raise Malformed("CBOR: a name occurs twice in one map")
            found[name] = self.item(depth + 1)
        return found
