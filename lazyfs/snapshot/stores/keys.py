"""Keys of objects: what a store of snapshots is made of.

    snapshots/<id>/<object>            files; ``snapshot-manifest.json`` is written last
    pointers/<name>.json               names that move
    base/                              an OCI image layout: images that were embedded

Pure.  A key is words with "/" between; no word begins with a dot, so no key leads out of a folder.
"""

import re

from lazyfs.documents.manifest import MANIFEST_NAME
from lazyfs.errors import UsageError

SNAPSHOTS = "snapshots/"
POINTERS = "pointers/"
BASE = "base/"
POINTER_SUFFIX = ".json"
ID_RE = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", re.ASCII)
# Also what others call their snapshots: so that it can be said what those are.
WORD_RE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:+-]{0,254}", re.ASCII)
POINTER_RE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
OBJECT_RE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,219}", re.ASCII)  # of a snapshot
BLOB_RE = re.compile(rf"{BASE}blobs/(sha256/[0-9a-f]{{64}}|sha512/[0-9a-f]{{128}})", re.ASCII)
LONGEST_KEY = 1024  # bytes; S3's limit


class BadKey(UsageError):
    """Text that can be no key, snapshot's id or pointer's name."""

    code = "E_KEY"


def check_key(key: str) -> str:
    """Return *key*, or raise BadKey."""
    if len(key) > LONGEST_KEY or not all(map(WORD_RE.fullmatch, key.split("/"))):
        raise BadKey(f"key: must be words of A-Z a-z 0-9 _ . : + - and slashes, not {key[:100]!r}")
    return key


def check_id(snapshot_id: str) -> str:
    """Return *snapshot_id*, or raise BadKey."""
    if ID_RE.fullmatch(snapshot_id) is None:
        raise BadKey(
            f"snapshot: must be an id like 20261120T194511Z-5b1c09ef, not {snapshot_id[:100]!r}"
        )
    return snapshot_id


def check_word(name: str) -> str:
    """Return *name*, what somebody may call a snapshot, or raise BadKey."""
    if WORD_RE.fullmatch(name) is None:
        raise BadKey(f"snapshot: must be an id, not {name[:100]!r}")
    return name


def check_pointer(name: str) -> str:
    """Return the pointer's *name*, or raise BadKey."""
    if POINTER_RE.fullmatch(name) is None:
        raise BadKey(
            "pointer: must be up to 128 of A-Z a-z 0-9 _ . -, the first a letter, a digit or _, "
            f"not {name[:100]!r}"
        )
    return name


def is_of_snapshot(key: str) -> bool:
    """Say whether *key* can be that of a snapshot's file, or manifest."""
    if not key.startswith(SNAPSHOTS):
        return False
    snapshot_id, _, name = key.removeprefix(SNAPSHOTS).partition("/")
    return bool(ID_RE.fullmatch(snapshot_id) and OBJECT_RE.fullmatch(name))


def is_of_blob(key: str) -> bool:
    """Say whether *key* can be that of a blob of an embedded image."""
    return BLOB_RE.fullmatch(key) is not None


def folder_of(snapshot_id: str) -> str:
    """Return what the keys of a snapshot begin with."""
    return f"{SNAPSHOTS}{snapshot_id}/"


def manifest_key(snapshot_id: str) -> str:
    """Return the key whose existence says that a snapshot is complete."""
    return f"{SNAPSHOTS}{snapshot_id}/{MANIFEST_NAME}"


def pointer_key(name: str) -> str:
    """Return the key of a pointer."""
    return f"{POINTERS}{check_pointer(name)}{POINTER_SUFFIX}"
