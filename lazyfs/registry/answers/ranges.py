"""Ranges of bytes in HTTP: how to ask for one, and whether the answer is the one asked for.

Spec: RFC 9110, sections 14.2 (Range) and 14.4 (Content-Range).  No I/O here.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from lazyfs.printable import printable
from lazyfs.registry.config.errors import BadAnswer, SizeMismatch

# Numbers of more than 18 digits do not fit a file's size anywhere.
# Nexus leaves the unit out; that the range is the one asked for is seen all the same.
CONTENT_RANGE_RE = re.compile(r"(?:bytes[ \t]+)?([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
LENGTH_RE = re.compile(r"[0-9]{1,18}")


class ContentRange(NamedTuple):
    """A range that an answer carries; ``end`` is exclusive, ``total`` None where it is ``*``."""

    start: int
    end: int
    total: int | None


class Extent(NamedTuple):
    """What an answer's body will hold of the blob.

    ``skip`` bytes that were not asked for come first; ``size`` wanted ones follow; ``is_exact``
    says that the body ends there.
    """

    skip: int
    size: int
    is_exact: bool


def build_range(start: int, end: int) -> str:
    """Return the Range header for bytes *start* to *end* (exclusive)."""
    return f"bytes={start}-{end - 1}"


def parse_content_range(text: str) -> ContentRange:
    """Return what a Content-Range header of a 206 says."""
    match = CONTENT_RANGE_RE.fullmatch(text.strip())
    if match is None:
        raise BadAnswer(
            f"Content-Range {printable(text, 80)!r} is not of the form bytes FIRST-LAST/TOTAL"
        )
    start, end = int(match[1]), int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    if end <= start or (total is not None and end > total):
        raise BadAnswer(f"Content-Range {text.strip()!r} does not have FIRST <= LAST < TOTAL")
    return ContentRange(start, end, total)


def parse_length(text: str | None) -> int | None:
    """Return a Content-Length, None if there is none."""
    if text is None:
        return None
    if LENGTH_RE.fullmatch(text) is None:
        raise BadAnswer(f"Content-Length {printable(text, 40)!r} is not a number")
    return int(text)


def check_answer(
    status: int, headers: Mapping[str, str], start: int, end: int, blob_size: int
) -> Extent:
    """Return what the body of a 200 or 206 holds, asked for bytes *start* to *end* of a blob.

    A 206 may be shorter than asked, which only means asking again.  Raises BadAnswer for another
    range, and SizeMismatch if the blob is not *blob_size* bytes long.

    Some stores label a blob with the encoding of the layer that it is, and send it as it is.  That
    the sizes agree tells them from a server that has compressed it; the digest decides in the end.
    """
    length = parse_length(headers.get("content-length"))
    if status == 200:
        if length != blob_size:
            refuse_encoding(headers)
        if length is not None and length != blob_size:
            raise SizeMismatch(f"blob size: got {length}, expected {blob_size}")
        return Extent(start, end - start, end == blob_size)
    spelled = headers.get("content-range")
    if spelled is None:
        raise BadAnswer("the answer with status 206 has no Content-Range")
    got = parse_content_range(spelled)
    if got.total != blob_size or length is None:
        refuse_encoding(headers)
    if got.total is not None and got.total != blob_size:
        raise SizeMismatch(f"blob size: got {got.total}, expected {blob_size}")
    if got.start != start or got.end > end:
        raise BadAnswer(
            "the registry answered with other bytes than asked for: Content-Range: got bytes "
            f"{got.start}-{got.end - 1}, expected {start}-{end - 1}"
        )
    if length is not None and length != got.end - got.start:
        raise BadAnswer(
            f"Content-Length: got {length}, expected {got.end - got.start} as Content-Range says"
        )
    return Extent(0, got.end - start, True)


def refuse_encoding(headers: Mapping[str, str]) -> None:
    """Refuse a body that something on the way has compressed: its offsets are not the blob's."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise BadAnswer(f"Content-Encoding {printable(encoding, 40)!r} was not asked for")
