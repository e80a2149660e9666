"""What the store holds, how much room it takes, when it was last used, and whether it is now.

A layer is in use while anybody is its user (locks.py).  An image is in use when all of its layers
are: whoever mounts it has all of them open.  Images that sandboxes need are pinned, and so are
their layers (pins.py).  Looking changes nothing.
"""

import fcntl
import os
from pathlib import Path

import msgspec

from lazyfs.digest import Digest
from lazyfs.errors import FormatError
from lazyfs.store.content.locks import has_users
from lazyfs.store.content.presence import RESIDENT, marks_in
from lazyfs.store.images import ImageRecord, load_record
from lazyfs.store.layers import load_table
from lazyfs.store.paths import Store, digest_named
from lazyfs.store.pins import pinned_images, pinned_layers

BLOCK = 512  # unit of st_blocks, whatever the filesystem's own blocks are


class LayerUsage(msgspec.Struct, frozen=True):
    """One layer in the store: bytes on the disk, seconds since the epoch of its last use.

    ``pinned_by``: ids of the sandboxes that need it.
    """

    toc_digest: Digest
    allocated_size: int
    last_used: float
    is_in_use: bool
    pinned_by: tuple[str, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether it is in use, or a sandbox needs it."""
        return self.is_in_use or bool(self.pinned_by)


class ImageUsage(msgspec.Struct, frozen=True):
    """One image in the store; ``allocated_size`` is that of its rootfs index, without layers.

    ``pinned_by``: ids of the sandboxes that need it.
    """

    record: ImageRecord
    allocated_size: int
    last_used: float
    is_in_use: bool
    pinned_by: tuple[str, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether it is in use, or a sandbox needs it."""
        return self.is_in_use or bool(self.pinned_by)


class Holdings(msgspec.Struct, frozen=True):
    """What a store holds: images by manifest digest, layers by TOC digest, oldest use first.

    ``other_size`` is what everything else takes on the disk: documents, profiles, names, passes,
    pins, what has rotted, what is being written.
    """

    images: dict[str, ImageUsage] = msgspec.field(default_factory=dict)
    layers: dict[str, LayerUsage] = msgspec.field(default_factory=dict)
    other_size: int = 0

    @property
    def allocated_size(self) -> int:
        """Bytes that all of it takes on the disk."""
        layers = sum(usage.allocated_size for usage in self.layers.values())
        return layers + sum(each.allocated_size for each in self.images.values()) + self.other_size

    @property
    def idle_size(self) -> int:
        """The same without the layers that stay."""
        staying = (each.allocated_size for each in self.layers.values() if each.stays)
        return self.allocated_size - sum(staying)

    @property
    def records(self) -> list[ImageRecord]:
        """The records of the images."""
        return [usage.record for usage in self.images.values()]

    def users_of(self, layer: str) -> list[str]:
        """Return the manifest digests of the images that have the layer, sorted."""
        return sorted(
            name
            for name, usage in self.images.items()
            if any(each.toc_digest == layer for each in usage.record.layers)
        )

    def orphans(self) -> list[LayerUsage]:
        """Return the layers that no image has."""
        wanted = {each.toc_digest for record in self.records for each in record.layers}
        return [usage for name, usage in self.layers.items() if name not in wanted]


def holdings_of(store: Store) -> Holdings:
    """Look at all that the store holds."""
    layers = {str(usage.toc_digest): usage for usage in layers_in(store)}
    pinned = pinned_images(store)
    images = []
    for folder in store.images.iterdir():
        record = load_record(folder)
        if record is not None:
            try:
                images.append(_image_usage(folder, record, layers, pinned))
            except OSError:
                continue  # removed meanwhile
    images.sort(key=lambda usage: (usage.last_used, usage.record.manifest_digest))
    others = (
        *(store.blobs, store.profiles, store.names, store.passes, store.pins),
        *(store.quarantine, store.tmp),
    )
    return Holdings(
        {usage.record.manifest_digest: usage for usage in images},
        layers,
        sum(tree_size(folder) for folder in others),
    )


def layers_in(store: Store) -> list[LayerUsage]:
    """Return the layers of the store, least recently used first."""
    found = []
    pinned = pinned_layers(store)
    for folder in store.layers.iterdir():
        try:
            digest = digest_named(folder.name)
            pinned_by = tuple(pinned.get(str(digest), ()))
            used = _last_used(folder), is_in_use(folder)
            found.append(LayerUsage(digest, tree_size(folder), *used, pinned_by))
        except (FormatError, OSError):
            continue  # not ours, or removed meanwhile
    return sorted(found, key=lambda usage: (usage.last_used, usage.toc_digest.hex))


def images_in(store: Store) -> list[ImageRecord]:
    """Return the records of the images whose index is in the store, by manifest digest."""
    records = (load_record(folder) for folder in sorted(store.images.iterdir()))
    return [record for record in records if record is not None]


def tree_size(folder: Path) -> int:
    """Return the bytes that the files below a folder take on the disk; holes do not count."""
    size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(where, name)).st_blocks * BLOCK
            except OSError:
                continue  # renamed or removed meanwhile
    return size


def is_in_use(folder: Path) -> bool:
    """Say whether anybody uses the layer in *folder*."""
    try:
        fd = os.open(folder / "presence", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return has_users(fd)
    except OSError:  # a filesystem without the locks that can be looked at
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    finally:
        os.close(fd)


def resident_size(store: Store, toc_digest: Digest) -> tuple[int, int]:
    """Return how many bytes of a layer's content are marked as resident, and how many there are.

    Zeros where the layer has no table to say.
    """
    table = load_table(store, toc_digest)
    if table is None:
        return 0, 0
    marks = marks_in(store.layer_path(toc_digest))
    if marks.count(RESIDENT) == table.count:
        return table.payload_size, table.payload_size
    marked = (n for n, state in enumerate(marks[: table.count]) if state == RESIDENT)
    return sum(map(table.size, marked)), table.payload_size


def _image_usage(
    folder: Path,
    record: ImageRecord,
    layers: dict[str, LayerUsage],
    pinned: dict[str, list[str]],
) -> ImageUsage:
    used = [layers.get(layer.toc_digest) for layer in record.layers]
    # Its folder's time is set whenever it is opened, its layers' when it is closed; layers that it
    # shares may have been used since.
    closed = [0.0 if usage is None else usage.last_used for usage in used]
    return ImageUsage(
        record,
        tree_size(folder),
        max(folder.stat().st_mtime, min(closed, default=0.0)),
        bool(used) and all(usage is not None and usage.is_in_use for usage in used),
        tuple(pinned.get(record.manifest_digest, ())),
    )


def _last_used(folder: Path) -> float:
    """Return when a layer was last opened or closed: the presence map's modification time."""
    try:
        return (folder / "presence").stat().st_mtime
    except FileNotFoundError:
        return folder.stat().st_mtime
