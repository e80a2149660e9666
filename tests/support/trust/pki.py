"""Certificates, lists, answers and envelopes made on the spot, good and bad."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lazyfs.trust import der
from lazyfs.trust.certificates import Certificate, parse_certificate
from lazyfs.trust.notation.envelope import PAYLOAD_TYPE, SCHEME, SIGNING_TIME, X509

BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2056, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 12, 1, tzinfo=UTC)
SHA256 = hashes.SHA256()

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
ALL_USAGES = dict.fromkeys(
    (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    ),
    False,
)  # fmt: skip


class Issued:
    """A certificate with its private key."""

    def __init__(self, certificate: x509.Certificate, key: Key) -> None:
        self.x509 = certificate
        self.key = key
        self.der = certificate.public_bytes(serialization.Encoding.DER)

    @property
    def certificate(self) -> Certificate:
        return parse_certificate(self.der)

    @property
    def pem(self) -> bytes:
        return self.x509.public_bytes(serialization.Encoding.PEM)


def usage(**names: bool) -> x509.KeyUsage:
    return x509.KeyUsage(**{**ALL_USAGES, **names})


def name(common: str, **others: str) -> x509.Name:
    parts = [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Berlin"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, others.get("organization", "Acme")),
        x509.NameAttribute(NameOID.COMMON_NAME, common),
    ]
    return x509.Name(parts)


def issue(
    common: str,
    issuer: Issued | None = None,
    *,
    authority: bool = False,
    path_length: int | None = None,
    begin: datetime = BEGIN,
    end: datetime = END,
    key: Key | None = None,
    serial: int | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    subject: x509.Name | None = None,
) -> Issued:
    """Make a certificate for signing, or an authority's; self-signed without an issuer."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = subject or name(common)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.x509.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    given = {type(extension) for extension, _ in extensions}
    usual: list[tuple[x509.ExtensionType, bool]] = []
    if authority:
        usual += [
            (x509.BasicConstraints(True, path_length), True),
            (usage(key_cert_sign=True, crl_sign=True, digital_signature=True), True),
        ]
    else:
        usual += [(usage(digital_signature=True), True)]
    for extension, is_critical in [
        *(each for each in usual if type(each[0]) not in given),
        *extensions,
    ]:
        builder = builder.add_extension(extension, is_critical)
    return Issued(builder.sign(issuer.key if issuer else key, SHA256), key)


@cache
def root() -> Issued:
    return issue("root", authority=True)


@cache
def middle() -> Issued:
    return issue("middle", root(), authority=True)


def points(*urls: str) -> tuple[x509.ExtensionType, bool]:
    """Return the extension with the addresses of lists."""
    found = [
        x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
        for url in urls
    ]
    return x509.CRLDistributionPoints(found), False


def responders(*urls: str) -> tuple[x509.ExtensionType, bool]:
    """Return the extension with the addresses of OCSP responders."""
    method = x509.AuthorityInformationAccessOID.OCSP
    found = [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for url in urls]
    return x509.AuthorityInformationAccess(found), False


def crl(
    issuer: Issued,
    revoked: Sequence[int] = (),
    *,
    this: datetime = BEGIN,
    until: datetime = END,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    key: Key | None = None,
    reason: x509.ReasonFlags | None = None,
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.x509.subject)
        .last_update(this)
        .next_update(until)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(BEGIN)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), False)
        builder = builder.add_revoked_certificate(entry.build())
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(key or issuer.key, SHA256).public_bytes(serialization.Encoding.DER)


def ocsp_answer(
    subject: Issued,
    issuer: Issued,
    state: str = "GOOD",
    *,
    signer: Issued | None = None,
    this: datetime = BEGIN,
    until: datetime | None = END,
    certificates: Sequence[Issued] = (),
) -> bytes:
    signer = signer or issuer
    is_revoked = state == "REVOKED"
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=subject.x509,
        issuer=issuer.x509,
        algorithm=SHA256,
        cert_status=ocsp.OCSPCertStatus[state],
        this_update=this,
        next_update=until,
        revocation_time=BEGIN if is_revoked else None,
        revocation_reason=None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.x509)
    if certificates:
        builder = builder.certificates([each.x509 for each in certificates])
    answer = builder.sign(signer.key, SHA256)
    return answer.public_bytes(serialization.Encoding.DER)


def delegate(issuer: Issued, *, no_check: bool = True, eku: bool = True, **others: Any) -> Issued:
    """Return a certificate that may answer OCSP for *issuer*."""
    extensions: list[tuple[x509.ExtensionType, bool]] = []
    if eku:
        extensions.append((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False))
    if no_check:
        extensions.append((x509.OCSPNoCheck(), False))
    return issue("responder", issuer, extensions=extensions, **others)


def sign(key: Key, message: bytes, hash_name: str = "sha256") -> bytes:
    """Sign as JWS and COSE do: r and s side by side, or PSS."""
    chosen = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[
        hash_name
    ]
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PSS(padding.MGF1(chosen), chosen.digest_size), chosen)
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(chosen)))
    return r.to_bytes(size) + s.to_bytes(size)


