"""Manifests and indexes: the JSON documents of the OCI image-spec and of Docker's schema 2.

A document says what it is; what the transport called it must agree, and what is read from it
belongs to that type only, so that the same bytes never mean two images (CVE-2021-41190).
"""

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from lazyfs.digest import BadDigest, parse_digest
from lazyfs.errors import FormatError
from lazyfs.json_keys import Names, check_keys
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.platforms import DEFAULT_OS, Platform, normalise

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"  # and what follows the 1

LAYER_TAR_RE = re.compile(
    r"application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1"
    r"|docker\.image\.rootfs\.(foreign\.)?diff)\.tar([+.](gzip|zstd))?"
)

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
DOCUMENT_TYPES = MANIFEST_TYPES + INDEX_TYPES

# Registries accept no more either.
DOCUMENT_LIMIT = 4 << 20
LAYER_LIMIT = 1024
INDEX_LIMIT = 1024


_DESCRIPTOR_KEYS: Names = {
    **dict.fromkeys(("mediaType", "digest", "size", "urls", "annotations", "data")),
    "artifactType": None,
    "platform": dict.fromkeys(("architecture", "os", "os.version", "os.features", "variant")),
}
DOCUMENT_KEYS: Names = {
    **dict.fromkeys(("schemaVersion", "mediaType", "artifactType", "annotations")),
    **dict.fromkeys(("config", "layers", "manifests", "subject"), _DESCRIPTOR_KEYS),
}
"""What manifests and indexes say; annotations are maps, whose names are anybody's."""


class BadManifest(FormatError):
    """Bytes that are no manifest or index that lazyfs understands."""

    code = "E_BAD_MANIFEST"


class Manifest(msgspec.Struct, frozen=True):
    """One image: its config and its layers, bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    subject: Descriptor | None = None
    artifact_type: str | None = None


class Index(msgspec.Struct, frozen=True):
    """Manifests of one image for several platforms, in the publisher's order of preference."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)


class _Platform(msgspec.Struct):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    os_features: list[str] | None = msgspec.field(name="os.features", default=None)


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None
    artifact_type: str | None = None


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int
    media_type: str | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | msgspec.UnsetType | None = msgspec.UNSET
    manifests: list[_Descriptor] | msgspec.UnsetType | None = msgspec.UNSET
    annotations: dict[str, str] | None = None
    subject: _Descriptor | None = None
    artifact_type: str | None = None


