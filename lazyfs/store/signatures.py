"""Signatures that were found good, by what was signed; and how new the newest was, by name.

The first are kept so that an image that was mounted is mounted again without asking anybody for
them.  They are judged anew each time: being kept makes nothing good.  The second are kept so that
an older image under the same name is noticed; they outlive the images.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from lazyfs.digest import Digest
from lazyfs.errors import FormatError
from lazyfs.store.content.regular import open_regular
from lazyfs.store.paths import Store, digest_named
from lazyfs.trust.candidate import Candidate

FILE_LIMIT = 32 << 20
NAME_LIMIT = 1 << 16
Record = TypeVar("Record")
UNREADABLE = (OSError, UnicodeDecodeError, RecursionError, msgspec.MsgspecError)


class _Kept(msgspec.Struct, frozen=True):
    subject: str
    candidates: tuple[Candidate, ...]


class Signed(msgspec.Struct, frozen=True, rename="camel"):
    """The newest signature seen of a reference; ``signed_at`` is RFC 3339, UTC."""

    name: str
    signed_at: str
    digest: str


def save_signatures(store: Store, subject: Digest, candidates: Sequence[Candidate]) -> None:
    """Keep what is signed over *subject*; StoreError where the store cannot."""
    data = msgspec.json.encode(_Kept(str(subject), tuple(candidates)))
    if len(data) <= FILE_LIMIT:
        store.make_folder(store.signatures)
        store.write_file(store.signatures / subject.hex, data)


def load_signatures(store: Store, subject: Digest) -> list[Candidate]:
    """Return what is kept of *subject* and has its digests."""
    kept = _load(store.signatures / subject.hex, _Kept, FILE_LIMIT)
    if kept is None or kept.subject != str(subject):
        return []
    return [each for each in kept.candidates if each.is_whole()]


def save_newest(store: Store, name: str, signed_at: str, digest: str) -> None:
    """Keep that *name* had a signature of that time; StoreError where the store cannot."""
    store.make_folder(store.signed)
    data = msgspec.json.encode(Signed(name, signed_at, digest))
    store.write_file(_newest_path(store, name), data, is_synced=True)


def load_newest(store: Store, name: str) -> Signed | None:
    """Return the newest signature that was seen of *name*, None where none was."""
    found = _load(_newest_path(store, name), Signed, NAME_LIMIT)
    return found if found is not None and found.name == name else None


def unneeded_signatures(store: Store) -> list[Path]:
    """Return the files about manifests and indexes that are gone, and those with other names."""
    return [path for path in store.signatures.glob("*") if not _has_subject(store, path)]


def _has_subject(store: Store, path: Path) -> bool:
    try:
        return store.blob_path(digest_named(path.name)).exists()
    except FormatError:
        return False


def _newest_path(store: Store, name: str) -> Path:
    return store.signed / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def _load(path: Path, kind: type[Record], limit: int) -> Record | None:
    try:
        with open_regular(path) as file:
            return msgspec.json.decode(file.read(limit + 1), type=kind)
    except UNREADABLE:
        return None
