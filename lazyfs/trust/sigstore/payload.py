"""Simple signing payloads: what cosign signs in the form that is kept under ``sha256-HEX.sig``.

    {"critical": {"identity": {"docker-reference": "registry.example/app"},
                  "image": {"docker-manifest-digest": "sha256:…"},
                  "type": "cosign container image signature"},
     "optional": {"env": "prod"}}

Spec: cosign, SIGNATURE_SPEC.md, "Payload"; containers-signature(5), "JSON data format".  As in
containers/image, nothing may be missing or unknown outside ``optional``.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from lazyfs.digest import BadDigest, Digest, parse_digest
from lazyfs.trust.errors import Malformed
from lazyfs.trust.sigstore.encoding import members, quote, text
from lazyfs.trust.strict_json import parse_object

PAYLOAD_TYPE = "cosign container image signature"
PAYLOAD_LIMIT = 1 << 20  # bytes


class Payload(msgspec.Struct, frozen=True):
    """What was signed: a manifest's digest, under which name, and what the signer added."""

    digest: Digest
    name: str
    annotations: Mapping[str, Any]


def parse_payload(data: bytes) -> Payload:
    """Return the payload in *data*.  Raises Malformed."""
    document = members(
        parse_object(data, "the payload", PAYLOAD_LIMIT),
        "the payload",
        ("critical", "optional"),
    )
    critical = members(
        document["critical"], "the payload's critical", ("identity", "image", "type")
    )
    image = members(critical["image"], "the payload's image", ("docker-manifest-digest",))
    identity = members(critical["identity"], "the payload's identity", ("docker-reference",))
    kind = text(critical["type"], "the payload's type")
    if kind != PAYLOAD_TYPE:
        raise Malformed(f"the payload's type is {quote(kind)}, not {PAYLOAD_TYPE!r}")
    try:
        digest = parse_digest(text(image["docker-manifest-digest"], "the payload's digest"))
    except BadDigest as exc:
        raise Malformed(f"the payload: {exc}") from None
    annotations = document["optional"]
    if annotations is None:  # Go spells an empty map null
        annotations = {}
    return Payload(
        digest,
        text(identity["docker-reference"], "the payload's docker-reference"),
        members(annotations, "the payload's optional", (), None),
    )
