"""X.509 certificates: read once, wholly, so that nothing is found out to be broken later on.

Spec: RFC 5280, section 4.  A ``Certificate`` is what it says; whether that may be believed is for
those who ask: ``check_issued_by`` checks one signature, ``notation/chain.py`` a chain.  Extensions
that nobody here asks for are ignored, even critical ones, as the Notary Project demands (signature
specification, "Certificate Requirements"); a known one that is broken, or occurs twice, makes the
whole certificate malformed.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from lazyfs.digest import digest_of
from lazyfs.printable import printable
from lazyfs.trust import der, keys
from lazyfs.trust.algorithms import check_signature
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.names import Name, parse_name

SIZE_LIMIT = 64 << 10  # bytes of one certificate
URLS_LIMIT = 8  # addresses for revocation, of each kind
URL_SIZE_LIMIT = 2048
SHOWN = 200  # characters of a name in a message

BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_USAGE = "2.5.29.19", "2.5.29.15", "2.5.29.37"
CRL_POINTS, AUTHORITY_ACCESS = "2.5.29.31", "1.3.6.1.5.5.7.1.1"
OCSP_NO_CHECK, OCSP_ACCESS = "1.3.6.1.5.5.7.48.1.5", "1.3.6.1.5.5.7.48.1"

# Bits of keyUsage in their order: section 4.2.1.3.
USAGES = (
    "digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement",
    "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly",
)  # fmt: skip
UTC_TIME_RE = re.compile(rb"(\d\d)(\d{10})Z")
PEM_RE = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[ \t]*\r?\n([A-Za-z0-9+/=\s]*?)-----END \1-----"
)
URI = der.context(6, constructed=False)


class Constraints(msgspec.Struct, frozen=True):
    """basicConstraints: whether it is an authority, and how many may follow it below."""

    is_critical: bool
    is_authority: bool
    path_length: int | None


class Usage(msgspec.Struct, frozen=True):
    """keyUsage by names, or extendedKeyUsage by object identifiers."""

    is_critical: bool
    names: frozenset[str]


class Certificate(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A certificate; equal are those with the same bytes.  ``not_after`` is still within."""

    raw: bytes
    signed: bytes
    algorithm: der.Value
    signature: bytes
    serial: int
    issuer: Name
    subject: Name
    not_before: datetime
    not_after: datetime
    spki: der.Value
    key: keys.PublicKey | None
    constraints: Constraints | None = None
    usage: Usage | None = None
    extended: Usage | None = None
    crl_urls: tuple[str, ...] = ()
    ocsp_urls: tuple[str, ...] = ()
    is_never_revoked: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    @property
    def thumbprint(self) -> str:
        """The certificate's SHA-256, in hex."""
        return digest_of(self.raw).hex

    @property
    def who(self) -> str:
        """The subject as messages show it."""
        return printable(str(self.subject), SHOWN)

    @property
    def key_bits(self) -> bytes:
        """The key's bits without what says of which kind it is: what OCSP identifies it by."""
        parts = self.spki.parts()
        parts.take(der.SEQUENCE)
        bits = parts.take(der.BIT_STRING).bits()
        parts.end()
        return bits

    @property
    def is_authority(self) -> bool:
        """Whether basicConstraints say that it issues certificates."""
        return self.constraints is not None and self.constraints.is_authority

    @property
    def is_self_signed(self) -> bool:
        """Whether it is issued by itself: the same name, and its own key made the signature."""
        if self.issuer.raw != self.subject.raw:
            return False
        try:
            check_issued_by(self, self)
        except (BadSignature, Malformed):
            return False
        return True

    def is_valid_at(self, moment: datetime) -> bool:
        """Say whether *moment* lies in the period of validity, both ends included."""
        return self.not_before <= moment <= self.not_after


def check_issued_by(certificate: Certificate, issuer: Certificate) -> None:
    """Check that *issuer*'s name and key issued *certificate*; nothing else of either.

    Raises BadSignature, and Malformed for algorithms and keys that are not accepted.
    """
    if certificate.issuer.raw != issuer.subject.raw:
        raise BadSignature(f"it is not issued by {issuer.who}")
    check_by(issuer, certificate.algorithm, certificate.signature, certificate.signed)


