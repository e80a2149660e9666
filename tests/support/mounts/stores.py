"""Stores with images in them, without a registry: for what happens to images that are kept."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.digest import Digest, digest_of
from lazyfs.oci.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from lazyfs.store.blobs import save_blob
from lazyfs.store.content.content import LayerContent
from lazyfs.store.images import ImageRecord, LayerRecord, save_image
from lazyfs.store.layers import save_layer
from lazyfs.store.names import NameRecord, save_name
from lazyfs.store.paths import Store
from tests.support.formats.layers import MadeLayer
from tests.support.mounts.mounted import MadeImage, regular


@dataclass(frozen=True)
class KeptImage:
    """What ``keep_image`` has put into a store."""

    manifest: Digest
    config: Digest
    index: Digest
    layers: Sequence[MadeLayer]


def keep_layer(
    store: Store, layer: MadeLayer, *, used: float | None = None, chunks: range | None = None
) -> None:
    """Store a layer with its content, or with *chunks* of it, last used at *used*."""
    digest = layer.toc.digest
    save_layer(store, digest, b"{}", bytes(layer.table.buffer))
    content = LayerContent(store.layer_path(digest), layer.table)
    for chunk in range(layer.table.count) if chunks is None else chunks:
        start = layer.table.device_offset(chunk)
        content.write(chunk, device_of(layer)[start : start + layer.table.size(chunk)])
    content.close()
    if used is not None:
        os.utime(store.layer_path(digest) / "presence", (used, used))


def device_of(layer: MadeLayer) -> bytes:
    """Return the bytes of a layer's device."""
    return b"".join(data + bytes(-len(data) % 4096) for data in layer.files.values())


def keep_image(
    store: Store,
    *layers: MadeLayer,
    name: str | None = None,
    used: float | None = None,
    platform: str = "linux/amd64",
) -> KeptImage:
    """Store an image with its documents, in an index, and its layers; last used at *used*."""
    for layer in layers:
        keep_layer(store, layer, used=used)
    config = json.dumps({"layers": [str(layer.toc.digest) for layer in layers]}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(config, OCI_CONFIG),
            "layers": [],
            "annotations": {"name": str(name)},
        }
    ).encode()
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [_descriptor(manifest, OCI_MANIFEST)],
        }
    ).encode()
    for document in (config, manifest, index):
        save_blob(store, digest_of(document), document)
        if used is not None:
            os.utime(store.blob_path(digest_of(document)), (used, used))
    digest = digest_of(manifest)
    made = MadeImage([regular(b"file", b"content")])
    record = ImageRecord(
        manifest_digest=str(digest),
        manifest_media_type=OCI_MANIFEST,
        config_digest=str(digest_of(config)),
        platform=platform,
        layers=tuple(
            LayerRecord(
                str(layer.digest), len(layer.blob), "", str(layer.digest), str(layer.toc.digest), ""
            )
            for layer in layers
        ),
    )
    save_image(store, record, made.image, bytes(made.provenance.buffer))
    if name is not None:
        save_name(store, NameRecord(name, platform, str(digest), str(digest_of(index))))
    if used is not None:
        os.utime(store.image_path(digest), (used, used))
    return KeptImage(digest, digest_of(config), digest_of(index), layers)


def _descriptor(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest_of(data)), "size": len(data)}
