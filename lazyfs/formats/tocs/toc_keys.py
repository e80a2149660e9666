"""TOCs whose JSON says something twice, or in a spelling that other readers take for another key.

Go's encoding/json, by which the other readers of TOCs are made, lets the last of equal keys count,
and takes ``Name`` for ``name``; scanners may let the first one count.  Such a TOC would show each
of them another tree under one digest.  The native scanner leaves any key to Python that is unknown
or comes twice, so it needs no more than this; its extended attributes are read here anyway.
"""

import json
from typing import Any

import msgspec

from lazyfs.formats.tocs.rawtoc import BadToc

try:
    from lazyfs._native import has_plain_keys
except ImportError:  # it was installed without a compiler
    has_plain_keys = None  # type: ignore[assignment]

# What Go's readers know, in the producers' order: stargz-snapshotter's estargz/types.go,
# containers/storage's toc.go.
ORDER = (
    *("version", "entries", "tarSplitDigest"),
    *("name", "type", "size", "modtime", "linkName", "mode", "uid", "gid", "userName", "groupName"),
    *("offset", "innerOffset", "endOffset", "devMajor", "devMinor", "NumLink", "xattrs", "digest"),
    *("chunkOffset", "chunkSize", "chunkDigest", "chunkType", "accesstime", "changetime"),
    *("nameBytes", "linkNameBytes"),
)
KEYS = frozenset(ORDER)
NAMES = "\0".join(ORDER).encode()
FOLDED = {key.casefold(): key for key in KEYS}

MAX_PIECE = 4 << 20
"""Bytes of JSON that are read at once: values that nobody asked for may take many times as much."""


class AmbiguousToc(BadToc):
    """A TOC that two readers may understand in two ways."""

    code = "E_AMBIGUOUS"


class _Sketch(msgspec.Struct):
    """A TOC whose entries are not looked into."""

    entries: msgspec.Raw = msgspec.Raw(b"[]")


def check_toc_keys(data: bytes) -> None:
    """Raise AmbiguousToc for equal keys in one object of a TOC, or known ones in another case.

    *data* is a TOC that has been decoded before.  It is read piece by piece, for the memory's sake;
    BadToc for one that has pieces beyond any use.  The native core looks first, and is mostly sure.
    """
    if has_plain_keys is not None and has_plain_keys(data, NAMES):
        return
    raw = msgspec.json.decode(data, type=_Sketch).entries
    # Entries that come twice are in what is around the last of them.
    around = data.replace(raw, b"[]", 1) if len(raw) > 2 else data
    _check_piece(around)
    batch: list[msgspec.Raw] = []
    size = 0
    for entry in msgspec.json.decode(raw, type=list[msgspec.Raw] | None) or ():
        if size + len(entry) > MAX_PIECE and batch:
            _check_piece(b"[" + b",".join(batch) + b"]")
            batch, size = [], 0
        batch.append(entry)
        size += len(entry)
    _check_piece(b"[" + b",".join(batch) + b"]")


def check_xattrs_keys(data: bytes, count: int) -> None:
    """Raise AmbiguousToc for equal keys in an object of texts that was read into *count* keys."""
    # One colon for each key: then there is none in a text, and no key more than were read.
    if data.count(b":") != count:
        _check_piece(data)


def _check_piece(data: bytes) -> None:
    if len(data) > 2 * MAX_PIECE:
        raise BadToc(f"TOC: {len(data)} bytes of JSON in one place are too many for an entry")
    try:
        json.loads(data, object_pairs_hook=_check)
    except (ValueError, RecursionError) as exc:
        raise BadToc(f"TOC: {data[:60]!r}… is not valid JSON: {exc}") from exc


def _check(pairs: list[tuple[str, Any]]) -> None:
    keys = dict(pairs).keys()
    if len(keys) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise AmbiguousToc(f"TOC: the key {twice[:100]!r} occurs twice in one object")
    if keys <= KEYS:
        return
    for key in keys - KEYS:
        meant = FOLDED.get(key.casefold())
        if meant is not None:
            raise AmbiguousToc(
                f"TOC: got the key {key[:100]!r}, expected {meant!r}: some readers ignore the case"
            )
