"""Descriptors: media type, digest and size of a blob.

Spec: OCI image-spec, descriptor.md.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from lazyfs.digest import Digest
from lazyfs.oci.platforms import Platform


class Descriptor(msgspec.Struct, frozen=True):
    """A pointer to content by digest.  ``size`` is in bytes, as the manifest states it.

    ``os_features`` are what an index says that the platform must have for this entry.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str | None = None
    os_features: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return what a manifest of ours says of it; a platform is said in indexes only."""
        described: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.annotations:
            described["annotations"] = dict(self.annotations)
        return described
