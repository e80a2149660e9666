"""Time-stamps: a signed statement that some bytes existed at some time.

Spec: RFC 3161, section 2.4.2; RFC 5816 for the certificate that the signer must name; the Notary
Project's signature-specification.md, "Timestamping", for what its authority's certificate must be.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from lazyfs.trust import der
from lazyfs.trust.algorithms import digest_name
from lazyfs.trust.certificates import Certificate
from lazyfs.trust.chains import TIME_STAMPING, find_chain, not_allowed
from lazyfs.trust.cms import Signer, check_signer, parse_signed_data
from lazyfs.trust.errors import BadSignature, Malformed

TST_INFO = "1.2.840.113549.1.9.16.1.4"
SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.47"
ACCURACY_LIMIT = 86400  # seconds; larger ones say nothing


class UntrustedTime(BadSignature):
    """A time-stamp is sound, and of an authority that nobody trusts."""


class Timestamp(msgspec.Struct, frozen=True):
    """The earliest and the latest moment that is meant, and the authority's chain, leaf first."""

    earliest: datetime
    latest: datetime
    chain: tuple[Certificate, ...]


class Statement(msgspec.Struct, frozen=True):
    """A TSTInfo: the digest of the bytes, when, and how exactly."""

    hash_name: str
    digest: bytes
    moment: datetime
    accuracy: timedelta


def verify_token(token: bytes, message: bytes, roots: Sequence[Certificate]) -> Timestamp:
    """Return when *message* existed by a TimeStampToken of an authority below *roots*.

    Raises Malformed, BadSignature, UntrustedTime.  Whether the authority's certificates are revoked
    is left to the caller.
    """
    signed = parse_signed_data(token)
    if signed.content_type != TST_INFO or signed.content is None:
        raise Malformed("a time-stamp does not contain one")
    if len(signed.signers) != 1:
        raise Malformed(f"a time-stamp has {len(signed.signers)} signatures, not one")
    statement, signer = parse_statement(signed.content), signed.signers[0]
    if hashlib.new(statement.hash_name, message).digest() != statement.digest:
        raise BadSignature("the time-stamp is for other bytes")
    leaf = _leaf(signer, [*signed.certificates, *roots])
    check_signer(signer, leaf, TST_INFO, signed.content)
    _check_leaf(leaf)
    chain = find_chain(leaf, signed.certificates, roots, statement.moment)
    if chain is None:
        raise UntrustedTime(f"the time-stamp is by {leaf.who}, whom no trust store leads to")
    try:
        earliest = statement.moment - statement.accuracy
        latest = statement.moment + statement.accuracy
    except OverflowError:
        raise Malformed("a time-stamp's time is not in the calendar") from None
    return Timestamp(earliest, latest, chain)


def parse_statement(data: bytes) -> Statement:
    """Return the TSTInfo in *data* (DER).  Raises Malformed."""
    parts = der.read(data, limit=1 << 16).parts()
    if parts.take().integer() != 1:
        raise Malformed("a time-stamp is of an unknown version")
    parts.take(der.OID)
    imprint = parts.take(der.SEQUENCE).parts()
    hash_name, digest = digest_name(imprint.take(der.SEQUENCE)), imprint.take().octets()
    imprint.end()
    parts.take(der.INTEGER)
    moment = parts.take().time()
    accuracy = _accuracy(parts.optional(der.SEQUENCE))
    parts.optional(der.BOOLEAN)
    parts.optional(der.INTEGER)
    for number in (0, 1):  # the authority's name, and extensions
        parts.optional(der.context(number))
    parts.end()
    return Statement(hash_name, digest, moment, accuracy)


def _accuracy(value: der.Value | None) -> timedelta:
    if value is None:
        return timedelta()
    parts = value.parts()
    seconds = parts.take().integer() if parts.peek() == der.INTEGER else 0
    milli, micro = (_small(parts.optional(der.context(at, constructed=False))) for at in (0, 1))
    parts.end()
    if not 0 <= seconds <= ACCURACY_LIMIT:
        raise Malformed("a time-stamp's accuracy is out of range")
    return timedelta(seconds=seconds, milliseconds=milli, microseconds=micro)


def _small(value: der.Value | None) -> int:
    if value is None:
        return 0
    number = int.from_bytes(value.body[:3], signed=True)
    if not 1 <= number <= 999 or len(value.body) > 2:
        raise Malformed("a time-stamp's accuracy is out of range")
    return number


def _leaf(signer: Signer, certificates: Sequence[Certificate]) -> Certificate:
    """Return the certificate that the signer names, by its number and by its digest.

    RFC 5035, section 3: without the second, another certificate could be put in its place.
    """
    attribute = signer.attribute(SIGNING_CERTIFICATE_V2).parts()
    named = attribute.take(der.SEQUENCE).parts().take(der.SEQUENCE).parts()
    attribute.optional(der.SEQUENCE)  # policies
    attribute.end()
    hash_name = "sha256"
    if named.peek() == der.SEQUENCE:
        hash_name = digest_name(named.take())
    digest = named.take().octets()
    named.optional(der.SEQUENCE)  # the issuer and the number, which the signer names, too
    named.end()
    for certificate in certificates:
        same = hashlib.new(hash_name, certificate.raw).digest() == digest
        if same and (signer.issuer is None or signer.is_by(certificate)):
            return certificate
    raise Malformed("the certificate of the time-stamp's signer is missing")


def _check_leaf(leaf: Certificate) -> None:
    usage, extended = leaf.usage, leaf.extended
    if leaf.is_authority:
        raise not_allowed(leaf, "it is an authority, and signs a time-stamp")
    if extended is None or not extended.is_critical or extended.names != {TIME_STAMPING}:
        raise not_allowed(leaf, "it is not for time-stamps alone")
    if usage is None or not usage.is_critical or "digitalSignature" not in usage.names:
        raise not_allowed(leaf, "its key usage has no digitalSignature, or is not critical")
