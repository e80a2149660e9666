"""tar-split: what a tar has beside its payloads, so that it can be built again bit for bit.

Spec: vbatts/tar-split, "storage".  Lines of JSON: type 2 holds raw bytes (headers, padding, the
end), type 1 names an entry, whose payload comes there if it has one.  The layers of containers/
storage list the same entries in the same order in their TOC.  No I/O here, and nothing is
verified: the diffID of what comes out is the proof.
"""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from lazyfs.errors import FormatError
from lazyfs.formats.streams.limits import DEFAULT_LIMITS
from lazyfs.formats.tocs.paths import normalise_path
from lazyfs.formats.tocs.toc import Kind, Toc, TocEntry

ENTRY, SEGMENT = 1, 2


class BadTarSplit(FormatError):
    """A tar-split document that breaks its rules, or does not belong to the TOC."""

    code = "E_BAD_TAR_SPLIT"


class _Line(msgspec.Struct, gc=False):
    type: int
    name: str = ""
    name_raw: bytes = b""
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    payload: bytes | None = None
    position: int = 0


_DECODER = msgspec.json.Decoder(_Line)


def tar_parts(document: bytes, toc: Toc) -> Iterator[bytes | TocEntry]:
    """Yield what the tar is made of: its own bytes, and entries of *toc* for their payloads.

    Raises BadTarSplit when the two do not list the same entries.
    """
    entries = iter(toc.entries)
    for number, line in enumerate(_lines(document)):
        if line.position != number:
            raise BadTarSplit(f"tar-split: got position {line.position}, expected {number}")
        if line.type == SEGMENT:
            yield line.payload or b""
        elif line.type == ENTRY:
            entry = next(entries, None)
            _check_same(line, entry)
            if entry is not None and entry.chunks:
                yield entry
        else:
            raise BadTarSplit(f"tar-split: got type {line.type}, expected {ENTRY} or {SEGMENT}")
    rest = sum(1 for _ in entries)
    if rest:
        raise BadTarSplit(f"tar-split: {rest} entries of the TOC are missing")


def _lines(document: bytes) -> Iterator[_Line]:
    start = 0
    while start < len(document):
        end = document.find(b"\n", start)
        end = len(document) if end < 0 else end
        try:
            yield _DECODER.decode(memoryview(document)[start:end])
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise BadTarSplit(
                f"tar-split: {document[start : start + 60]!r}… is not a valid entry: {exc}"
            ) from exc
        start = end + 1


def _check_same(line: _Line, entry: TocEntry | None) -> None:
    if entry is None:
        raise BadTarSplit(f"tar-split: {line.name[:200]!r} is not in the TOC")
    size = entry.size if entry.kind is Kind.REGULAR else 0
    # A name that is not UTF-8 is only here what it was; in the TOC it is spoilt.
    is_named = line.name_raw or _path(line.name) == entry.path
    if not is_named or line.size != size:
        raise BadTarSplit(
            f"tar-split: got {line.name[:200]!r} of {line.size} bytes,"
            f" expected {entry.path[:200]!r} of {size} as in the TOC"
        )


def _path(name: str) -> bytes:
    try:
        return normalise_path(name.encode(), DEFAULT_LIMITS)
    except ValueError as exc:
        raise BadTarSplit(f"tar-split: {name[:200]!r}: {exc}") from exc
