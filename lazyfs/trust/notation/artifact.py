"""The artifact that carries a signature: a manifest with one layer, the envelope.

Spec: Notary Project, signature-specification.md, "Storage"; OCI image-spec, manifest.md.  Both
forms are read: ``artifactType``, and the older one with the type of the config, which notation
1.3.2 still writes.  The entry in a list of referrers is not asked: registries differ in what they
put there.
"""

from typing import Any

import msgspec

from lazyfs.digest import BadDigest, Digest, digest_of, parse_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.trust.errors import Malformed
from lazyfs.trust.notation.cose import MEDIA_TYPE as COSE
from lazyfs.trust.notation.cose import parse_cose
from lazyfs.trust.notation.envelope import ENVELOPE_LIMIT, Envelope
from lazyfs.trust.notation.jws import MEDIA_TYPE as JWS
from lazyfs.trust.notation.jws import parse_jws
from lazyfs.trust.strict_json import parse_object

ARTIFACT_TYPE = "application/vnd.cncf.notary.signature"
MANIFEST_LIMIT = 4 << 20  # bytes
PARSERS = {JWS: parse_jws, COSE: parse_cose}


class Candidate(msgspec.Struct, frozen=True):
    """A signature of the image, perhaps: its manifest's digest and bytes, the envelope's bytes."""

    digest: Digest
    manifest: bytes
    envelope: bytes


def wanted_envelope(candidate: Digest, manifest: bytes, subject: Digest) -> Descriptor | None:
    """Return the blob that holds the envelope of the signature in *manifest*.

    None if the manifest is no Notation signature of *subject*, and so no candidate at all.  Raises
    Malformed for one that is broken: it may be anybody's, and others are tried.
    """
    if digest_of(manifest, candidate.algorithm) != candidate:
        raise Malformed("the signature's manifest does not have its digest")
    document = parse_object(manifest, "the signature's manifest", MANIFEST_LIMIT)
    config = document.get("config")
    inner = config.get("mediaType") if isinstance(config, dict) else None
    kind = document.get("artifactType") or inner
    if kind != ARTIFACT_TYPE or _digest(document.get("subject")) != str(subject):
        return None
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) != 1:
        raise Malformed("the signature's manifest does not have one layer")
    layer = layers[0]
    media_type = layer.get("mediaType") if isinstance(layer, dict) else None
    if not isinstance(media_type, str) or media_type not in PARSERS:
        raise Malformed("the signature's envelope is of an unknown type")
    size = layer.get("size")
    if type(size) is not int or not 0 <= size <= ENVELOPE_LIMIT:
        raise Malformed(f"the signature's envelope is not of 0 to {ENVELOPE_LIMIT} bytes")
    try:
        return Descriptor(media_type, parse_digest(_digest(layer)), size)
    except BadDigest as exc:
        raise Malformed("the signature's envelope has no valid digest") from exc


def read_envelope(wanted: Descriptor, data: bytes) -> Envelope:
    """Return the envelope in *data*, nothing of it verified.  Raises Malformed."""
    if len(data) != wanted.size or digest_of(data, wanted.digest.algorithm) != wanted.digest:
        raise Malformed("the envelope does not have the size or digest that its manifest states")
    return PARSERS[wanted.media_type](data)


def _digest(found: Any) -> str:
    digest = found.get("digest") if isinstance(found, dict) else None
    return digest if isinstance(digest, str) else ""
