"""Whether a layer's tar and its TOC tell of one tree: found out once, and kept beside the TOC.

``agreed`` in the layer's folder is JSON: by the digest of a blob, what a comparison of its tar with
the TOC found.  The folder is named by the TOC's digest, so both sides are fixed: what was found is
so for ever, by the same rules.  A file that cannot be read is none, and the comparison is made
again.
"""

from pathlib import Path

import msgspec

from lazyfs.digest import Digest
from lazyfs.errors import StoreError
from lazyfs.store.content.regular import open_regular
from lazyfs.store.paths import Store

RULES = 2
"""By which tars are read and compared; a change of them compares again."""

MAX_SIZE = 1 << 20
MAX_TEXT = 8 << 10
MAX_BLOBS = 64


class Agreement(msgspec.Struct, frozen=True, rename="camel"):
    """What a comparison found: the tar's digest, and the differences in words, empty for none."""

    diff_id: str
    differences: str = ""


class _Agreements(msgspec.Struct, frozen=True):
    """By the digests of blobs that have one TOC."""

    blobs: dict[str, Agreement] = {}
    rules: int = RULES


def load_agreement(store: Store, toc_digest: Digest, blob: Digest) -> Agreement | None:
    """Return what was found of a blob and its TOC, None where they have not been compared."""
    return _load(store, toc_digest).blobs.get(str(blob))


def save_agreement(store: Store, toc_digest: Digest, blob: Digest, found: Agreement) -> None:
    """Keep what was found; where there is no room it is found again."""
    found = Agreement(found.diff_id, found.differences[:MAX_TEXT])
    all_found = {**_load(store, toc_digest).blobs, str(blob): found}
    newest = dict(list(all_found.items())[-MAX_BLOBS:])
    try:
        store.write_file(_path(store, toc_digest), msgspec.json.encode(_Agreements(newest)))
    except StoreError:
        pass


def _load(store: Store, toc_digest: Digest) -> _Agreements:
    try:
        with open_regular(_path(store, toc_digest)) as file:
            found = msgspec.json.decode(file.read(MAX_SIZE), type=_Agreements)
    except (OSError, ValueError, msgspec.MsgspecError):
        return _Agreements()
    return found if found.rules == RULES else _Agreements()


def _path(store: Store, toc_digest: Digest) -> Path:
    return store.layer_path(toc_digest) / "agreed"
