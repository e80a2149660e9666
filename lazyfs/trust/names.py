"""Distinguished names: who a certificate is for, and how that is written.

Spec: X.501, and RFC 5280, section 4.1.2.4, for the bytes; RFC 4514 for the text.
"""

import re

import msgspec

from lazyfs.trust import der
from lazyfs.trust.errors import Malformed

ATTRIBUTES_LIMIT = 64  # attributes of a name
VALUE_LIMIT = 1024  # characters of one

# Object identifiers that have a short name: RFC 4514, section 3, and pkix.Name of Go, whose text
# trust policies are written after.
SHORT = {
    "2.5.4.3": "CN",
    "2.5.4.5": "SERIALNUMBER",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.17": "POSTALCODE",
}
UTF8_STRING, PRINTABLE, TELETEX, IA5, UNIVERSAL, BMP = 0x0C, 0x13, 0x14, 0x16, 0x1C, 0x1E
ENCODINGS = {
    UTF8_STRING: "utf-8",
    PRINTABLE: "ascii",
    IA5: "ascii",
    TELETEX: "latin-1",
    UNIVERSAL: "utf-32-be",
    BMP: "utf-16-be",
}
TO_ESCAPE_RE = re.compile(r'[,+"\\<>;=]|^[ #]| $')


class Attribute(msgspec.Struct, frozen=True):
    """One attribute: its type, as a short name or an object identifier, and its value."""

    type: str
    value: str

    @property
    def is_known(self) -> bool:
        """Whether the type has a short name."""
        return not self.type[0].isdigit()


class Name(msgspec.Struct, frozen=True):
    """A name: ``raw`` its DER, which names are compared by, and its attributes, root first."""

    raw: bytes
    attributes: tuple[Attribute, ...]

    def __str__(self) -> str:
        """Return the name by RFC 4514, the most specific attribute first."""
        return ",".join(f"{each.type}={escape(each.value)}" for each in reversed(self.attributes))


def parse_name(value: der.Value) -> Name:
    """Return the name in an RDNSequence.  Raises Malformed."""
    attributes = []
    for relative in value.parts():
        if relative.tag != der.SET:
            raise Malformed("the name in a certificate is not a sequence of sets")
        for pair in relative.parts():
            parts = pair.parts()
            kind, content = parts.take(der.OID).oid(), parts.take()
            parts.end()
            attributes.append(Attribute(SHORT.get(kind, kind), _text(content)))
            if len(attributes) > ATTRIBUTES_LIMIT:
                raise Malformed("the name in a certificate has too many attributes")
    return Name(value.raw, tuple(attributes))


def escape(value: str) -> str:
    """Return an attribute's value as it is written in a name.  RFC 4514, section 2.4."""
    return TO_ESCAPE_RE.sub(lambda match: f"\\{match[0]}", value).replace("\0", "\\00")


def _text(value: der.Value) -> str:
    encoding = ENCODINGS.get(value.tag)
    if encoding is None:
        return f"#{value.raw.hex()}"[:VALUE_LIMIT]
    try:
        text = value.body.decode(encoding)
    except UnicodeDecodeError:
        raise Malformed("a name in a certificate is not text") from None
    if len(text) > VALUE_LIMIT:
        raise Malformed("a name in a certificate is too long")
    return text