def payload(digest: str, size: int = 100, **others: Any) -> bytes:
    target = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": size,
        **others,
    }
    return json.dumps({"targetArtifact": target}).encode()


def jws(
    chain: Sequence[Issued],
    content: bytes,
    *,
    protected: Mapping[str, Any] | None = None,
    header: Mapping[str, Any] | None = None,
) -> bytes:
    """Return a JWS envelope signed by the first of *chain*; a None removes an attribute."""
    attributes = {
        "alg": "ES256",
        "cty": PAYLOAD_TYPE,
        "crit": [SCHEME],
        SCHEME: X509,
        SIGNING_TIME: "2026-11-30T00:00:00Z",
        **(protected or {}),
    }
    attributes = {key: value for key, value in attributes.items() if value is not None}
    first, second = url64(json.dumps(attributes).encode()), url64(content)
    document = {
        "protected": first,
        "payload": second,
        "signature": url64(sign(chain[0].key, f"{first}.{second}".encode())),
        "header": {
            "x5c": [base64.b64encode(each.der).decode() for each in chain],
            **(header or {}),
        },
    }
    return json.dumps(document).encode()


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def manifest(envelope: bytes, image: str, **changes: Any) -> bytes:
    """Return the manifest of a signature."""
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.notary.signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "", "size": 2},
        "layers": [
            {
                "mediaType": "application/jose+json",
                "digest": f"sha256:{hashlib.sha256(envelope).hexdigest()}",
                "size": len(envelope),
            }
        ],
        "subject": {"digest": image},
        **changes,
    }
    return json.dumps(document).encode()


def authority_for_time(**others: Any) -> Issued:
    """Return a certificate that may sign time-stamps, below ``root``."""
    extension = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
    given = {"extensions": [(extension, True)], **others}
    return issue("clock", root(), **given)


TST_INFO = bytes.fromhex("060b2a864886f70d0109100104")


def timestamp(
    signer: Issued,
    message: bytes,
    moment: str = "20261130000000Z",
    *,
    accuracy: bytes = b"",
    attributes: Mapping[str, bytes | None] | None = None,
    certificates: Sequence[Issued] | None = None,
    content_type: bytes = TST_INFO,
    more: Sequence[bytes] = (),
    version: int = 1,
    signers: int = 1,
    inside: bytes = TST_INFO,
    detached: bool = False,
) -> bytes:
    """Return a TimeStampToken over *message*.

    *attributes* replace or (None) remove signed ones; *more* are added as they are.
    """
    sha256 = der.encode(der.SEQUENCE, bytes.fromhex("0609608648016503040201"))
    info = der.encode(
        der.SEQUENCE,
        der.encode_integer(version),
        bytes.fromhex("06022a03"),
        der.encode(
            der.SEQUENCE,
            sha256,
            der.encode(der.OCTET_STRING, hashlib.sha256(message).digest()),
        ),
        der.encode_integer(7),
        der.encode(der.GENERALIZED_TIME, moment.encode()),
        accuracy,
    )
    named = der.encode(der.OCTET_STRING, hashlib.sha256(signer.der).digest())
    signed = {
        "content": (bytes.fromhex("06092a864886f70d010903"), content_type),
        "digest": (
            bytes.fromhex("06092a864886f70d010904"),
            der.encode(der.OCTET_STRING, hashlib.sha256(info).digest()),
        ),
        "certificate": (
            bytes.fromhex("060b2a864886f70d010910022f"),
            der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, named))),
        ),
    }
    parts = []
    for kind, (oid, usual) in signed.items():
        value = (attributes or {}).get(kind, usual)
        if value is not None:
            parts.append(der.encode(der.SEQUENCE, oid, der.encode(der.SET, value)))
    over = der.encode(der.SET, *parts, *more)
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    signature = signer.key.sign(over, ec.ECDSA(SHA256))
    issuer = signer.certificate.issuer.raw
    information = der.encode(
        der.SEQUENCE,
        der.encode_integer(1),
        der.encode(der.SEQUENCE, issuer, der.encode_integer(signer.certificate.serial)),
        sha256,
        bytes([der.context(0)]) + over[1:],
        der.encode(der.SEQUENCE, bytes.fromhex("06082a8648ce3d040302")),
        der.encode(der.OCTET_STRING, signature),
    )
    chain = [each.der for each in (certificates if certificates is not None else [signer])]
    data = der.encode(
        der.SEQUENCE,
        der.encode_integer(3),
        der.encode(der.SET, sha256),
        der.encode(
            der.SEQUENCE,
            inside,
            b"" if detached else der.encode(der.context(0), der.encode(der.OCTET_STRING, info)),
        ),
        der.encode(der.context(0), *chain),
        der.encode(der.SET, *[information] * signers),
    )
    return der.encode(
        der.SEQUENCE, bytes.fromhex("06092a864886f70d010702"), der.encode(der.context(0), data)
    )


def later(**amount: float) -> datetime:
    return NOW + timedelta(**amount)
