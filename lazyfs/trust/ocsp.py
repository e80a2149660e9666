"""OCSP: the status of one certificate, asked for and answered.

Spec: RFC 6960, sections 4.1 and 4.2.  No nonce is sent, so an answer can be kept and used again for
as long as it says; one that does not say so is not used.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Literal

import msgspec

from lazyfs.trust import der
from lazyfs.trust.certificates import (
    Certificate,
    check_by,
    check_issued_by,
    parse_certificate,
    read_extensions,
)
from lazyfs.trust.chains import OCSP_SIGNING
from lazyfs.trust.crl import check_period
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.questions import LIMITS

SIZE_LIMIT = LIMITS["ocsp"]
CERTIFICATES_LIMIT = 5
ANSWERS_LIMIT = 256  # certificates that one answer is about
BASIC = "1.3.6.1.5.5.7.48.1.1"
ENUMERATED = 0x0A
SHA256_OID = bytes.fromhex("0609608648016503040201")
# A certificate is identified by hashes of its issuer's name and key.  SHA-1 is no danger there:
# who could choose such names and keys is an authority.
HASHES = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
STATUSES = {1: "malformedRequest", 2: "internalError", 3: "tryLater", 5: "sigRequired"}
STATUSES[6] = "unauthorized"

State = Literal["good", "revoked", "unknown"]


class CertificateId(msgspec.Struct, frozen=True):
    """Which certificate: the hash's name, hashes of its issuer's name and key, its number."""

    hash_name: str
    issuer_name: bytes
    issuer_key: bytes
    serial: int

    def means(self, certificate: Certificate, issuer: Certificate) -> bool:
        """Say whether this is *certificate*, issued by *issuer*."""
        return (self.serial, self.issuer_name, self.issuer_key) == (
            certificate.serial,
            _hash(self.hash_name, issuer.subject.raw),
            _hash(self.hash_name, issuer.key_bits),
        )


class Status(msgspec.Struct, frozen=True):
    """What an answer says of one certificate; ``since`` when it is revoked."""

    id: CertificateId
    state: State
    since: datetime | None
    this_update: datetime
    next_update: datetime | None


class Answer(msgspec.Struct, frozen=True):
    """An answer, nothing of it verified."""

    signed: der.Value
    algorithm: der.Value
    signature: bytes
    statuses: tuple[Status, ...]
    certificates: tuple[Certificate, ...]


def request(certificate: Certificate, issuer: Certificate) -> bytes:
    """Return the question for the status of *certificate* (DER).  Section 4.1.1."""
    hashed = der.encode(der.SEQUENCE, SHA256_OID, der.encode(der.NULL))
    identifier = der.encode(
        der.SEQUENCE,
        hashed,
        der.encode(der.OCTET_STRING, _hash("sha256", issuer.subject.raw)),
        der.encode(der.OCTET_STRING, _hash("sha256", issuer.key_bits)),
        der.encode_integer(certificate.serial),
    )
    asked = identifier
    for _ in range(4):  # Request, requestList, TBSRequest, OCSPRequest
        asked = der.encode(der.SEQUENCE, asked)
    return asked


def parse_answer(data: bytes) -> Answer:
    """Return the answer in *data* (DER).  Raises Malformed, also for one that is an error."""
    outer = der.read(data, limit=SIZE_LIMIT).parts()
    status = outer.take(ENUMERATED).body
    if status != b"\x00":
        code = int.from_bytes(status[:2])
        raise Malformed(f"the responder answers {STATUSES.get(code, code)}")
    wrapped = _only(outer.take(der.context(0)), der.SEQUENCE).parts()
    outer.end()
    if wrapped.take(der.OID).oid() != BASIC:
        raise Malformed("the answer is of an unknown kind")
    basic = der.read(wrapped.take(der.OCTET_STRING).octets(), limit=SIZE_LIMIT).parts()
    wrapped.end()
    signed, algorithm, signature = basic.take(der.SEQUENCE), basic.take(), basic.take().bits()
    certificates = _certificates(basic.optional(der.context(0)))
    basic.end()
    return Answer(signed, algorithm, signature, _statuses(signed), certificates)


def status_of(data: bytes, certificate: Certificate, issuer: Certificate, now: datetime) -> Status:
    """Return what the answer in *data* says of *certificate*.

    Raises Malformed or BadSignature where it says nothing: it is about others, out of date, or not
    signed by the issuer or by whom the issuer has asked to.
    """
    answer = parse_answer(data)
    found = [each for each in answer.statuses if each.id.means(certificate, issuer)]
    if len(found) != 1:
        raise Malformed("the answer is about other certificates")
    _check_signed(answer, issuer, now)
    check_period(found[0].this_update, found[0].next_update, now)
    return found[0]


def _check_signed(answer: Answer, issuer: Certificate, now: datetime) -> None:
    """Check who signed: the issuer, or a delegate of its own.  Section 4.2.2.2."""
    for signer in [issuer, *answer.certificates]:
        if signer is not issuer and not _is_delegate(signer, issuer, now):
            continue
        try:
            check_by(signer, answer.algorithm, answer.signature, answer.signed.raw)
        except BadSignature:
            continue
        return
    raise BadSignature("the answer is not signed by the issuer or its delegate")


def _is_delegate(signer: Certificate, issuer: Certificate, now: datetime) -> bool:
    """Say whether *issuer* lets *signer* answer for it.

    Without ``ocsp-nocheck`` the delegate's own status would have to be asked for: not accepted.
    """
    if signer.extended is None or OCSP_SIGNING not in signer.extended.names:
        return False
    if not signer.is_valid_at(now) or not signer.is_never_revoked:
        return False
    try:
        check_issued_by(signer, issuer)
    except (BadSignature, Malformed):
        return False
    return True


def _statuses(signed: der.Value) -> tuple[Status, ...]:
    parts = signed.parts()
    parts.optional(der.context(0))
    if parts.peek() not in (der.context(1), der.context(2)):
        raise Malformed("the answer does not name its responder")
    parts.take()
    parts.take(der.GENERALIZED_TIME).time()
    statuses: list[Status] = []
    for part in parts.take(der.SEQUENCE).parts():
        if len(statuses) == ANSWERS_LIMIT:
            raise Malformed(f"the answer is about more than {ANSWERS_LIMIT} certificates")
        statuses.append(_status(part))
    _check_extensions(parts.optional(der.context(1)))
    parts.end()
    return tuple(statuses)


def _status(value: der.Value) -> Status:
    parts = value.parts()
    identifier = _identifier(parts.take(der.SEQUENCE))
    state: State = "unknown"
    since = None
    choice = parts.take()
    if choice.tag == der.context(0, constructed=False) and not choice.body:
        state = "good"
    elif choice.tag == der.context(1):
        state, since = "revoked", _since(choice)
    elif choice.tag != der.context(2, constructed=False):
        raise Malformed("the answer has an unknown status")
    this_update = parts.take().time()
    ending = parts.optional(der.context(0))
    next_update = None if ending is None else _only(ending).time()
    _check_extensions(parts.optional(der.context(1)))
    parts.end()
    return Status(identifier, state, since, this_update, next_update)


def _since(value: der.Value) -> datetime:
    parts = value.parts()
    since = parts.take().time()
    parts.optional(der.context(0))  # the reason
    parts.end()
    return since


def _identifier(value: der.Value) -> CertificateId:
    parts = value.parts()
    algorithm = parts.take(der.SEQUENCE).parts()
    hashed = algorithm.take(der.OID).oid()
    algorithm.optional(der.NULL)
    algorithm.end()
    name, key, serial = parts.take().octets(), parts.take().octets(), parts.take().integer()
    parts.end()
    if hashed not in HASHES:
        raise Malformed(f"the answer uses the hash {hashed}")
    return CertificateId(HASHES[hashed], name, key, serial)


def _certificates(value: der.Value | None) -> tuple[Certificate, ...]:
    return tuple(_each(_only(value, der.SEQUENCE).parts())) if value is not None else ()


def _each(parts: der.Parts) -> Iterator[Certificate]:
    for count, part in enumerate(parts):
        if count == CERTIFICATES_LIMIT:
            raise Malformed(f"the answer has more than {CERTIFICATES_LIMIT} certificates")
        yield parse_certificate(part.raw)


def _check_extensions(value: der.Value | None) -> None:
    for kind, (is_critical, _) in read_extensions(value):
        if is_critical:
            raise Malformed(f"the answer has the critical extension {kind}")


def _only(value: der.Value, tag: int | None = None) -> der.Value:
    parts = value.parts()
    inner = parts.take(tag)
    parts.end()
    return inner


def _hash(name: str, data: bytes) -> bytes:
    return hashlib.new(name, data, usedforsecurity=False).digest()