class _Version(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""


def decode_manifest(data: bytes, media_type: str | None) -> Manifest | Index:
    """Return the manifest or index in *data*, or raise BadManifest.

    *media_type* is what the transport or the parent's descriptor called it, None if nothing did.
    """
    if len(data) > DOCUMENT_LIMIT:
        raise BadManifest(f"manifest: got {len(data)} bytes, expected at most {DOCUMENT_LIMIT}")
    try:
        _refuse_schema1(data, media_type)
        document = msgspec.json.decode(data, type=_Document)
        check_keys(data, DOCUMENT_KEYS)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise BadManifest(f"manifest: {data[:60]!r}… is not a valid manifest: {exc}") from exc
    if document.schema_version != 2:
        raise BadManifest(f"manifest: got schemaVersion {document.schema_version}, expected 2")
    actual = _type_of(document, media_type)
    annotations = document.annotations or {}
    if actual in INDEX_TYPES:
        return Index(
            actual, _descriptors(document.manifests, "manifests", INDEX_LIMIT), annotations
        )
    if document.config is None:
        raise BadManifest("manifest: it has no config")
    return Manifest(
        actual,
        _descriptor(document.config, "config"),
        _descriptors(document.layers, "layers", LAYER_LIMIT),
        annotations,
        None if document.subject is None else _descriptor(document.subject, "subject"),
        document.artifact_type,
    )


def base_media_type(text: str) -> str:
    """Return a media type without its parameters, in lower case."""
    return text.partition(";")[0].strip().lower()


def is_layer_gzip(media_type: str) -> bool:
    """Say whether layers of this type are compressed with gzip, as eStargz layers are."""
    return base_media_type(media_type).endswith(("tar+gzip", "tar.gzip"))


def is_layer_zstd(media_type: str) -> bool:
    """Say whether layers of this type are compressed with zstd."""
    return base_media_type(media_type).endswith(("tar+zstd", "tar.zstd"))


def is_layer_tar(media_type: str) -> bool:
    """Say whether layers of this type are known to be tars, compressed or not.

    These are the types that containerd unpacks (``images.DiffCompression``) and skopeo copies,
    with either spelling of a compression: the bytes say which one it is.  A descriptor without a
    type says nothing, and OCI's descriptor.md requires one.
    """
    return LAYER_TAR_RE.fullmatch(base_media_type(media_type)) is not None


def is_layer_encrypted(media_type: str) -> bool:
    """Say whether layers of this type are encrypted: ocicrypt, "Media types"."""
    return base_media_type(media_type).endswith("+encrypted")


def _refuse_schema1(data: bytes, media_type: str | None) -> None:
    version = msgspec.json.decode(data, type=_Version)
    called = (media_type or "", version.media_type)
    if version.schema_version == 1 or any(name.startswith(DOCKER_SCHEMA1) for name in called):
        raise BadManifest(
            "manifest: Docker schema 1 is not supported, since it cannot be verified",
            hint="push the image again with a current tool",
        )


def _type_of(document: _Document, media_type: str | None) -> str:
    """Return what the document is, by its own word, the transport's, or its fields."""
    is_index = document.manifests is not msgspec.UNSET
    is_manifest = document.layers is not msgspec.UNSET or document.config is not None
    if is_index and is_manifest:
        raise BadManifest("manifest: it has both layers and manifests")
    called = base_media_type(media_type or "")
    own = document.media_type
    if own and called in DOCUMENT_TYPES and own != called:
        raise BadManifest(f"manifest: got mediaType {own!r}, expected {called!r} as served")
    actual = own or (called if called in DOCUMENT_TYPES else "")
    if not actual:
        actual = OCI_INDEX if is_index else OCI_MANIFEST
    if actual not in DOCUMENT_TYPES:
        raise BadManifest(
            f"manifest: mediaType {actual[:100]!r} is not that of an OCI or Docker image or index"
        )
    if (actual in INDEX_TYPES and not is_index) or (actual in MANIFEST_TYPES and not is_manifest):
        expected = "manifests" if actual in INDEX_TYPES else "config and layers"
        raise BadManifest(f"manifest: a {actual} without {expected}")
    return actual


def _descriptors(
    raw: list[_Descriptor] | msgspec.UnsetType | None, name: str, limit: int
) -> tuple[Descriptor, ...]:
    if raw is msgspec.UNSET or raw is None:  # Go spells an empty list null
        return ()
    if len(raw) > limit:
        raise BadManifest(f"manifest: got {len(raw)} {name}, expected at most {limit}")
    return tuple(_descriptor(each, f"{name}[{number}]") for number, each in enumerate(raw))


def _descriptor(raw: _Descriptor, name: str) -> Descriptor:
    try:
        digest = parse_digest(raw.digest)
    except BadDigest as exc:
        raise BadManifest(f"manifest: {name}: {exc}") from exc
    platform: Platform | None = None
    features: tuple[str, ...] = ()
    if raw.platform is not None:
        given = raw.platform
        if given.os or given.architecture:  # an empty object says nothing
            system = given.os or DEFAULT_OS  # as containerd takes it on Linux
            platform = normalise(system, given.architecture or "", given.variant or "")
        features = tuple(given.os_features or ())
    return Descriptor(
        raw.media_type,
        digest,
        raw.size,
        raw.annotations or {},
        platform,
        raw.artifact_type,
        features,
    )
