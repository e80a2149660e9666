"""CMS signed data, as far as time-stamps (and signatures for kernels) need it.

Spec: RFC 5652, section 5.  Certificates in a message are candidates and nothing more; who is
trusted is not said here.  Revocation lists in it, and attributes that are not signed, are ignored.
"""

import hashlib
from collections.abc import Mapping

import msgspec

from lazyfs.trust import der
from lazyfs.trust.algorithms import check_signature, digest_name
from lazyfs.trust.certificates import Certificate, parse_certificate
from lazyfs.trust.errors import BadSignature, Malformed

SIZE_LIMIT = 256 << 10  # bytes of a message
CERTIFICATES_LIMIT = 16
SIGNED_DATA = "1.2.840.113549.1.7.2"
CONTENT_TYPE, MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """One signature of a message, and which certificate is said to have made it.

    ``issuer`` is a name as DER and goes with ``serial``; both are None where the certificate is
    named by its key.  ``attributes`` are the signed ones; None if there are none at all.
    """

    issuer: bytes | None
    serial: int | None
    digest: str
    attributes: Mapping[str, der.Value] | None
    attributes_raw: bytes
    algorithm: der.Value
    signature: bytes

    def is_by(self, certificate: Certificate) -> bool:
        """Say whether *certificate* is the one that is named."""
        return (certificate.issuer.raw, certificate.serial) == (self.issuer, self.serial)

    def attribute(self, kind: str) -> der.Value:
        """Return the one value of a signed attribute.  Raises Malformed."""
        found = (self.attributes or {}).get(kind)
        if found is None:
            raise Malformed(f"the signed attribute {kind} is missing")
        return found


class SignedData(msgspec.Struct, frozen=True):
    """A signed message; ``content`` is None where it is detached."""

    content_type: str
    content: bytes | None
    certificates: tuple[Certificate, ...]
    signers: tuple[Signer, ...]


def parse_signed_data(data: bytes) -> SignedData:
    """Return the message in *data* (ContentInfo, DER), nothing of it verified.  Raises Malformed.

    Certificates that lazyfs cannot read are left out: others may do.
    """
    outer = der.read(data, limit=SIZE_LIMIT).parts()
    if outer.take(der.OID).oid() != SIGNED_DATA:
        raise Malformed("a CMS message is not signed data")
    parts = _only(outer.take(der.context(0)), der.SEQUENCE).parts()
    outer.end()
    parts.take(der.INTEGER)
    parts.take(der.SET)
    content_type, content = _content(parts.take(der.SEQUENCE))
    certificates = _certificates(parts.optional(der.context(0)))
    parts.optional(der.context(1))
    signers = tuple(_signer(each) for each in parts.take(der.SET).parts())
    parts.end()
    return SignedData(content_type, content, certificates, signers)


def check_signer(signer: Signer, certificate: Certificate, kind: str, content: bytes) -> None:
    """Check a signature over *content*, of type *kind*, by way of signed attributes.

    RFC 5652, sections 5.4 and 5.6.  Raises BadSignature, Malformed.
    """
    if signer.attribute(CONTENT_TYPE).oid() != kind:
        raise Malformed("the signed attributes speak of another type of content")
    digest = hashlib.new(signer.digest, content, usedforsecurity=True).digest()
    if signer.attribute(MESSAGE_DIGEST).octets() != digest:
        raise BadSignature("the signed attributes have the digest of other content")
    if certificate.key is None:
        raise Malformed(f"the key of certificate {certificate.who} is not supported")
    signed = bytes([der.SET]) + signer.attributes_raw[1:]
    check_signature(certificate.key, signer.algorithm, signer.signature, signed, signer.digest)


def _content(value: der.Value) -> tuple[str, bytes | None]:
    parts = value.parts()
    kind = parts.take(der.OID).oid()
    inner = parts.optional(der.context(0))
    parts.end()
    return kind, None if inner is None else _only(inner, der.OCTET_STRING).octets()


def _certificates(value: der.Value | None) -> tuple[Certificate, ...]:
    found = []
    for count, part in enumerate(value.parts() if value is not None else ()):
        if count == CERTIFICATES_LIMIT:
            raise Malformed(f"a CMS message has more than {CERTIFICATES_LIMIT} certificates")
        try:
            found.append(parse_certificate(part.raw))
        except Malformed:
            continue
    return tuple(found)


def _signer(value: der.Value) -> Signer:
    parts = value.parts()
    parts.take(der.INTEGER)
    issuer, serial = None, None
    if parts.peek() == der.SEQUENCE:
        named = parts.take().parts()
        issuer, serial = named.take(der.SEQUENCE).raw, named.take().integer()
        named.end()
    else:
        parts.take(der.context(0, constructed=False))
    digest = digest_name(parts.take(der.SEQUENCE))
    attributes = parts.optional(der.context(0))
    algorithm, signature = parts.take(der.SEQUENCE), parts.take().octets()
    parts.optional(der.context(1))
    parts.end()
    return Signer(
        issuer=issuer,
        serial=serial,
        digest=digest,
        attributes=None if attributes is None else _attributes(attributes),
        attributes_raw=b"" if attributes is None else attributes.raw,
        algorithm=algorithm,
        signature=signature,
    )


def _attributes(value: der.Value) -> dict[str, der.Value]:
    found: dict[str, der.Value] = {}
    for attribute in value.parts():
        parts = attribute.parts()
        kind, values = parts.take(der.OID).oid(), parts.take(der.SET)
        parts.end()
        if kind in found:
            raise Malformed(f"the signed attribute {kind} occurs twice")
        found[kind] = _only(values)
    return found


def _only(value: der.Value, tag: int | None = None) -> der.Value:
    parts = value.parts()
    inner = parts.take(tag)
    parts.end()
    return inner
