"""Trusted identities: which subjects of certificates a policy means.

Spec: Notary Project, trust-store-trust-policy.md, "Trusted Identities Constraints"; RFC 4514 for
the text.  As in notation, C, ST (or S) and O must be there, no attribute occurs twice, and sets of
attributes in one (``C=DE+ST=Berlin``) and values as DER (``O=#0403``) are refused.  Values are
compared as they are, case and all; the order of attributes means nothing.
"""

import re
from collections.abc import Iterable

import msgspec

from lazyfs.printable import printable
from lazyfs.trust.errors import Malformed
from lazyfs.trust.names import Name

SIZE_LIMIT = 2048  # characters of an identity
MANDATORY = ("C", "ST", "O")
ALIASES = {"S": "ST"}
TYPE_RE = re.compile(r"[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)*")
HEX_RE = re.compile(r"[0-9a-fA-F]{2}")
ESCAPABLE = set(' ,+"\\<>;=#')
FORBIDDEN = set('"<>;')  # in a value, unless escaped


class Identity(msgspec.Struct, frozen=True):
    """The attributes that a subject must have; ``text`` as the policy spells it."""

    text: str
    attributes: frozenset[tuple[str, str]]

    def covers(self, other: "Identity") -> bool:
        """Say whether all that *other* means is meant by this one, too."""
        return self.attributes <= other.attributes

    def __str__(self) -> str:
        return printable(self.text, 200)


def parse_identity(text: str) -> Identity:
    """Return the identity that the value of ``x509.subject:`` means.  Raises Malformed."""
    if len(text) > SIZE_LIMIT:
        raise Malformed(f"a distinguished name is longer than {SIZE_LIMIT} characters")
    return Identity(text.strip(), _attributes(_Reader(text).pairs()))


def identity_of(subject: Name) -> Identity:
    """Return a certificate's subject as an identity; the same rules hold for it.

    Raises Malformed where they do not: then a policy that names identities cannot mean it.
    """
    if not all(each.is_known for each in subject.attributes):
        raise Malformed("the subject has attributes that a trusted identity cannot name")
    return Identity(
        str(subject), _attributes((each.type, each.value) for each in subject.attributes)
    )


def _attributes(pairs: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    found: dict[str, str] = {}
    for kind, value in pairs:
        kind = ALIASES.get(kind, kind)
        if not value:
            raise Malformed(f"the attribute {kind} is empty")
        if kind in found:
            raise Malformed(f"the attribute {kind} occurs twice")
        found[kind] = value
    if missing := [kind for kind in MANDATORY if kind not in found]:
        raise Malformed(f"the attribute {missing[0]} is missing; C, ST and O must be there")
    return frozenset(found.items())


class _Reader:
    """Text of RFC 4514, section 3, read from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pairs(self) -> Iterable[tuple[str, str]]:
        while True:
            kind = self.kind()
            yield kind, self.value()
            if self.at == len(self.text):
                return
            self.at += 1  # the comma

    def kind(self) -> str:
        self.blanks()
        match = TYPE_RE.match(self.text, self.at)
        if match is None:
            raise Malformed("a distinguished name is not of the form TYPE=VALUE, TYPE=VALUE")
        self.at = match.end()
        self.blanks()
        if self.text[self.at : self.at + 1] != "=":
            raise Malformed("a distinguished name is not of the form TYPE=VALUE, TYPE=VALUE")
        self.at += 1
        return match[0]

    def value(self) -> str:
        self.blanks()
        if self.text[self.at : self.at + 1] == "#":
            raise Malformed("a value as DER (=#…) is not supported")
        found = bytearray()
        solid = 0  # how much of it is no trailing blank
        while self.at < len(self.text) and (character := self.text[self.at]) != ",":
            if character == "+":
                raise Malformed("several attributes in one (TYPE=VALUE+TYPE=VALUE)")
            if character in FORBIDDEN or character == "\0":
                raise Malformed(f"the character {character!r} must be escaped")
            self.at += 1
            found += self.escaped() if character == "\\" else character.encode()
            if character != " ":
                solid = len(found)
        try:
            return found[:solid].decode()
        except UnicodeDecodeError:
            raise Malformed("a value is not UTF-8") from None

    def escaped(self) -> bytes:
        character = self.text[self.at : self.at + 1]
        if character in ESCAPABLE and character:
            self.at += 1
            return character.encode()
        match = HEX_RE.match(self.text, self.at)
        if match is None:
            raise Malformed("an escape in a distinguished name is not valid")
        self.at = match.end()
        return bytes.fromhex(match[0])

    def blanks(self) -> None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1
