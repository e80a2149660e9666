"""One signature of cosign against the keys or certificates of one requirement.

Spec: cosign, SIGNATURE_SPEC.md, "Verification"; containers/image, policy_eval_sigstore.go.  The
signature is checked before anything that it covers is read, and no more is read than it covers.

Importing this module imports cryptography: do so once a policy is in force.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lazyfs.digest import Digest
from lazyfs.errors import LazyfsError
from lazyfs.trust import keys
from lazyfs.trust.certificates import Certificate
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.sigstore import bundle, certificates
from lazyfs.trust.sigstore.candidates import (
    CERTIFICATE,
    CHAIN,
    SIGNATURE,
    Attachment,
    Bundled,
    Candidate,
)
from lazyfs.trust.sigstore.encoding import from_base64, quote
from lazyfs.trust.sigstore.material import Trusted, TrustedKey
from lazyfs.trust.sigstore.payload import parse_payload


class Signed(msgspec.Struct, frozen=True):
    """What a signature that verifies says.  ``name`` None: it names no repository."""

    signer: str
    name: str | None
    annotations: Mapping[str, Any]


class Refused(Exception):
    """Why a signature does not count: the ``check`` that failed, and the reason in words.

    Checks are named as in ``verdict.Reason``.
    """

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check
        self.reason = reason


def check(candidate: Candidate, trusted: Trusted, digest: Digest, now: datetime) -> Signed:
    """Return what *candidate* says of the manifest with *digest*.  Raises Refused."""
    try:
        if isinstance(candidate, Attachment):
            return _check_attachment(candidate, trusted, digest, now)
        return _check_bundle(candidate, trusted, digest, now)
    except Malformed as exc:
        raise Refused("integrity", exc.message) from None


def check_annotations(signed: Signed, wanted: Mapping[str, str]) -> None:
    """Raise Refused unless the signer has added all that is *wanted*: ``cosign verify -a``."""
    for name, value in wanted.items():
        got = signed.annotations.get(name)
        if got != value:
            said = "nothing" if got is None else quote(got)
            raise Refused("metadata", f"it says {said} of {quote(name)}; {quote(value)} is wanted")


def _check_attachment(
    candidate: Attachment, trusted: Trusted, digest: Digest, now: datetime
) -> Signed:
    noted = candidate.annotations
    if SIGNATURE not in noted:
        raise Malformed(f"the payload's layer has no annotation {SIGNATURE}")
    signature = from_base64(noted[SIGNATURE], "the signature")
    if trusted.authority is None:
        usable: Sequence[TrustedKey] = trusted.keys  # a certificate beside it changes nothing
    else:
        if CERTIFICATE not in noted:
            raise Refused("authenticity", "it was not made with a certificate")
        pem = certificates.load_certificates(noted[CERTIFICATE].encode())
        chain: tuple[Certificate, ...] = ()
        if noted.get(CHAIN):
            chain = certificates.load_certificates(noted[CHAIN].encode(), certificates.CHAIN_LIMIT)
        usable = _certified(pem, chain, trusted.authority, now)
    # SHA-256 whatever the key: cosign has no other in this form.
    signer = _signer(usable, signature, candidate.payload, by_curve=False)
    payload = parse_payload(candidate.payload)
    if payload.digest != digest:
        raise Refused("payload", f"it is for {payload.digest}")
    return Signed(signer, payload.name, payload.annotations)


def _check_bundle(candidate: Bundled, trusted: Trusted, digest: Digest, now: datetime) -> Signed:
    parsed = bundle.parse_bundle(candidate.data)
    if trusted.authority is None:
        if parsed.certificates:
            raise Refused("authenticity", "it was made with a certificate, not with a bare key")
        usable: Sequence[TrustedKey] = trusted.keys
    else:
        if not parsed.certificates:
            raise Refused("authenticity", "it was not made with a certificate")
        leaf, *others = (certificates.load_certificate(each) for each in parsed.certificates)
        usable = _certified([leaf], others, trusted.authority, now)
    envelope = parsed.envelope
    signer = _signer(usable, envelope.signature, envelope.signed, by_curve=True)
    if envelope.payload_type != bundle.STATEMENT_MEDIA_TYPE:
        raise Refused("payload", f"it signs {quote(envelope.payload_type)}, not a statement")
    statement = bundle.parse_statement(envelope.payload)
    if statement.predicate_type != bundle.SIGNATURE_PREDICATE:
        raise Refused(
            "payload",
            f"it is an attestation ({quote(statement.predicate_type)}), not a signature",
        )
    if statement.kind != bundle.STATEMENT_TYPE:
        raise Refused("payload", f"it is a statement of type {quote(statement.kind)}")
    for subject in statement.subjects:
        if subject.is_about(digest):
            return Signed(signer, None, subject.annotations)
    about = statement.subjects[0].digests.get(digest.algorithm, "other content")
    raise Refused("payload", f"it is for {quote(about)}")


def _certified(
    leaf: Sequence[Certificate],
    chain: Sequence[Certificate],
    authority: certificates.Authority,
    now: datetime,
) -> list[TrustedKey]:
    if len(leaf) != 1:
        raise Malformed(f"the signature has {len(leaf)} certificates of its signer")
    try:
        key = certificates.signing_key(leaf[0], chain, authority, now)
    except BadSignature as exc:
        raise Refused("authenticity", exc.message) from None
    return [TrustedKey(key, leaf[0].who)]


def _signer(
    usable: Sequence[TrustedKey], signature: bytes, message: bytes, *, by_curve: bool
) -> str:
    """Return the name of the key that made a signature.  Raises Refused."""
    for each in usable:
        try:
            _verify(each.key, signature, message, by_curve)
        except LazyfsError:  # BadSignature, or Malformed: another kind of key made it
            continue
        return each.name
    names = ", ".join(each.name for each in usable[:3]) + (", …" if len(usable) > 3 else "")
    raise Refused("authenticity", f"it does not verify with {names}")


def _verify(key: keys.PublicKey, signature: bytes, message: bytes, by_curve: bool) -> None:
    if (curve_hash := keys.curve_hash(key)) is not None:
        chosen = curve_hash if by_curve else "sha256"
        keys.verify_ecdsa_der(key, signature, message, chosen)
    elif isinstance(key, Ed25519PublicKey):
        keys.verify_ed25519(key, signature, message)
    else:
        keys.verify_pkcs1(key, signature, message, "sha256")
