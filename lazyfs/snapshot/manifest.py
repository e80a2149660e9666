"""``snapshot-manifest.json``, version 1: its parts as values.

The keys of the JSON form are these names in camelCase.  What JSON Schema can say of it is in
docs/reference/snapshot-manifest.schema.json; ``check`` holds the rules beyond that.
"""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

VERSION = 1
KIND = "snapshot-manifest"
MANIFEST_NAME = "snapshot-manifest.json"
MANIFEST_LIMIT = 1 << 20  # bytes


class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class Platform(_Part, frozen=True, omit_defaults=True):
    """What the image is for, in the words of OCI's image configs."""

    os: str
    architecture: str
    variant: str | UnsetType = UNSET


class Layer(_Part, frozen=True):
    """A layer of an image; ``size`` of the blob in bytes."""

    digest: str
    diff_id: str
    media_type: str
    size: int


class Image(_Part, frozen=True, omit_defaults=True):
    """The image of the container ``name``.

    ``original_ref`` is what the user wrote, through all generations; ``resolved_ref`` is the
    repository with the platform manifest's digest.  ``source`` tells how it is known:
    "xattr+record", "record", "inherited" or "assumed".  ``resolved_at`` is RFC 3339, UTC.
    """

    name: str
    original_ref: str
    resolved_ref: str
    pinned: bool
    platform: Platform
    index_digest: str | None
    manifest_digest: str
    manifest_media_type: str
    config_digest: str
    layers: tuple[Layer, ...]
    resolved_at: str
    source: str
    embedded: bool | UnsetType = UNSET
    hints: tuple[str, ...] | UnsetType = UNSET


class Container(_Part, frozen=True, omit_defaults=True):
    """A container of the sandbox; the root one is that which the runtime checkpoints."""

    name: str
    spec_digest: str
    root: bool | UnsetType = UNSET


class Runtime(_Part, frozen=True, omit_defaults=True):
    """The runtime that made the snapshot."""

    class_: str = msgspec.field(name="class")
    arch: str
    version: str | UnsetType = UNSET
    binary_digest: str | UnsetType = UNSET
    platform: str | UnsetType = UNSET
    overlay: str | UnsetType = UNSET
    network: str | UnsetType = UNSET
    flags: tuple[str, ...] | UnsetType = UNSET
    cpu_features: tuple[str, ...] | UnsetType = UNSET
    containers: tuple[Container, ...] | UnsetType = UNSET


class File(_Part, frozen=True, omit_defaults=True):
    """A file of the checkpoint: ``name`` as the runtime calls it, ``object`` in the store.

    ``compression`` is "zstd" or "none"; sizes in bytes; ``frames`` counts zstd's.
    """

    name: str
    object: str
    compression: str
    raw_size: int
    raw_digest: str
    stored_size: int
    stored_digest: str
    frames: int | UnsetType = UNSET


class Parent(_Part, frozen=True, omit_defaults=True):
    """The snapshot that this one's sandbox was restored from."""

    id: str
    manifest_digest: str
    location: str | UnsetType = UNSET


class Template(_Part, frozen=True):
    """The template of the sandbox: its name, and the digest of its canonical form."""

    name: str
    digest: str


class Snapshot(_Part, frozen=True, omit_defaults=True):
    """The snapshot itself: ``scope`` "full" or "data", ``role`` "golden" or "instance"."""

    id: str
    created_at: str
    scope: str
    role: str
    generation: int
    parent: Parent | None
    sandbox_id: str
    template: Template | UnsetType = UNSET
    rebased_from: str | UnsetType = UNSET


class Manifest(_Part, frozen=True, omit_defaults=True):
    """The whole document."""

    version: int
    kind: str
    snapshot: Snapshot
    images: tuple[Image, ...]
    runtime: Runtime
    files: tuple[File, ...]
    host: dict[str, Any] | UnsetType = UNSET
    extensions: dict[str, Any] | UnsetType = UNSET
    critical: tuple[str, ...] | UnsetType = UNSET
