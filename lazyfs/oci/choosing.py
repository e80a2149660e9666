"""Which entries of an index may be the image for a platform, best first.

Spec: OCI image-spec, image-index.md, "platform": "the first matching entry", where an entry's
``os.features`` are features that it demands.  Entries without a platform, and indexes in an index,
are taken as containerd and skopeo take them: after those that say that they match.
"""

from collections.abc import Sequence

from lazyfs.errors import NotFound
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import (
    DOCKER_CONFIG,
    DOCUMENT_TYPES,
    INDEX_TYPES,
    OCI_CONFIG,
    Manifest,
    base_media_type,
)
from lazyfs.oci.platforms import UNKNOWN, NoPlatform, Platform, candidates, normalise

REFERENCE_TYPE = "vnd.docker.reference.type"
"""Annotation of what BuildKit lists beside the images, such as attestations."""

CONFIG_TYPES = frozenset((OCI_CONFIG, DOCKER_CONFIG))

FEATURES = frozenset[str]()
"""The ``os.features`` that an entry may demand.  None is defined that lazyfs serves by itself."""


def rank(entries: Sequence[Descriptor], wanted: Platform) -> list[Descriptor]:
    """Return the entries to try for *wanted*, best first; those that cannot be it are left out.

    Entries for what *wanted* runs come first, the closest platform before others and the
    publisher's order among equals; then those that name no platform, manifests before indexes.
    """
    possible = [entry for entry in entries if is_image(entry) and has_features(entry)]
    ranked = []
    for platform in candidates(normalise(wanted.os, wanted.architecture, wanted.variant)):
        ranked += [entry for entry in possible if entry.platform == platform]
    silent = [entry for entry in possible if entry.platform is None]
    return ranked + sorted(silent, key=is_index)


def is_image(entry: Descriptor) -> bool:
    """Say whether an entry may be an image or an index, and no attestation or artifact."""
    if base_media_type(entry.media_type) not in DOCUMENT_TYPES:
        return not entry.media_type  # an old producer's; the document says what it is
    if is_artifact_type(entry.artifact_type) or REFERENCE_TYPE in entry.annotations:
        return False
    return entry.platform is None or UNKNOWN not in (entry.platform.os, entry.platform.architecture)


def is_image_manifest(manifest: Manifest) -> bool:
    """Say whether a manifest is an image's by all that it says, and no artifact's."""
    is_attached = is_artifact_type(manifest.artifact_type) or manifest.subject is not None
    return manifest.config.media_type in CONFIG_TYPES and not is_attached


def is_artifact_type(text: str | None) -> bool:
    """Say whether an ``artifactType`` is one of something that is no image.

    Of an image's descriptor it may be the media type of its config (descriptor.md).
    """
    return bool(text) and text not in CONFIG_TYPES


def is_index(entry: Descriptor) -> bool:
    """Say whether an entry is called an index."""
    return base_media_type(entry.media_type) in INDEX_TYPES


def no_platform(entries: Sequence[Descriptor], wanted: Platform) -> NotFound:
    """Return the error where none of *entries* is for *wanted*: what there is, and what to do."""
    images = [entry for entry in entries if is_image(entry)]
    offered = sorted({_spell(entry) for entry in images if entry.platform is not None})
    if not offered:
        return NoPlatform("the index lists no image")
    return NoPlatform(
        f"no image for {wanted}; the index has {', '.join(offered)}",
        hint="choose one of these with --platform",
    )


def has_features(entry: Descriptor) -> bool:
    """Say whether lazyfs has what an entry demands."""
    return FEATURES.issuperset(entry.os_features)


def _spell(entry: Descriptor) -> str:
    demands = f" (needs {', '.join(entry.os_features)})" if entry.os_features else ""
    return f"{entry.platform}{demands}"
