"""Why a snapshot has no manifest: what is there instead, and what can be done about it."""

import difflib
from collections.abc import Callable, Sequence

from lazyfs.documents.errors import ManifestMissing
from lazyfs.documents.manifest import MANIFEST_NAME
from lazyfs.snapshot.stores.keys import POINTERS, SNAPSHOTS, folder_of
from lazyfs.snapshot.stores.objects import ObjectStore

PARTS = (SNAPSHOTS, POINTERS)  # of a store
FOREIGN_MANIFEST = "manifest.json"  # what agent-substrate writes
FOREIGN_HINT = (
    "this looks like a snapshot of agent-substrate, which does not record images: "
    "build a new golden snapshot, or name the images with --assume-image NAME=REF@sha256:…"
)


def no_manifest(
    objects: ObjectStore, snapshot_id: str, pointer: str | None, ids: Callable[[], Sequence[str]]
) -> ManifestMissing:
    """Return the error for a snapshot without a manifest; *ids* gives those of committed ones.

    *pointer* is the name of the one that named it, if one did.
    """
    prefix = folder_of(snapshot_id)
    found = [each.key.removeprefix(prefix) for each in objects.list(prefix)]
    if not found:  # where others keep theirs
        found = [each.key.partition("/")[2] for each in objects.list(f"{snapshot_id}/")]
    what = f"snapshot {snapshot_id} in {objects.url}"
    if pointer is not None:
        what = f"pointer {pointer}: {what}"
    details = {"id": snapshot_id, "pointer": pointer, "objects": found[:100]}
    if FOREIGN_MANIFEST in found:
        return ManifestMissing(
            f"{what} has {FOREIGN_MANIFEST} but no {MANIFEST_NAME}",
            hint=FOREIGN_HINT,
            details=details,
        )
    if any(each.startswith(PARTS) for each in found):
        return ManifestMissing(
            f"{what} is a store of snapshots, not a snapshot: name one as STORE/ID or "
            "STORE@POINTER",
            hint=f"`lazyfs snapshot list {objects.url}/{snapshot_id}` lists its snapshots",
            details=details,
        )
    if found:
        return ManifestMissing(
            f"{what} has no {MANIFEST_NAME}, only {', '.join(sorted(found)[:10])}: "
            "an unfinished upload, or an older format",
            hint="complete it with `lazyfs checkpoint --continue`, name the images with "
            "--assume-image NAME=REF@sha256:…, build a new golden snapshot, "
            "or remove it with `lazyfs gc`",
            details=details,
        )
    near = difflib.get_close_matches(snapshot_id, ids(), 5, 0)
    return ManifestMissing(
        f"{what} does not exist",
        hint=f"`lazyfs snapshot list` lists the snapshots; the closest names are {', '.join(near)}"
        if near
        else "the store has no complete snapshot",
        details=details | {"nearest": near},
    )
