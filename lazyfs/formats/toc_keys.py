"""TOCs whose JSON says something twice, or in a spelling that other readers take for another key.

Go's encoding/json, by which the other readers of TOCs are made, lets the last of equal keys count,
and takes ``Name`` for ``name``; scanners may let the first one count.  Such a TOC would show each
of them another tree under one digest.  The native scanner leaves any key to Python that is unknown
or comes twice, so it needs no more than this; its extended attributes are read here anyway.
"""

import json
from typing import Any

from lazyfs.formats.rawtoc import BadToc

# What Go's readers know: stargz-snapshotter's estargz/types.go, containers/storage's toc.go.
KEYS = frozenset((
    *("version", "entries", "tarSplitDigest"),
    *("name", "type", "size", "modtime", "linkName", "mode", "uid", "gid", "userName", "groupName"),
    *("offset", "innerOffset", "endOffset", "devMajor", "devMinor", "NumLink", "xattrs", "digest"),
    *("chunkOffset", "chunkSize", "chunkDigest", "chunkType", "accesstime", "changetime"),
    *("nameBytes", "linkNameBytes"),
))  # fmt: skip
FOLDED = {key.casefold(): key for key in KEYS}


class AmbiguousToc(BadToc):
    """A TOC that two readers may understand in two ways."""

    code = "E_AMBIGUOUS"


def check_toc_keys(data: bytes | str) -> None:
    """Raise AmbiguousToc for equal keys in one object of a TOC, or known ones in another case.

    *data* is the JSON of a TOC, or of a part of one, that has been decoded before.
    """
    try:
        json.loads(data, object_pairs_hook=_check)
    except (ValueError, RecursionError) as exc:
        raise AmbiguousToc(f"TOC: got {data[:60]!r}, expected JSON: {exc}") from exc


def _check(pairs: list[tuple[str, Any]]) -> None:
    keys = dict(pairs).keys()
    if len(keys) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise AmbiguousToc(f"TOC: got the key {twice[:100]!r} twice in one object, expected once")
    if keys <= KEYS:
        return
    for key in keys - KEYS:
        meant = FOLDED.get(key.casefold())
        if meant is not None:
            raise AmbiguousToc(
                f"TOC: got the key {key[:100]!r}, expected {meant!r}: some readers take one for the"
                " other"
            )
