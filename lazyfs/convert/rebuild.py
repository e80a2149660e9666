"""Build the config and the manifest of a converted image from those of its source.

Only what the conversion changes is changed: diffIDs, layers, media types, and the times of
creation if they are asked for.  All other fields stay, known to us or not.
Spec: OCI image-spec, config.md and manifest.md.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from lazyfs.digest import Digest
from lazyfs.formats.tocs.claims import claims_of
from lazyfs.oci.config import ImageConfig
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import DOCKER_CONFIG, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Manifest
from lazyfs.registry.source import Document

# Of a manifest, what is known; the rest stays as it is.
FIELDS = (
    *("schemaVersion", "mediaType", "artifactType", "config"),
    *("layers", "subject", "annotations"),
)
CREATED_ANNOTATION = "org.opencontainers.image.created"


class ConvertedLayer(msgspec.Struct, frozen=True):
    """A layer before and after; ``is_copied`` if it needed no conversion."""

    source: Descriptor
    result: Descriptor
    diff_id: Digest
    is_copied: bool

    @property
    def toc_digest(self) -> Digest | None:
        """The digest that vouches for the layer's table of contents."""
        return claims_of(self.result.annotations).key


def config_type_of(manifest: Manifest) -> str:
    """Return the media type of the new config: Docker's has the same fields as OCI's."""
    media_type = manifest.config.media_type
    return OCI_CONFIG if media_type == DOCKER_CONFIG else media_type


def build_config(
    data: bytes, config: ImageConfig, layers: Sequence[ConvertedLayer], created: int | None
) -> bytes:
    """Return the config with the layers' new diffIDs; the same bytes if there is no change."""
    diff_ids = tuple(layer.diff_id for layer in layers)
    if diff_ids == config.diff_ids and created is None:
        return data
    raw = dict(config.raw)
    raw["rootfs"] = {**raw["rootfs"], "diff_ids": [str(diff_id) for diff_id in diff_ids]}
    if created is not None:
        raw["created"] = _timestamp(created)
        if isinstance(raw.get("history"), list):
            raw["history"] = [
                {**step, "created": raw["created"]}
                for step in raw["history"]
                if isinstance(step, dict)
            ]
    return _json(raw)


def build_manifest(
    document: Document,
    manifest: Manifest,
    config: Descriptor,
    layers: Sequence[ConvertedLayer],
    created: int | None,
) -> bytes:
    """Return the OCI manifest; the source's own bytes if they say the same."""
    is_same = config.digest == manifest.config.digest and all(each.is_copied for each in layers)
    if is_same and manifest.media_type == OCI_MANIFEST:
        return document.data
    annotations = dict(manifest.annotations)
    if created is not None and CREATED_ANNOTATION in annotations:
        annotations[CREATED_ANNOTATION] = _timestamp(created)
    built: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    if manifest.artifact_type:
        built["artifactType"] = manifest.artifact_type
    built["config"] = config.document()
    built["layers"] = [layer.result.document() for layer in layers]
    if manifest.subject is not None:
        built["subject"] = manifest.subject.document()
    if annotations:
        built["annotations"] = annotations
    others = {key: value for key, value in json.loads(document.data).items() if key not in FIELDS}
    return _json(built | others)


def write_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Return a new OCI manifest."""
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.document(),
            "layers": [layer.document() for layer in layers],
        }
    )


def build_index(data: bytes, converted: Mapping[int, tuple[Digest, int, str]]) -> bytes:
    """Return the index in *data* as an OCI one, with what *converted* says of manifests.

    They are named by their places; all that is said of them, and of others, stays.
    """
    raw = json.loads(data)
    raw["mediaType"] = OCI_INDEX
    for place, (digest, size, media_type) in converted.items():
        raw["manifests"][place] |= {
            "mediaType": media_type,
            "digest": str(digest),
            "size": size,
        }
    return _json(raw)


def _timestamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
