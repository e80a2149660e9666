"""Sigstore bundles, the form that cosign 3 writes: a DSSE envelope and what verifies it.

Spec: sigstore_bundle.proto (version 0.3) as JSON; DSSE protocol.md; in-toto Statement v1; cosign,
BUNDLE_SPEC.md.  The signed statement names the manifest by its digest, and no repository:

    {"_type": "https://in-toto.io/Statement/v1", "predicate": {},
     "predicateType": "https://sigstore.dev/cosign/sign/v1",
     "subject": [{"digest": {"sha256": "…"}, "annotations": {"env": "prod"}}]}

Attestations travel in the same bundles, signed with the same keys.  Only the predicate's type in
the signed statement tells them apart; annotations of the manifest around it are not signed.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from lazyfs.digest import HEX_LENGTH, HEX_RE, Digest
from lazyfs.trust.errors import Malformed
from lazyfs.trust.sigstore.encoding import from_base64, members, quote, text
from lazyfs.trust.strict_json import parse_object

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_MEDIA_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE_PREDICATE = "https://sigstore.dev/cosign/sign/v1"

BUNDLE_LIMIT = 1 << 20  # bytes
SUBJECTS_LIMIT = 100
CHAIN_LIMIT = 10  # certificates

MATERIALS = ("publicKey", "certificate", "x509CertificateChain")
CONTENTS = ("dsseEnvelope", "messageSignature")


class Envelope(msgspec.Struct, frozen=True):
    """A DSSE envelope with its one signature."""

    payload_type: str
    payload: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """The bytes that are signed: DSSE protocol.md, "Signature Definition", PAE."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)


class Bundle(msgspec.Struct, frozen=True):
    """A bundle that holds an envelope.

    ``hint`` says which key may have signed, which proves nothing.  ``certificates`` are DER, the
    signer's first; empty: a bare key signed.  ``entries`` are as they stand: see ``rekor.py``.
    """

    envelope: Envelope
    hint: str = ""
    certificates: tuple[bytes, ...] = ()
    entries: Any = ()


class Subject(msgspec.Struct, frozen=True):
    """What a statement is about: digests by algorithm, and what the signer added."""

    digests: Mapping[str, str]
    annotations: Mapping[str, Any]

    def is_about(self, digest: Digest) -> bool:
        """Say whether this is the content with *digest*."""
        return self.digests.get(digest.algorithm) == digest.hex


class Statement(msgspec.Struct, frozen=True):
    """An in-toto statement, as far as signatures need it."""

    kind: str
    predicate_type: str
    subjects: tuple[Subject, ...]


def parse_bundle(data: bytes) -> Bundle:
    """Return the bundle in *data*.  Nothing in it is verified.  Raises Malformed."""
    document = parse_object(data, "the bundle", BUNDLE_LIMIT)
    kind = document.get("mediaType")
    if kind != BUNDLE_TYPE:
        raise Malformed(f"the bundle's mediaType is {quote(kind)}, not {BUNDLE_TYPE!r}")
    members(document, "the bundle", ("mediaType", "verificationMaterial"), CONTENTS)
    if "dsseEnvelope" not in document or "messageSignature" in document:
        raise Malformed("the bundle does not hold one DSSE envelope, as signatures of images do")
    material = members(
        document["verificationMaterial"],
        "the bundle's verificationMaterial",
        (),
        (*MATERIALS, "tlogEntries", "timestampVerificationData"),
    )
    given = [name for name in MATERIALS if name in material]
    if len(given) != 1:
        raise Malformed(f"the bundle has not exactly one of {', '.join(MATERIALS)}")
    envelope = _envelope(document["dsseEnvelope"])
    entries = material.get("tlogEntries", [])
    if given == ["publicKey"]:
        key = members(material["publicKey"], "the bundle's publicKey", (), ("hint",))
        return Bundle(envelope, text(key.get("hint", ""), "the bundle's hint"), entries=entries)
    return Bundle(envelope, certificates=_certificates(material), entries=entries)


def parse_statement(data: bytes) -> Statement:
    """Return the statement in an envelope's payload.  Raises Malformed.

    Members that are not known are ignored, as in-toto's "Parsing rules" demand.
    """
    document = members(
        parse_object(data, "the statement", BUNDLE_LIMIT),
        "the statement",
        ("_type", "subject", "predicateType"),
        None,
    )
    subjects = document["subject"]
    if not isinstance(subjects, list) or not 1 <= len(subjects) <= SUBJECTS_LIMIT:
        raise Malformed(f"the statement is not about 1 to {SUBJECTS_LIMIT} subjects")
    return Statement(
        text(document["_type"], "the statement's _type"),
        text(document["predicateType"], "the statement's predicateType"),
        tuple(_subject(subject) for subject in subjects),
    )


def _envelope(value: Any) -> Envelope:
    found = members(value, "the envelope", ("payload", "payloadType", "signatures"))
    signatures = found["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise Malformed("the envelope has not exactly one signature")
    signature = members(signatures[0], "the envelope's signature", ("sig",), ("keyid",))
    return Envelope(
        text(found["payloadType"], "the envelope's payloadType"),
        from_base64(found["payload"], "the envelope's payload", is_url_safe=True),
        from_base64(signature["sig"], "the envelope's signature", is_url_safe=True),
    )


def _certificates(material: Mapping[str, Any]) -> tuple[bytes, ...]:
    if "certificate" in material:
        listed = [material["certificate"]]
    else:
        chain = members(material["x509CertificateChain"], "the bundle's chain", ("certificates",))
        listed = chain["certificates"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= CHAIN_LIMIT:
        raise Malformed(f"the bundle has not 1 to {CHAIN_LIMIT} certificates")
    what = "the bundle's certificate"
    return tuple(
        from_base64(members(each, what, ("rawBytes",))["rawBytes"], what) for each in listed
    )


def _subject(value: Any) -> Subject:
    found = members(value, "the statement's subject", ("digest",), None)
    digests = members(found["digest"], "the subject's digest", (), None)
    for algorithm, digits in digests.items():
        is_known = algorithm in HEX_LENGTH
        if is_known and (
            len(text(digits, "the subject's digest")) != HEX_LENGTH[algorithm]
            or HEX_RE.fullmatch(digits) is None
        ):
            raise Malformed(f"the subject's digest {quote(digits)} is not one of {algorithm}")
    annotations = found.get("annotations")
    if annotations is None:
        annotations = {}
    return Subject(digests, members(annotations, "the subject's annotations", (), None))
