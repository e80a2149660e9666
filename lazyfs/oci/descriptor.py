"""Descriptors: media type, digest and size of a blob.

Spec: OCI image-spec, descriptor.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lazyfs.digest import Digest
from lazyfs.oci.platforms import Platform


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content by digest.  ``size`` is in bytes, as the manifest states it."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str | None = None
