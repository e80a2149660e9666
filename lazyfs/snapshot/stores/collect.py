"""Garbage in a store: what crashes and lost machines have left.

Snapshots without a manifest are removed, images that were embedded for such, and uploads that never
ended; but only when nobody has touched them for a while, since another machine may be working on
them.  Committed snapshots are never touched, nor is anything whose key lazyfs does not use, whose
manifest is there in any form, or that others list in the images' index.
"""

import calendar
import logging
import time
from collections.abc import Collection

import msgspec

from lazyfs.documents.errors import StoreFailed
from lazyfs.snapshot.stores.embedding import (
    blobs_of_image,
    change_index,
    read_index,
    without_claims,
)
from lazyfs.snapshot.stores.keys import BASE, ID_RE, is_of_blob, is_of_snapshot, manifest_key
from lazyfs.snapshot.stores.objects import ObjectStore, Stored
from lazyfs.snapshot.stores.snapshots import Snapshots, State

log = logging.getLogger(__name__)

GRACE = 24 * 3600.0  # seconds


class Collected(msgspec.Struct, frozen=True):
    """What was removed, or would be; ``spared`` are partial snapshots that stay, with the reason.

    ``uploads`` is None where it is not known without aborting them.
    """

    partials: tuple[State, ...]
    blobs: tuple[Stored, ...]
    uploads: int | None
    spared: tuple[tuple[State, str], ...]

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(state.size for state in self.partials) + sum(each.size for each in self.blobs)


def collect(
    objects: ObjectStore,
    *,
    now: float,
    grace: float = GRACE,
    claimed: Collection[str] = (),
    is_dry_run: bool = False,
) -> Collected:
    """Remove the garbage that is older than *grace* seconds at *now* (Unix seconds).

    *claimed* are the ids of snapshots that sandboxes of this machine are still to finish.
    """
    before = now - grace
    snapshots = Snapshots(objects)
    states = snapshots.states()
    partials, spared = [], []
    for state in states:
        if state.is_committed:
            continue
        if state.id in claimed:
            spared.append((state, "claimed"))
        elif state.modified >= before:
            spared.append((state, "young"))
        elif not _is_ours(objects, state):
            spared.append((state, "foreign"))
        else:
            partials.append(state)
    kept = {state.id for state in states if state.is_committed}
    kept |= {state.id for state, _ in spared} | set(claimed)
    blobs = _blobs(objects, kept, before, is_dry_run=is_dry_run)
    uploads = None
    if not is_dry_run:
        partials = [state for state in partials if _remove(objects, state)]
        uploads = objects.abort_uploads(before)
    return Collected(tuple(partials), tuple(blobs), uploads, tuple(spared))


def _is_ours(objects: ObjectStore, state: State) -> bool:
    """Say whether a partial snapshot has nothing in it but what lazyfs writes there."""
    if not all(is_of_snapshot(each.key) for each in state.files):
        return False
    try:
        return objects.size(manifest_key(state.id)) is None
    except StoreFailed:  # it is there, and is no file: nobody knows what it stands for
        return False


def _remove(objects: ObjectStore, state: State) -> bool:
    """Remove a partial snapshot, unless it has become a whole one."""
    for stored in state.files:
        if objects.size(manifest_key(state.id)) is not None:
            log.warning("snapshot %s was completed in the meantime and is kept", state.id)
            return False
        objects.delete(stored.key)
    return True


def _blobs(
    objects: ObjectStore, kept: Collection[str], before: float, *, is_dry_run: bool
) -> list[Stored]:
    """Remove, or only find, blobs of images that no snapshot claims which is kept or young."""

    def is_kept(snapshot_id: str) -> bool:
        return snapshot_id in kept or not _is_older(snapshot_id, before)

    listed = read_index(objects)
    if is_dry_run:
        listed = without_claims(listed, is_kept)
    elif listed:
        listed = change_index(objects, lambda each: without_claims(each, is_kept))
    needed: set[str] = set()
    for image in listed:
        needed |= blobs_of_image(objects, image)
    garbage = [
        stored
        for stored in objects.list(BASE)
        if stored.key not in needed and stored.modified < before and is_of_blob(stored.key)
    ]
    removed = []
    for stored in garbage:
        if not is_dry_run:
            if any(stored.key in blobs_of_image(objects, each) for each in read_index(objects)):
                continue  # somebody claimed it just now
            objects.delete(stored.key)
        removed.append(stored)
    return removed


def _is_older(snapshot_id: str, before: float) -> bool:
    """Say whether the id was chosen before then; it begins with the time."""
    if ID_RE.fullmatch(snapshot_id) is None:
        return True
    return calendar.timegm(time.strptime(snapshot_id[:16], "%Y%m%dT%H%M%SZ")) < before
