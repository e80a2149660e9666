"""What the store holds and what uses it; removing and emptying what nothing uses.

A layer is in use while anybody holds the shared lock on its presence map (content.py, rule 3).
Whoever has the exclusive one may change anything below the layer's folder.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError, StoreError
from lazyfs.store.content import HEADER_SIZE
from lazyfs.store.images import ImageRecord, load_record
from lazyfs.store.paths import Store, store_error

BLOCK = 512  # unit of st_blocks, whatever the filesystem's own blocks are


class LayerInUse(StoreError):
    """A live mount, or a command that runs, uses the layer."""


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """One layer in the store: bytes on the disk, seconds since the epoch of its last use."""

    toc_digest: Digest
    allocated_size: int
    last_used: float
    is_in_use: bool


def layers_in(store: Store) -> list[LayerUsage]:
    """Return the layers of the store, least recently used first."""
    found = []
    for folder in store.layers.iterdir():
        try:
            digest = parse_digest(f"sha256:{folder.name}")
            found.append(
                LayerUsage(digest, allocated_size(folder), _last_used(folder), is_in_use(folder))
            )
        except (FormatError, OSError):
            continue  # not ours, or removed meanwhile
    return sorted(found, key=lambda usage: (usage.last_used, usage.toc_digest.hex))


def images_in(store: Store) -> list[ImageRecord]:
    """Return the records of the images whose index is in the store, by manifest digest."""
    records = (load_record(folder) for folder in sorted(store.images.iterdir()))
    return [record for record in records if record is not None]


def allocated_size(folder: Path) -> int:
    """Return the bytes that the files of a folder occupy on the disk; holes do not count."""
    with os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_blocks * BLOCK for entry in entries)


def is_in_use(folder: Path) -> bool:
    """Say whether anybody has the layer open."""
    try:
        with _alone(folder):
            return False
    except LayerInUse:
        return True
    except FileNotFoundError:
        return False


def remove_layer(store: Store, toc_digest: Digest) -> None:
    """Remove a layer and all of its content; raises LayerInUse."""
    folder = store.layer_path(toc_digest)
    try:
        with _alone(folder):
            shutil.rmtree(folder)
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)  # it never had a presence map
    except OSError as exc:
        raise store_error(folder, exc) from exc


def empty_layer(store: Store, toc_digest: Digest) -> int:
    """Give the disk back what a layer's content occupies; return how many bytes that were.

    Its TOC and table stay: a mount is as fast as before, and fetches contents again.
    """
    folder = store.layer_path(toc_digest)
    before = allocated_size(folder)
    try:
        with _alone(folder) as presence:
            # Marks first: a crash in between must not leave a mark without its bytes.
            size = os.fstat(presence).st_size
            if size > HEADER_SIZE:
                os.pwrite(presence, bytes(size - HEADER_SIZE), HEADER_SIZE)
                os.fdatasync(presence)
            content = folder / "content"
            device_size = content.stat().st_size
            os.truncate(content, 0)
            os.truncate(content, device_size)
    except FileNotFoundError:
        return 0
    except OSError as exc:
        raise store_error(folder, exc) from exc
    return before - allocated_size(folder)


def remove_image(store: Store, manifest_digest: Digest) -> None:
    """Remove an image's index, manifest and profile; mounts keep what they have mapped.

    Its layers stay, since other images may share them; ``orphans`` finds those that none does.
    """
    shutil.rmtree(store.image_path(manifest_digest), ignore_errors=True)
    store.blob_path(manifest_digest).unlink(missing_ok=True)
    store.profile_path(manifest_digest).unlink(missing_ok=True)


def orphans(store: Store) -> list[Digest]:
    """Return the layers that no image in the store refers to."""
    wanted = {layer.toc_digest for record in images_in(store) for layer in record.layers}
    return [usage.toc_digest for usage in layers_in(store) if str(usage.toc_digest) not in wanted]


def evict(store: Store, budget: int) -> int:
    """Empty the least recently used layers until the layers occupy at most *budget* bytes.

    What is in use is never touched, so the budget may be exceeded while it is.  Returns how many
    bytes were given back.
    """
    usages = layers_in(store)
    excess = sum(usage.allocated_size for usage in usages) - budget
    freed = 0
    for usage in usages:
        if freed >= excess:
            break
        if usage.is_in_use:
            continue
        try:
            freed += empty_layer(store, usage.toc_digest)
        except LayerInUse:
            continue  # somebody was faster
    return freed


def _last_used(folder: Path) -> float:
    """Return when a layer was last opened or closed: the presence map's modification time."""
    try:
        return (folder / "presence").stat().st_mtime
    except FileNotFoundError:
        return folder.stat().st_mtime


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the exclusive lock of a layer; raises LayerInUse, FileNotFoundError."""
    fd = os.open(folder / "presence", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise LayerInUse(
                f"layer {folder.name}: got a live user, expected none",
                hint="`lazyfs status` shows what is mounted",
            ) from exc
        yield fd
    finally:
        os.close(fd)
