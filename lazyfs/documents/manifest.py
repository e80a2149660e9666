"""``snapshot-manifest.json``, version 1: its parts as values.

The keys of the JSON form are these names in camelCase.  What JSON Schema can say of it is in
docs/reference/snapshot-manifest.schema.json, and here with the fields; manifest_rules.py holds the
rules beyond that.
"""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

MANIFEST_NAME = "snapshot-manifest.json"
CHECKPOINT_NAME = "checkpoint.img"
VERSION = 1
KIND = "snapshot-manifest"
MANIFEST_LIMIT = 1 << 20  # bytes
# Extensions that are understood here, so that a manifest may call them critical.
KNOWN_CRITICAL: frozenset[str] = frozenset()

DIGEST = r"^sha256:[0-9a-f]{64}\Z"
# Of images and what they are made of, the digest is the publisher's; ours are all sha256.
IMAGE_DIGEST = r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z"
NAME = r"^[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9])?\Z"
TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z\Z"
SNAPSHOT_ID = r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}\Z"
RESOLVED = r"^[^@\s]+@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z"
FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z"
OBJECT_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,219}\Z"
SCOPE = r"^(full|data)\Z"
ROLE = r"^(golden|instance)\Z"
SOURCE = r"^(xattr\+record|record|inherited|assumed)\Z"
CLASS = r"^gvisor\Z"
SYSTEM = r"^(systrap|kvm|ptrace)\Z"
NETWORK = r"^(none|sandbox)\Z"
OVERLAY = r"^(none|(root|all):(memory|self|dir=/[^\x00-\x1f\x7f,:]*))\Z"
FLAG = r"^--?[A-Za-z][A-Za-z0-9_-]{0,63}(=[^\x00-\x1f\x7f]{0,1024})?\Z"
COMPRESSION = r"^(zstd|none)\Z"
KIND_PATTERN = rf"^{KIND}\Z"
MEANINGS = {
    KIND_PATTERN: f'"{KIND}"',
    DIGEST: "sha256: and 64 lower-case hex digits",
    IMAGE_DIGEST: "sha256: and 64 lower-case hex digits, or sha512: and 128",
    NAME: "1 to 63 of a-z, 0-9, '_' and '-', with no '-' at either end",
    TIME: "a time like 2026-11-20T19:45:11Z",
    SNAPSHOT_ID: "an id like 20261120T194511Z-5b1c09ef",
    RESOLVED: "REPOSITORY@sha256:…",
    FILE_NAME: "a file's name of at most 200 letters, digits, '.', '_' and '-'",
    OBJECT_NAME: "an object's name of at most 220 letters, digits, '.', '_' and '-'",
    SCOPE: '"full" or "data"',
    ROLE: '"golden" or "instance"',
    SOURCE: '"xattr+record", "record", "inherited" or "assumed"',
    CLASS: '"gvisor"',
    SYSTEM: '"systrap", "kvm" or "ptrace"',
    NETWORK: '"none" or "sandbox"',
    OVERLAY: '"root:memory", "root:self", "root:dir=/PATH", the same with "all", or "none"',
    FLAG: "an option like --directfs=false",
    COMPRESSION: '"zstd" or "none"',
}

DigestText = Annotated[str, Meta(pattern=DIGEST)]
ImageDigest = Annotated[str, Meta(pattern=IMAGE_DIGEST)]
Name = Annotated[str, Meta(pattern=NAME)]
Time = Annotated[str, Meta(pattern=TIME)]
Size = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Count = Annotated[int, Meta(ge=1)]
HINTS = 16  # of an image: each may be asked at a restore
Hint = Annotated[str, Meta(max_length=512)]


class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class Platform(_Part, frozen=True, omit_defaults=True):
    """What the image is for, in the words of OCI's image configs."""

    os: str
    architecture: str
    variant: str | UnsetType = UNSET

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant or "")))


class Layer(_Part, frozen=True):
    """A layer of an image; ``size`` of the blob in bytes."""

    digest: ImageDigest
    diff_id: ImageDigest
    media_type: str
    size: Size


