"""Keeping the store within a budget: what was used longest ago goes first.

Contents go before anything else, layer by layer: the image stays as quick to mount, and its bytes
are fetched again when they are read.  Images go where the rest of what is not in use exceeds the
budget by itself.  What is in use, or needed by a sandbox, is never touched, so the budget may be
exceeded while it is.

Any number of processes may want to evict at the same time; a lock on the store's folder lets one
at a time, or each would give back what all together should.
"""

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from lazyfs.digest import parse_digest
from lazyfs.store.content.locks import lock_within
from lazyfs.store.images import load_record
from lazyfs.store.names import load_names, remove_names
from lazyfs.store.passes import unneeded_passes
from lazyfs.store.paths import Store
from lazyfs.store.pins import pinned_images, stale_pins
from lazyfs.store.scratch import PREFIX, sweep
from lazyfs.store.signatures import unneeded_signatures
from lazyfs.store.upkeep.documents import unneeded_documents
from lazyfs.store.upkeep.removal import (
    LayerInUse,
    empty_layer,
    remove_files,
    remove_layer,
)
from lazyfs.store.usage import Holdings, holdings_of, tree_size

GRACE_SECONDS = 3600.0
"""What was used or made more recently is spared by eviction, unless it is content: whoever prepares
a mount holds no lock yet."""

WAIT_SECONDS = 5.0


class Eviction(msgspec.Struct, frozen=True):
    """What was given back, and what the store takes on the disk afterwards; bytes."""

    freed_size: int
    allocated_size: int


def evict(store: Store, size: int, *, grace_seconds: float = GRACE_SECONDS) -> Eviction:
    """Give back what was used longest ago until the store takes at most *size* bytes.

    Does nothing if another process is at it for seconds; StoreError where the disk refuses.
    """
    with eviction_lock(store) as is_ours:
        swept = sweep(store)
        held = holdings_of(store)
        excess = held.allocated_size - size
        if excess <= 0 or not is_ours:
            return Eviction(swept, held.allocated_size)
        freed = _empty_layers(store, held, excess)
        if freed < excess:
            oldest = time.time() - grace_seconds
            freed += remove_unused(store, used_before=oldest)
            held = holdings_of(store)
            freed += _remove_images(store, held, held.idle_size - size, oldest)
            return Eviction(swept + freed, holdings_of(store).allocated_size)
        return Eviction(swept + freed, max(0, held.allocated_size - freed))


def remove_unused(store: Store, *, used_before: float | None = None) -> int:
    """Remove layers, documents and names that belong to no image, and what a crash has left.

    Also what is known of blobs whose layer is gone, what has rotted and was put aside, the pins of
    sandboxes that are gone, signatures of what is gone, and what was answered about certificates.

    Only what was last used before *used_before*, in seconds since the epoch, if that is given.
    Profiles stay: they make the next cold mount of their image fast.  Returns the bytes given back.
    """
    limit = math.inf if used_before is None else used_before
    freed = _remove_rests(store)
    for folder in store.images.iterdir():
        if load_record(folder) is None and _changed(folder) < limit:
            freed += tree_size(folder)
            store.discard(folder)
    held = holdings_of(store)
    for usage in held.orphans():
        if usage.last_used < limit:
            try:
                freed += remove_layer(store, usage.toc_digest)
            except LayerInUse:
                continue
    freed += _remove_documents(store, held, limit)
    rests = [*unneeded_passes(store), *store.quarantine.glob("*"), *stale_pins(store)]
    rests += [*unneeded_signatures(store), *store.revocation.glob("*")]
    freed += remove_files([path for path in rests if _changed(path) < limit])
    for record in load_names(store):
        digest = parse_digest(record.manifest_digest)
        if record.manifest_digest not in held.images and not store.profile_path(digest).exists():
            remove_names(store, digest)
    return freed


def _remove_rests(store: Store) -> int:
    """Remove what was being written by a process that was killed: that is known, or long ago."""
    freed = sweep(store)
    oldest = time.time() - GRACE_SECONDS
    for path in store.tmp.iterdir():
        if _changed(path) < oldest and not path.name.startswith(PREFIX):
            if path.is_dir():
                freed += tree_size(path)
                shutil.rmtree(path, ignore_errors=True)
            else:
                freed += remove_files([path])
    return freed


@contextmanager
def eviction_lock(store: Store, seconds: float = WAIT_SECONDS) -> Iterator[bool]:
    """Hold the lock of those who evict; False if somebody else has held it for *seconds*."""
    fd = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield lock_within(fd, seconds)
    finally:
        os.close(fd)


def _empty_layers(store: Store, held: Holdings, excess: int) -> int:
    freed = 0
    for usage in held.layers.values():
        if freed >= excess:
            break
        if not usage.stays:
            try:
                freed += empty_layer(store, usage.toc_digest)
            except LayerInUse:
                continue  # somebody was faster
    return freed


def _remove_images(store: Store, held: Holdings, excess: int, oldest: float) -> int:
    """Remove images that were last used before *oldest*, and the layers that only they have."""
    freed = 0
    for name, usage in list(held.images.items()):
        if freed >= excess or usage.last_used >= oldest:
            break
        if usage.stays or name in pinned_images(store):  # by now
            continue
        store.discard(store.image_path(parse_digest(name)))
        freed += usage.allocated_size
        del held.images[name]
        for layer in usage.record.layers:
            if not held.users_of(layer.toc_digest):
                try:
                    freed += remove_layer(store, parse_digest(layer.toc_digest))
                except LayerInUse:
                    continue
    return freed + _remove_documents(store, held, oldest)


def _remove_documents(store: Store, held: Holdings, limit: float) -> int:
    """Remove the documents that no image needs and that were there before *limit*."""
    documents = unneeded_documents(store, held.records)
    return remove_files([path for path in documents if _changed(path) < limit])


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return math.inf  # gone
