"""What the documents of Sigstore share: objects with known names, and base64 inside them."""

import base64
import binascii
from collections.abc import Collection
from typing import Any

from lazyfs.printable import printable
from lazyfs.trust.errors import Malformed

SHOWN = 80  # characters of foreign text that a message quotes
URL_SAFE = str.maketrans("-_", "+/")
LINE_ENDS = str.maketrans("", "", "\r\n")


def quote(value: object) -> str:
    """Return foreign text, or any other value, as messages show it."""
    return printable(ascii(value), SHOWN)


def members(
    value: Any, what: str, required: Collection[str], optional: Collection[str] | None = ()
) -> dict[str, Any]:
    """Return *value* if it is an object with these names; None: any others are ignored.

    Raises Malformed, naming *what*.
    """
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object")
    for name in required:
        if name not in value:
            raise Malformed(f"{what} has no {name}")
    if optional is not None:
        for name in value:
            if name not in required and name not in optional:
                raise Malformed(f"{what} has an unknown member {quote(name)}")
    return value


def text(value: Any, what: str) -> str:
    """Return *value* if it is text.  Raises Malformed."""
    if not isinstance(value, str):
        raise Malformed(f"{what} is not text")
    return value


def encoded(spelled: str) -> bytes:
    """Return a text's UTF-8, for a reader that refuses what is none: unpaired surrogates."""
    return spelled.encode(errors="surrogatepass")


def from_base64(value: Any, what: str, *, is_url_safe: bool = False) -> bytes:
    """Return the bytes that a text spells in base64, padded.  Raises Malformed.

    Spec: RFC 4648, section 4; with *is_url_safe* also section 5.  Nothing but the alphabet is
    accepted, and ends of lines, which Go passes over and the program ``base64`` writes.
    """
    spelled = text(value, what).translate(LINE_ENDS)
    if is_url_safe:
        spelled = spelled.translate(URL_SAFE)
    try:
        data = base64.b64decode(spelled)
    except (binascii.Error, ValueError):
        raise Malformed(f"{what} is not base64") from None
    if base64.b64encode(data).decode() != spelled:  # Python passes over what is no base64
        raise Malformed(f"{what} is not base64")
    return data
