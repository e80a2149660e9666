"""Small JSON documents that state their own digest: one that has rotted is not taken for another.

The field ``checksum`` is the sha256 of the document without it.  A document of a release that
wrote none has none to be wrong.
"""

import hashlib
from typing import TypeVar

import msgspec
from msgspec.structs import replace

T = TypeVar("T", bound=msgspec.Struct)


def encode_sealed(document: T) -> bytes:
    """Return the JSON of *document*, which has a field ``checksum``."""
    return msgspec.json.encode(replace(document, checksum=_checksum(document)))


def decode_sealed(data: bytes, kind: type[T]) -> T | None:
    """Return the document, its checksum left out; None where that is wrong, or it is none."""
    try:
        document = msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None
    stated = getattr(document, "checksum", "")
    if stated and stated != _checksum(document):
        return None
    return replace(document, checksum="")


def _checksum(document: msgspec.Struct) -> str:
    return hashlib.sha256(msgspec.json.encode(replace(document, checksum=""))).hexdigest()
