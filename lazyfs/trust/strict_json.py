"""JSON that means one thing to every reader, for documents that others sign or administer.

Spec: RFC 8259, of which this takes the strict side wherever it leaves a choice: UTF-8 without a
byte order mark, no name twice in one object, no NaN or Infinity, no text that is not Unicode,
nothing behind the document.  Names are compared as they are: ``Digest`` is not ``digest``.
"""

import json
import math
from typing import Any

from lazyfs.printable import printable
from lazyfs.trust.errors import Malformed

SIZE_LIMIT = 4 << 20  # bytes
DEPTH_LIMIT = 32
DIGITS_LIMIT = 32  # characters of a number
SHOWN = 80  # characters of foreign text that a message quotes


def parse_object(data: bytes, what: str, limit: int = SIZE_LIMIT) -> dict[str, Any]:
    """Return the object that *data* spells; *what* names it in messages.

    Values are dict, list, str, int, float, bool and None.  Raises Malformed, also for more than
    *limit* bytes and more than 32 levels.
    """
    document = parse(data, what, limit)
    if not isinstance(document, dict):
        raise Malformed(f"{what} is not a JSON object")
    return document


def parse(data: bytes, what: str, limit: int = SIZE_LIMIT) -> Any:
    """Return the document that *data* spells, of any type; otherwise as ``parse_object``."""
    if len(data) > limit:
        raise Malformed(f"{what} is longer than {limit} bytes")
    try:
        document = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except _Fault as exc:
        raise Malformed(f"{what}: {exc}") from None
    except json.JSONDecodeError as exc:
        place = f"line {exc.lineno}, column {exc.colno}"
        raise Malformed(f"{what} is not valid JSON: {place}") from None
    except UnicodeDecodeError:
        raise Malformed(f"{what} is not UTF-8") from None
    except RecursionError:
        raise Malformed(f"{what} is nested more than {DEPTH_LIMIT} levels deep") from None
    _check(document, what)
    return document


class _Fault(Exception):
    """What a hook refuses; never seen outside."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise _Fault(f"the name {printable(ascii(name), SHOWN)} occurs twice in one object")
        members[name] = value
    return members


def _integer(text: str) -> int:
    if len(text) > DIGITS_LIMIT:
        raise _Fault(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    if len(text) > DIGITS_LIMIT or not math.isfinite(value := float(text)):
        raise _Fault(f"the number {printable(text, SHOWN)} is out of range")
    return value


def _constant(text: str) -> Any:
    raise _Fault(f"{text} is not JSON")


def _check(document: Any, what: str) -> None:
    """Refuse what is too deep, and surrogates, which ``\\ud800`` spells and UTF-8 cannot."""
    waiting = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEPTH_LIMIT:
            raise Malformed(f"{what} is nested more than {DEPTH_LIMIT} levels deep")
        if isinstance(value, dict):
            waiting += [(name, depth + 1) for name in value]
            waiting += [(member, depth + 1) for member in value.values()]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and not _is_unicode(value):
            raise Malformed(f"{what}: text is not valid Unicode (unpaired surrogate)")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
