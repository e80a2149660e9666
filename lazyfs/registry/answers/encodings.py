"""Documents that a registry, or something on the way, has compressed unasked.  No I/O here.

Spec: RFC 9110, section 8.4.1.3; RFC 1952 for gzip, whose streams may have several members.
"""

import zlib

from lazyfs.registry.config.errors import BadAnswer

MEMBER_LIMIT = 16
"""Servers send one.  A member may hold nothing, so a few MiB could be of hundreds of thousands,
each of which would cost a copy of all behind it."""


def inflate(data: bytes, limit: int, what: str) -> bytes:
    """Return at most *limit* bytes of what *data* is compressed from; *what* names the answer.

    Takes time in proportion to *data* and *limit*.  Raises BadAnswer.
    """
    pieces: list[bytes] = []
    left = limit
    try:
        for _ in range(MEMBER_LIMIT):
            member = zlib.decompressobj(31)
            pieces.append(member.decompress(data, left))
            left -= len(pieces[-1])
            if left <= 0:
                return b"".join(pieces)
            if not member.eof:
                raise BadAnswer(f"{what}: the gzip stream ends early")
            data = member.unused_data
            if not data:
                return b"".join(pieces)
    except zlib.error as error:
        raise BadAnswer(f"{what}: the body is labelled gzip but is not valid gzip") from error
    raise BadAnswer(f"{what}: the gzip stream has more than {MEMBER_LIMIT} members")