def check_by(signer: Certificate, algorithm: der.Value, signature: bytes, message: bytes) -> None:
    """Check a signature made with *signer*'s key.  Raises BadSignature, Malformed."""
    if signer.key is None:
        raise Malformed(f"the key of certificate {signer.who} is not supported")
    check_signature(signer.key, algorithm, signature, message)


def parse_certificate(data: bytes) -> Certificate:
    """Return the certificate in *data* (DER).  Raises Malformed.

    A key of a kind that is not supported is no fault yet: ``key`` is None.
    """
    outer = der.read(data, limit=SIZE_LIMIT).parts()
    signed, algorithm, signature = outer.take(der.SEQUENCE), outer.take(), outer.take().bits()
    outer.end()
    parts = signed.parts()
    version = _version(parts.optional(der.context(0)))
    serial = parts.take().integer()
    if parts.take().raw != algorithm.raw:
        raise Malformed("a certificate names two signature algorithms")
    issuer = parse_name(parts.take(der.SEQUENCE))
    validity = parts.take(der.SEQUENCE).parts()
    not_before, not_after = parse_time(validity.take()), parse_time(validity.take())
    validity.end()
    subject = parse_name(parts.take(der.SEQUENCE))
    spki = parts.take(der.SEQUENCE)
    for number in (1, 2):  # unique identifiers, which nobody uses
        parts.optional(der.context(number, constructed=False))
    extensions = dict(read_extensions(parts.optional(der.context(3))))
    parts.end()
    if extensions and version != 3:
        raise Malformed("a certificate has extensions and is not of version 3")
    certificate = Certificate(
        raw=data,
        signed=signed.raw,
        algorithm=algorithm,
        signature=signature,
        serial=serial,
        issuer=issuer,
        subject=subject,
        not_before=not_before,
        not_after=not_after,
        spki=spki,
        key=_key(spki),
        constraints=_constraints(extensions.get(BASIC_CONSTRAINTS)),
        usage=_usage(extensions.get(KEY_USAGE)),
        extended=_extended(extensions.get(EXTENDED_USAGE)),
        crl_urls=_crl_urls(extensions.get(CRL_POINTS)),
        ocsp_urls=_ocsp_urls(extensions.get(AUTHORITY_ACCESS)),
        is_never_revoked=OCSP_NO_CHECK in extensions,
    )
    _ = certificate.key_bits  # raises here, not where it is used
    return certificate


def parse_certificates(data: bytes, limit: int) -> list[Certificate]:
    """Return the certificates in a file: PEM with any number of them, or DER with one.

    What stands around PEM blocks is a comment; a block that is no certificate is a fault.  Raises
    Malformed, also for more than *limit* certificates and for none.
    """
    if data[:1] == b"\x30":
        return [parse_certificate(data)]
    found = []
    for label, text in PEM_RE.findall(data):
        if label != b"CERTIFICATE":
            raise Malformed(f"a PEM block is labelled {label.decode()}, not CERTIFICATE")
        try:
            found.append(parse_certificate(base64.b64decode(b"".join(text.split()), validate=True)))
        except binascii.Error:
            raise Malformed("a PEM block is not valid base64") from None
        if len(found) > limit:
            raise Malformed(f"there are more than {limit} certificates")
    if not found or data.count(b"-----BEGIN") != len(found):
        raise Malformed("there is no certificate, or a broken one")
    return found


def parse_time(value: der.Value) -> datetime:
    """Return a time of X.509: UTCTime for the years 1950 to 2049, else GeneralizedTime.

    Spec: RFC 5280, section 4.1.2.5: seconds are there, fractions are not.  Raises Malformed.
    """
    if value.tag == der.GENERALIZED_TIME:
        if len(value.body) != 15:
            raise Malformed("a time in a certificate has fractions of seconds")
        return value.time()
    match = UTC_TIME_RE.fullmatch(value.body)
    if value.tag != der.UTC_TIME or match is None:
        raise Malformed("a time in a certificate is not of the form YYMMDDHHMMSSZ")
    century = b"20" if match[1] < b"50" else b"19"
    try:
        text = (century + match[1] + match[2]).decode()
        return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise Malformed("a time in a certificate is not in the calendar") from None


