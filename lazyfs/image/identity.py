"""What a mount says of itself: the ``user.lazyfs.*`` attributes of its root.

Those that hold for every mount of an image are written into its rootfs index; those of one mount
are added by the server.  Contract: docs/reference/xattrs.md.
"""

import json
from collections.abc import Callable, Mapping

from lazyfs.digest import digest_of
from lazyfs.store.images import ImageRecord
from lazyfs.trust.options import TrustRecord

PREFIX = b"user.lazyfs."
SCHEMA = b"1"
VALUE_LIMIT = 65535  # what EROFS can express; the kernel's XATTR_SIZE_MAX is one more


def layers_value(record: ImageRecord) -> bytes:
    """Return the JSON list of an image's layers, bottom first."""
    layers = [
        {
            "digest": layer.digest,
            "diffId": layer.diff_id,
            "mediaType": layer.media_type,
            "size": layer.size,
            "tocDigest": layer.toc_digest,
        }
        for layer in record.layers
    ]
    return json.dumps(layers, separators=(",", ":")).encode()


def image_attributes(record: ImageRecord) -> dict[bytes, bytes]:
    """Return the attributes that every mount of an image has."""
    attributes = {
        b"schema": SCHEMA,
        b"manifest.digest": record.manifest_digest.encode(),
        b"manifest.mediatype": record.manifest_media_type.encode(),
        b"config.digest": record.config_digest.encode(),
        b"platform": record.platform.encode(),
    }
    layers = layers_value(record)
    if len(layers) <= VALUE_LIMIT:
        attributes[b"layers"] = layers
    else:
        attributes[b"layers.digest"] = str(digest_of(layers)).encode()
    return {PREFIX + name: value for name, value in attributes.items()}


def mount_attributes(
    *,
    requested: str,
    resolved: str,
    index_digest: str | None,
    resolved_at: str,
    mount_id: str,
    source: str,
    verify: str,
    health: Callable[[], str],
    trust: TrustRecord | None = None,
) -> Mapping[bytes, bytes | Callable[[], bytes]]:
    """Return the attributes of one mount; ``health`` is asked at each read."""
    attributes: dict[bytes, bytes | Callable[[], bytes]] = {
        b"ref.requested": requested.encode(),
        b"ref.resolved": resolved.encode(),
        b"resolved-at": resolved_at.encode(),
        b"mount.id": mount_id.encode(),
        b"source": source.encode(),
        b"verify": verify.encode(),
        b"health": lambda: health().encode(),
    }
    if index_digest is not None:
        attributes[b"index.digest"] = index_digest.encode()
    if trust is not None:
        attributes |= trust_attributes(trust)
    return {PREFIX + name: value for name, value in attributes.items()}


def trust_attributes(trust: TrustRecord) -> dict[bytes, bytes]:
    """Return what a mount says of the verdict on its image, without the prefix."""
    values = {
        b"trust": trust.verdict,
        b"trust.policy": trust.policy,
        b"trust.level": trust.level,
        b"trust.signer": trust.signer,
        b"trust.signature": trust.signature,
        b"trust.signed-at": trust.signed_at,
        b"trust.judged-at": trust.judged_at,
    }
    return {name: value.encode() for name, value in values.items() if value is not None}
