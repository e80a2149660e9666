"""Where cosign keeps signatures, in both of its forms, and what of them is a candidate.

Old: the manifest under the tag ``sha256-HEX.sig``; each of its layers is a payload, with the
signature in the layer's annotations.  New: a referrer of the image whose one layer is a bundle.

Spec: cosign, SIGNATURE_SPEC.md, "Tag-based discovery"; BUNDLE_SPEC.md.  Candidates are what
others wrote: nothing in them is believed.
"""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from lazyfs.digest import Digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest
from lazyfs.trust.errors import Malformed
from lazyfs.trust.sigstore.bundle import BUNDLE_LIMIT, BUNDLE_TYPE
from lazyfs.trust.sigstore.payload import PAYLOAD_LIMIT

PAYLOAD_MEDIA_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"

# Annotations of a layer in the old form.
SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
CHAIN = "dev.sigstore.cosign/chain"
ENTRY = "dev.sigstore.cosign/bundle"  # of a transparency log; not a bundle of the new form


class Attachment(msgspec.Struct, frozen=True):
    """A signature in the old form: the payload's bytes, and the annotations of its layer.

    ``digest`` is the payload's; several signatures may be over equal payloads.
    """

    digest: Digest
    payload: bytes
    annotations: Mapping[str, str]


class Bundled(msgspec.Struct, frozen=True):
    """A signature in the new form: the bytes of a bundle; ``digest`` is its referrer's."""

    digest: Digest
    data: bytes


Candidate: TypeAlias = Attachment | Bundled


def attachment_tag(digest: Digest) -> str:
    """Return the tag under which the old form keeps the signatures of a manifest."""
    return f"{digest.algorithm}-{digest.hex}.sig"


def payload_layers(manifest: Manifest) -> list[Descriptor]:
    """Return the layers of a ``.sig`` manifest that are payloads of a possible size."""
    return [
        layer
        for layer in manifest.layers
        if layer.media_type == PAYLOAD_MEDIA_TYPE and layer.size <= PAYLOAD_LIMIT
    ]


def bundle_layer(manifest: Manifest, digest: Digest) -> Descriptor | None:
    """Return the layer of a referrer that is a bundle about *digest*; None: it is no bundle.

    Raises Malformed for a referrer that calls itself a bundle and has not one bundle in it.
    """
    if (manifest.artifact_type or manifest.config.media_type) != BUNDLE_TYPE:
        return None
    if manifest.subject is None or manifest.subject.digest != digest:
        raise Malformed("the bundle's manifest does not refer to this image")
    if len(manifest.layers) != 1 or manifest.layers[0].media_type != BUNDLE_TYPE:
        raise Malformed("the bundle's manifest has not one bundle as its only layer")
    if manifest.layers[0].size > BUNDLE_LIMIT:
        raise Malformed(f"the bundle is longer than {BUNDLE_LIMIT} bytes")
    return manifest.layers[0]