class Image(_Part, frozen=True, omit_defaults=True):
    """The image of the container ``name``.

    ``original_ref`` is what the user wrote, through all generations; ``resolved_ref`` is the
    repository with the platform manifest's digest.  ``source`` tells how it is known:
    "xattr+record", "record", "inherited" or "assumed".  ``resolved_at`` is RFC 3339, UTC.
    """

    name: Name
    original_ref: Annotated[str, Meta(min_length=1, max_length=512)]
    resolved_ref: Annotated[str, Meta(pattern=RESOLVED)]
    pinned: bool
    platform: Platform
    index_digest: ImageDigest | None
    manifest_digest: ImageDigest
    manifest_media_type: str
    config_digest: ImageDigest
    layers: tuple[Layer, ...]
    resolved_at: Time
    source: Annotated[str, Meta(pattern=SOURCE)]
    embedded: bool | UnsetType = UNSET
    hints: Annotated[tuple[Hint, ...], Meta(max_length=HINTS)] | UnsetType = UNSET


class Container(_Part, frozen=True, omit_defaults=True):
    """A container of the sandbox; the root one is that which the runtime checkpoints."""

    name: Name
    spec_digest: DigestText
    root: bool | UnsetType = UNSET


class Runtime(_Part, frozen=True, omit_defaults=True):
    """The runtime that made the snapshot."""

    class_: Annotated[str, Meta(pattern=CLASS)] = msgspec.field(name="class")
    arch: str
    version: str | UnsetType = UNSET
    binary_digest: DigestText | UnsetType = UNSET
    platform: Annotated[str, Meta(pattern=SYSTEM)] | UnsetType = UNSET
    overlay: Annotated[str, Meta(pattern=OVERLAY)] | UnsetType = UNSET
    network: Annotated[str, Meta(pattern=NETWORK)] | UnsetType = UNSET
    flags: tuple[Annotated[str, Meta(pattern=FLAG)], ...] | UnsetType = UNSET
    cpu_features: tuple[str, ...] | UnsetType = UNSET
    containers: tuple[Container, ...] | UnsetType = UNSET


class File(_Part, frozen=True, omit_defaults=True):
    """A file of the checkpoint: ``name`` as the runtime calls it, ``object`` in the store.

    ``compression`` is "zstd" or "none"; sizes in bytes; ``frames`` counts zstd's.
    """

    name: Annotated[str, Meta(pattern=FILE_NAME)]
    object: Annotated[str, Meta(pattern=OBJECT_NAME)]
    compression: Annotated[str, Meta(pattern=COMPRESSION)]
    raw_size: Size
    raw_digest: DigestText
    stored_size: Size
    stored_digest: DigestText
    frames: Count | UnsetType = UNSET


class Parent(_Part, frozen=True, omit_defaults=True):
    """The snapshot that this one's sandbox was restored from."""

    id: str
    manifest_digest: DigestText
    location: str | UnsetType = UNSET


class Template(_Part, frozen=True):
    """The template of the sandbox: its name, and the digest of its canonical form."""

    name: str
    digest: DigestText


class Snapshot(_Part, frozen=True, omit_defaults=True):
    """The snapshot itself: ``scope`` "full" or "data", ``role`` "golden" or "instance"."""

    id: Annotated[str, Meta(pattern=SNAPSHOT_ID)]
    created_at: Time
    scope: Annotated[str, Meta(pattern=SCOPE)]
    role: Annotated[str, Meta(pattern=ROLE)]
    generation: Count
    parent: Parent | None
    sandbox_id: Annotated[str, Meta(min_length=1, max_length=128)]
    template: Template | UnsetType = UNSET
    rebased_from: str | UnsetType = UNSET


class Manifest(_Part, frozen=True, omit_defaults=True):
    """The whole document."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    kind: Annotated[str, Meta(pattern=KIND_PATTERN)]
    snapshot: Snapshot
    images: Annotated[tuple[Image, ...], Meta(min_length=1)]
    runtime: Runtime
    files: Annotated[tuple[File, ...], Meta(min_length=1)]
    host: dict[str, Any] | UnsetType = UNSET
    extensions: dict[str, Any] | UnsetType = UNSET
    critical: tuple[str, ...] | UnsetType = UNSET
