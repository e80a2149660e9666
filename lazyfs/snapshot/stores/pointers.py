"""Pointers: names of snapshots that move, one step at a time.

A pointer names a snapshot that is committed, with the digest of its manifest.  It is moved by
compare-and-swap, so that of two who move it, one is told.
"""

import logging
import re
from typing import Annotated

import msgspec

from lazyfs.digest import digest_of
from lazyfs.documents.errors import ManifestInvalid, ManifestMissing, StoreConflict
from lazyfs.documents.manifest import MANIFEST_LIMIT
from lazyfs.snapshot.stores.keys import (
    POINTER_RE,
    POINTER_SUFFIX,
    POINTERS,
    BadKey,
    check_id,
    manifest_key,
    pointer_key,
)
from lazyfs.snapshot.stores.objects import ObjectMissing, ObjectStore

log = logging.getLogger(__name__)

VERSION = 1
POINTER_LIMIT = 4096  # bytes
Text = Annotated[str, msgspec.Meta(max_length=100)]
DIGEST_RE = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class Pointer(msgspec.Struct, frozen=True, rename="camel"):
    """What a pointer names: a snapshot's id, and the digest of its manifest's bytes."""

    id: Text
    manifest_digest: Text
    version: int = VERSION


def encode_pointer(pointer: Pointer) -> bytes:
    """Return the pointer's document."""
    return msgspec.json.encode(pointer, order="sorted")


def decode_pointer(data: bytes, name: str) -> Pointer:
    """Return the pointer in *data*; raise ManifestInvalid, which names it."""
    try:
        pointer = msgspec.json.decode(data[: POINTER_LIMIT + 1], type=Pointer)
        check_id(pointer.id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadKey) as error:
        raise ManifestInvalid(f"pointer {name} is not valid: {str(error)[:200]}") from None
    if DIGEST_RE.fullmatch(pointer.manifest_digest) is None or pointer.version != VERSION:
        raise ManifestInvalid(
            f"pointer {name}: got version {pointer.version}, {pointer.manifest_digest!r}; "
            f"expected version {VERSION} and a sha256 digest"
        )
    return pointer


def read_pointer(objects: ObjectStore, name: str) -> Pointer | None:
    """Return what the pointer *name* names, None if there is none of that name."""
    try:
        data = objects.get(pointer_key(name), POINTER_LIMIT)
    except ObjectMissing:
        return None
    return decode_pointer(data, name)


def list_pointers(objects: ObjectStore) -> dict[str, Pointer]:
    """Return all pointers by name; a damaged one is logged and left out."""
    found = {}
    for stored in objects.list(POINTERS):
        name = stored.key.removeprefix(POINTERS).removesuffix(POINTER_SUFFIX)
        if stored.key.endswith(POINTER_SUFFIX) and POINTER_RE.fullmatch(name):
            try:
                pointer = read_pointer(objects, name)
            except ManifestInvalid as error:
                log.warning("%s", error.message)
                continue
            if pointer is not None:
                found[name] = pointer
    return found


def move_pointer(objects: ObjectStore, name: str, to: Pointer, expected: Pointer | None) -> None:
    """Have *name* name *to*, if it names *expected* (None: nothing) now; else StoreConflict.

    Nothing to do where it names *to* already.  A snapshot that is not committed, with that
    manifest, cannot be named: ManifestMissing, ManifestInvalid.
    """
    try:
        data = objects.get(manifest_key(to.id), MANIFEST_LIMIT)
    except ObjectMissing as error:
        raise ManifestMissing(
            f"pointer {name}: snapshot {to.id} has no manifest, so it cannot be named"
        ) from error
    if (digest := str(digest_of(data))) != to.manifest_digest:
        raise ManifestInvalid(
            f"pointer {name}: got a manifest {digest}, expected {to.manifest_digest}"
        )
    key = pointer_key(name)
    try:
        current = objects.get(key, POINTER_LIMIT)
    except ObjectMissing:
        current = None
    found = None if current is None else decode_pointer(current, name)
    if found == to:
        return
    if found == expected:
        if objects.replace(key, encode_pointer(to), current):
            return
        # Somebody was faster, or we were, and the answer was lost.
        found = read_pointer(objects, name)
        if found == to:
            return
    raise StoreConflict(
        f"pointer {name} was moved by somebody else: it names "
        f"{'nothing' if found is None else found.id}, "
        f"not {'nothing' if expected is None else expected.id} as before",
        hint=f"snapshot {to.id} is complete; choose which snapshot {name} should name",
        details={"pointer": name, "found": None if found is None else found.id, "id": to.id},
    )


def remove_pointer(objects: ObjectStore, name: str) -> None:
    """Remove a pointer; nothing to do where there is none.  Its snapshot stays."""
    objects.delete(pointer_key(name))
