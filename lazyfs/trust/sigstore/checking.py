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
from lazyfs.printable import printable
from lazyfs.trust import keys
from lazyfs.trust.certificates import Certificate
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.sigstore import bundle, certificates, rekor
from lazyfs.trust.sigstore.candidates import (
    CERTIFICATE,
    CHAIN,
    ENTRY,
    SIGNATURE,
    Attachment,
    Bundled,
    Candidate,
)
from lazyfs.trust.sigstore.encoding import encoded, from_base64, quote
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


class _Offered(msgspec.Struct, frozen=True):
    """A signature with what is to make it trusted; the signer's certificate is the first."""

    signature: bytes
    signed: bytes
    payload: bytes
    certificates: Sequence[Certificate]
    entries: Sequence[rekor.Entry]


def _check_attachment(
    candidate: Attachment, trusted: Trusted, digest: Digest, now: datetime
) -> Signed:
    noted = candidate.annotations
    if SIGNATURE not in noted:
        raise Malformed(f"the payload's layer has no annotation {SIGNATURE}")
    chain: list[Certificate] = []
    # With bare keys, a certificate beside the signature changes nothing.
    if trusted.authority is not None and CERTIFICATE in noted:
        chain += certificates.load_certificates(encoded(noted[CERTIFICATE]))
        if len(chain) != 1:
            raise Malformed(f"the signature has {len(chain)} certificates of its signer")
        if noted.get(CHAIN):
            limit = certificates.CHAIN_LIMIT
            chain += certificates.load_certificates(encoded(noted[CHAIN]), limit)
    is_logged = trusted.logs and ENTRY in noted
    offered = _Offered(
        from_base64(noted[SIGNATURE], "the signature"),
        candidate.payload,
        candidate.payload,
        chain,
        [rekor.parse_annotation(noted[ENTRY])] if is_logged else [],
    )
    # SHA-256 whatever the key: cosign has no other in this form.
    signer = _signer(_usable(offered, trusted, now), offered, by_curve=False)
    payload = parse_payload(candidate.payload)
    if payload.digest != digest:
        raise Refused("payload", f"it is for {payload.digest}")
    return Signed(signer, payload.name, payload.annotations)


def _check_bundle(candidate: Bundled, trusted: Trusted, digest: Digest, now: datetime) -> Signed:
    parsed = bundle.parse_bundle(candidate.data)
    if trusted.authority is None and parsed.certificates:
        raise Refused("authenticity", "it was made with a certificate, not with a bare key")
    envelope = parsed.envelope
    offered = _Offered(
        envelope.signature,
        envelope.signed,
        envelope.payload,
        [certificates.load_certificate(each) for each in parsed.certificates],
        rekor.parse_entries(parsed.entries) if trusted.logs else [],
    )
    signer = _signer(_usable(offered, trusted, now), offered, by_curve=True)
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


def _usable(offered: _Offered, trusted: Trusted, now: datetime) -> Sequence[TrustedKey]:
    """Return the keys that may have signed.  Raises Refused."""
    logged = _logged(offered, trusted) if trusted.logs else None
    if trusted.authority is None:
        if logged is None:
            return trusted.keys
        usable = [each for each in trusted.keys if keys.spki_of(each.key) == logged.signer]
        if not usable:
            raise Refused("authenticity", "the log has seen it signed with another key")
        return usable
    if not offered.certificates:
        raise Refused("authenticity", "it was not made with a certificate")
    leaf, *chain = offered.certificates
    if logged is not None and logged.signer != leaf.raw:
        raise Refused("authenticity", "the log has seen it signed with another certificate")
    moment = now if logged is None else logged.moment
    try:
        key = certificates.signing_key(leaf, chain, trusted.authority, moment)
    except BadSignature as exc:
        raise Refused("authenticity", exc.message) from None
    email = trusted.authority.email
    return [TrustedKey(key, leaf.who or printable(email or "a certificate without a subject"))]


def _logged(offered: _Offered, trusted: Trusted) -> rekor.Logged:
    """Return what a log of the policy has seen of a signature.  Raises Refused."""
    reason = "it has no entry of a transparency log with a signed timestamp"
    for entry in offered.entries:
        try:
            logged = rekor.read_entry(entry, trusted.logs)
        except (BadSignature, Malformed) as exc:
            reason = exc.message
            continue
        if rekor.is_about(logged, offered.signature, offered.payload):
            return logged
        reason = "the entry of the log is about another signature"
    raise Refused("authenticity", reason)


def _signer(usable: Sequence[TrustedKey], offered: _Offered, *, by_curve: bool) -> str:
    """Return the name of the key that made a signature.  Raises Refused."""
    for each in usable:
        try:
            _verify(each.key, offered.signature, offered.signed, by_curve)
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
