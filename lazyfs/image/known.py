"""What is on this machine, by any name: nothing is asked of a registry here."""

import os
import re

from lazyfs.errors import FormatError, UsageError
from lazyfs.oci.reference import LayoutReference, Reference, parse_reference
from lazyfs.store.images import ImageRecord
from lazyfs.store.names import NameRecord, load_names, save_name
from lazyfs.store.paths import ALGORITHMS, Store, digest_named
from lazyfs.store.upkeep.documents import listed_in

DIGEST_RE = re.compile(r"(?:(?:.*@)?sha(?:256|512):)?([0-9a-f]{6,128})", re.DOTALL)
BARE_RE = re.compile(r"sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})")


def spell(reference: Reference | LayoutReference) -> str:
    """Return the name that a reference without a digest is kept under."""
    if isinstance(reference, LayoutReference):
        tag = f":{reference.tag}" if reference.tag else ""
        return f"oci:{os.path.abspath(reference.path)}{tag}"
    return f"{reference.name}:{reference.tag}"


def note_name(
    store: Store,
    reference: Reference | LayoutReference,
    record: ImageRecord,
    index_digest: str | None,
) -> None:
    """Keep what a reference has just been resolved to; StoreError when the store cannot."""
    if reference.digest is None:
        name = spell(reference)
        save_name(store, NameRecord(name, record.platform, record.manifest_digest, index_digest))


def known_images(store: Store, text: str) -> list[str]:
    """Return the manifest digests that *text* means here, sorted; of images or profiles.

    *text* is a digest of a manifest or an index, the start of its hexadecimal part, or a reference
    that was mounted.  A name, or an index, may mean one image for each platform.
    """
    match = DIGEST_RE.fullmatch(text)
    if match is not None:
        wanted = match[1]
        known = known_digests(store)
        found = {name for name in known if name.partition(":")[2].startswith(wanted)}
        if not found and len(wanted) in ALGORITHMS:
            listed = listed_in(store.blob_path(digest_named(wanted)))
            found = known & {str(digest) for digest in listed}
        if found or wanted != text:
            return sorted(found)
    try:
        name = spell(parse_reference(text))
    except UsageError:
        return []
    return sorted(record.manifest_digest for record in load_names(store) if record.name == name)


def reference_of(store: Store, text: str) -> str | None:
    """Return by which repository an image was mounted here that *text*, a digest alone, is of.

    None where it is no digest alone, or of nothing that was mounted by a name.
    """
    if BARE_RE.fullmatch(text) is None:
        return None
    for record in load_names(store):
        if text in (record.manifest_digest, record.index_digest):
            reference = parse_reference(record.name)
            if isinstance(reference, LayoutReference):
                return f"oci:{reference.path}@{text}"
            return f"{reference.name}@{text}"
    return None


def known_digests(store: Store) -> set[str]:
    """Return the manifest digests of the images and profiles that are kept."""
    found = set()
    for folder in (store.images, store.profiles):
        for path in folder.glob("*"):
            try:
                found.add(str(digest_named(path.name)))
            except FormatError:
                continue
    return found
