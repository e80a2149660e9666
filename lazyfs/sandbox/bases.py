"""The interfaces to images: finding, mounting and identifying the containers' root filesystems.

They are implemented on the floor above, with registry, store and mounts; checkpoint code
gets ``Mounts`` and nothing that could contact a registry.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import UnsetType

from lazyfs.documents.errors import BaseDrift
from lazyfs.documents.manifest import Image
from lazyfs.oci.platforms import Platform, normalise

MOUNT_ID = "user.lazyfs.mount.id"


class Base(msgspec.Struct, frozen=True):
    """An image that is ready to be mounted: all of it by digest.

    ``image`` has the container's name and the user's own words; ``config`` is the image's config
    document.  ``mount_ref`` is what to mount: never a tag.  ``note`` is said to the user once.
    ``prepared`` spares a mount what was found out already, where whoever mounts can use it.
    """

    image: Image
    config: Mapping[str, Any]
    mount_ref: str
    note: str | None = None
    prepared: bytes | None = None


class Witness(Protocol):
    """Tells what a mount says of itself."""

    def identity(self, directory: Path) -> dict[str, str]:
        """Return the ``user.lazyfs.*`` attributes of the mount on *directory*, by full name.

        Raises BaseUnresolved where no mount of ours is; DeadMount where its server has ended.
        """
        ...


class Bases(Witness, Protocol):
    """Finds images and mounts them."""

    def resolve(
        self, wanted: Mapping[str, str], *, platform: str | None, pull: str
    ) -> dict[str, Base]:
        """Return the bases of a fresh run: container's name → reference, in; each asked once.

        *pull* is "missing", "always" or "never".  Raises TagUnresolvable, BaseUnavailable,
        BaseCorrupt, PlatformMismatch.
        """
        ...

    def obtain(
        self, images: Sequence[Image], *, embedded: Path | None, allow_partial: bool
    ) -> dict[str, Base]:
        """Return the bases of recorded images, by digest only: cache, embedded, registry, hints.

        *embedded* is an OCI image layout.  Unless *allow_partial*, every layer must be had: all of
        it here, or from a source that answers.  Raises BaseUnavailable, which lists each source
        with its answer, and BaseCorrupt.
        """
        ...

    def ready(self) -> AbstractContextManager[None]:
        """Be ready to mount at once, within the block; to be entered before there are threads."""
        ...

    def mount(self, base: Base, directory: Path) -> None:
        """Mount *base* on *directory*, which exists; return when the mount is live."""
        ...

    def give_up(self) -> None:
        """Undo mounts that are in the making, in other threads, where an error is raised then."""
        ...

    def unmount(self, directory: Path) -> None:
        """Unmount; nothing to do where nothing is mounted."""
        ...

    def profile(self, manifest_digest: str) -> bytes | None:
        """Return the recorded first accesses of an image, as ``lazyfs profile export`` does."""
        ...

    def add_profile(self, manifest_digest: str, data: bytes) -> None:
        """Keep a profile that a snapshot brought; one that is of no use is left out."""
        ...

    def drift(self, images: Sequence[Image]) -> dict[str, str]:
        """Return for each container whose tag now names another manifest that one's digest."""
        ...


class Mounts(Witness, Protocol):
    """What a checkpoint needs of mounts: none of it asks a registry."""

    def unmount(self, directory: Path) -> None:
        """Unmount; nothing to do where nothing is mounted."""
        ...

    def profile(self, manifest_digest: str) -> bytes | None:
        """Return the recorded first accesses of an image, as ``lazyfs profile export`` does."""
        ...


def platform_of(image: Image) -> Platform:
    """Return the platform of a recorded image."""
    platform = image.platform
    variant = "" if isinstance(platform.variant, UnsetType) else platform.variant
    return normalise(platform.os, platform.architecture, variant)


def check_mounted(image: Image, mounted: Image) -> None:
    """Raise BaseDrift unless *mounted*, which a live mount says it is, is the recorded *image*.

    Like with like: manifest, config, platform, and the whole list of layers.
    """
    pairs: list[tuple[str, str, str]] = [
        ("manifest", mounted.manifest_digest, image.manifest_digest),
        ("config", mounted.config_digest, image.config_digest),
        ("platform", str(platform_of(mounted)), str(platform_of(image))),
        ("number of layers", str(len(mounted.layers)), str(len(image.layers))),
    ]
    for number, (its, ours) in enumerate(zip(mounted.layers, image.layers, strict=False)):
        pairs.append((f"layer {number}", its.digest, ours.digest))
        pairs.append((f"diff id of layer {number}", its.diff_id, ours.diff_id))
    for what, got, expected in pairs:
        if got != expected:
            raise BaseDrift(
                f"container {image.name}: {what} of the mount: got {got}, expected {expected}",
                hint="the mount shows a different image from the snapshot's; nothing was started",
                details={"container": image.name, "field": what, "got": got, "expected": expected},
            )