def read_extensions(value: der.Value | None) -> Iterator[tuple[str, tuple[bool, bytes]]]:
    """Yield each extension's identifier, whether it is critical, and its bytes.

    *value* is the explicitly tagged list, None if there is none.  Raises Malformed, also for one
    that occurs twice.  Section 4.2; the same in CRLs and OCSP answers.
    """
    if value is None:
        return
    outer = value.parts()
    seen = set()
    for extension in outer.take(der.SEQUENCE).parts():
        parts = extension.parts()
        kind = parts.take(der.OID).oid()
        critical = parts.optional(der.BOOLEAN)
        content = parts.take(der.OCTET_STRING).octets()
        parts.end()
        if kind in seen:
            raise Malformed(f"the extension {kind} occurs twice")
        seen.add(kind)
        yield kind, (critical is not None and critical.boolean(), content)
    outer.end()


def _version(value: der.Value | None) -> int:
    if value is None:
        return 1
    parts = value.parts()
    version = parts.take().integer() + 1
    parts.end()
    if version not in (2, 3):
        raise Malformed("a certificate is of an unknown version")
    return version


def _key(spki: der.Value) -> keys.PublicKey | None:
    try:
        return keys.load_spki(spki.raw)
    except Malformed:
        return None


def _constraints(found: tuple[bool, bytes] | None) -> Constraints | None:
    if found is None:
        return None
    parts = der.read(found[1]).parts()
    flag = parts.optional(der.BOOLEAN)
    is_authority = flag is not None and flag.boolean()
    length = None if parts.is_empty() else parts.take().integer()
    parts.end()
    if length is not None and (length < 0 or not is_authority):
        raise Malformed("a certificate has a path length that means nothing")
    return Constraints(found[0], is_authority, length)


def _usage(found: tuple[bool, bytes] | None) -> Usage | None:
    if found is None:
        return None
    body = der.read(found[1], der.BIT_STRING).body
    if len(body) not in (1, 2, 3) or body[0] > 7 or (len(body) == 1 and body[0]):
        raise Malformed("a certificate has a broken key usage")
    bits = int.from_bytes(body[1:].ljust(2, b"\0"))
    return Usage(found[0], frozenset(name for at, name in enumerate(USAGES) if bits & 0x8000 >> at))


def _extended(found: tuple[bool, bytes] | None) -> Usage | None:
    if found is None:
        return None
    return Usage(found[0], frozenset(part.oid() for part in der.read(found[1]).parts()))


def _crl_urls(found: tuple[bool, bytes] | None) -> tuple[str, ...]:
    """Return the addresses of cRLDistributionPoints.  Section 4.2.1.13."""
    urls: list[str] = []
    for point in der.read(found[1]).parts() if found else ():
        parts = point.parts()
        name = parts.optional(der.context(0))
        if name is not None:
            urls += full_name_urls(name)
    return _bounded(urls)


def full_name_urls(value: der.Value) -> Iterator[str]:
    """Yield the addresses in a DistributionPointName, ``[0]`` around it included."""
    for choice in value.parts():
        if choice.tag == der.context(0):
            yield from (_url(part) for part in choice.parts() if part.tag == URI)


def _ocsp_urls(found: tuple[bool, bytes] | None) -> tuple[str, ...]:
    """Return the addresses of OCSP responders in authorityInfoAccess.  Section 4.2.2.1."""
    urls = []
    for description in der.read(found[1]).parts() if found else ():
        parts = description.parts()
        method, location = parts.take(der.OID).oid(), parts.take()
        parts.end()
        if method == OCSP_ACCESS and location.tag == URI:
            urls.append(_url(location))
    return _bounded(urls)


def _url(value: der.Value) -> str:
    if len(value.body) > URL_SIZE_LIMIT or not value.body.isascii():
        raise Malformed("an address in a certificate is too long or not ASCII")
    return value.body.decode("ascii")


def _bounded(urls: list[str]) -> tuple[str, ...]:
    if len(urls) > URLS_LIMIT:
        raise Malformed(f"a certificate has more than {URLS_LIMIT} addresses for its revocation")
    return tuple(urls)
