"""What a registry answers with 401: which schemes it would accept, and where tokens come from.

Spec: RFC 9110, section 11.6.1 (WWW-Authenticate); distribution's token specification for Bearer.
No I/O here.  Real servers leave quotes out and put several challenges into one line; what cannot
be understood ends the reading, and whatever came before it counts.
"""

import re
from collections.abc import Mapping

import msgspec

HEADER_LIMIT = 16 << 10
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
SEPARATOR_RE = re.compile(r"[ \t,]*")
SCHEME_RE = re.compile(rf"{TOKEN}(?=[ \t,]|$)(?![ \t]*=)")
TOKEN68_RE = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
PARAMETER_RE = re.compile(rf'({TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
ESCAPE_RE = re.compile(r"\\(.)")


class Challenge(msgspec.Struct, frozen=True):
    """One scheme, in lower case, with its parameters, their names in lower case."""

    scheme: str
    parameters: Mapping[str, str] = msgspec.field(default_factory=dict)


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Return the challenges of WWW-Authenticate headers, joined by commas."""
    if len(header) > HEADER_LIMIT:
        return ()
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while (position := _after(SEPARATOR_RE, header, position)) < len(header):
        parameter = PARAMETER_RE.match(header, position)
        if parameter is not None and found:
            name, quoted, bare = parameter.groups()
            value = bare if quoted is None else ESCAPE_RE.sub(r"\1", quoted)
            found[-1][1].setdefault(name.lower(), value)
            position = parameter.end()
            continue
        scheme = SCHEME_RE.match(header, position)
        if scheme is None or parameter is not None:
            break
        found.append((scheme[0].lower(), {}))
        position = _after(TOKEN68_RE, header, scheme.end())
    return tuple(Challenge(scheme, parameters) for scheme, parameters in found)


def choose_challenge(challenges: tuple[Challenge, ...]) -> Challenge | None:
    """Return the one to answer: a token service before a password, None if neither is offered."""
    for challenge in challenges:
        if challenge.scheme == "bearer" and "realm" in challenge.parameters:
            return challenge
    return next((c for c in challenges if c.scheme == "basic"), None)


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return position if match is None else match.end()
