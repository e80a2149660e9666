"""Certificates of one's own authority, for signatures that were made with one.

Spec: containers-policy.json(5), ``pki``; RFC 5280, section 6, for which cryptography's verifier is
taken.  As in containers/image the chain that travels with a signature is only a help: what is
believed are the roots of the policy.  Validity is that of now, since nothing dates a signature, or
of the moment at which a transparency log saw it.

Importing this module imports cryptography: do so once a policy is in force.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from lazyfs.printable import printable
from lazyfs.trust import der, keys
from lazyfs.trust.certificates import Certificate, parse_certificate, parse_certificates
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.sigstore.encoding import quote

PEM_LIMIT = 1 << 20  # bytes of a file with certificates
ROOTS_LIMIT = 500  # certificates in such a file
CHAIN_LIMIT = 8  # certificates that travel with a signature
DEPTH_LIMIT = 4  # intermediate certificates between a signer's and a root
SHOWN = 200  # characters of what cryptography says

# Extensions of Fulcio: plain text, and the same as DER.
ISSUER_V1 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
UTF8_STRING = 0x0C

# What cryptography raises for broken certificates, when they are loaded or looked at.
BROKEN = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class Authority(msgspec.Struct, frozen=True):
    """Whose certificates are accepted, and for whom: what is given must all be in them.

    ``issuer`` is who confirmed the login that a Sigstore service gave a certificate for.
    """

    roots: tuple[Certificate, ...]
    intermediates: tuple[Certificate, ...] = ()
    email: str | None = None
    hostname: str | None = None
    issuer: str | None = None


def load_certificates(data: bytes, limit: int = ROOTS_LIMIT) -> tuple[Certificate, ...]:
    """Return the certificates in a PEM file, or the one that is DER.  Raises Malformed."""
    if len(data) > PEM_LIMIT:
        raise Malformed(f"the certificates are longer than {PEM_LIMIT} bytes")
    return tuple(_checked(each) for each in parse_certificates(data, limit))


def load_certificate(data: bytes) -> Certificate:
    """Return the certificate in *data* (DER).  Raises Malformed."""
    return _checked(parse_certificate(data))


def signing_key(
    leaf: Certificate, chain: Sequence[Certificate], authority: Authority, moment: datetime
) -> keys.PublicKey:
    """Return the key that *leaf* certifies, once *authority* vouches for it.

    *chain* are certificates that may help to reach a root; *moment*, with a time zone, is when it
    must be valid.  Raises BadSignature with the reason, and Malformed.
    """
    if len(chain) > CHAIN_LIMIT:
        raise Malformed(f"{len(chain)} certificates beside the signer's, at most {CHAIN_LIMIT}")
    whose = leaf.who
    if leaf.key is None:
        raise Malformed(f"the key of {whose} is not supported")
    try:
        _check_names(_verify_chain(leaf, chain, authority, moment), authority)
        return leaf.key
    except verification.VerificationError as exc:
        reason = printable(str(exc).removeprefix("validation failed: "), SHOWN)
        raise BadSignature(f"the certificate of {whose} is not accepted: {reason}") from None
    except BROKEN:
        # Extensions are read when they are looked at: see cryptography's documentation.
        raise Malformed(f"the certificate of {whose} cannot be read") from None


def _checked(certificate: Certificate) -> Certificate:
    """Refuse what cryptography would only warn of, or stumble over later."""
    if certificate.serial <= 0:  # RFC 5280, section 4.1.2.2
        raise Malformed(f"the serial number of {certificate.who} is not positive")
    try:
        _loaded([certificate])
    except BROKEN:
        raise Malformed(f"the certificate of {certificate.who} cannot be read") from None
    return certificate


def _verify_chain(
    leaf: Certificate, chain: Sequence[Certificate], authority: Authority, moment: datetime
) -> x509.Certificate:
    policy = verification.ExtensionPolicy
    criticality = verification.Criticality.AGNOSTIC
    ca_policy = (
        policy.permit_all()
        .require_present(x509.BasicConstraints, criticality, _check_ca)
        .may_be_present(x509.KeyUsage, criticality, _check_ca_usage)
        .may_be_present(x509.ExtendedKeyUsage, criticality, _check_ca_purpose)
    )
    ee_policy = (
        policy.permit_all()
        .may_be_present(x509.KeyUsage, criticality, _check_usage)
        .may_be_present(x509.ExtendedKeyUsage, criticality, _check_purpose)
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(_loaded(authority.roots)))
        .time(moment)
        .max_chain_depth(DEPTH_LIMIT)
        .extension_policies(ca_policy=ca_policy, ee_policy=ee_policy)
        .build_client_verifier()
    )
    (loaded,) = _loaded([leaf])
    helpers = dict.fromkeys([*authority.intermediates, *chain])
    verifier.verify(loaded, _loaded(helpers))
    return loaded


def _loaded(certificates: Iterable[Certificate]) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(each.raw) for each in certificates]


# What cryptography asks of each certificate on the way; it makes ValueError a VerificationError.


def _check_ca(_: object, __: object, found: x509.BasicConstraints | None) -> None:
    if found is None or not found.ca:
        raise ValueError("an issuer is not a certificate authority")


def _check_ca_usage(_: object, __: object, found: x509.KeyUsage | None) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError("an issuer's key is not for signing certificates")


def _check_ca_purpose(_: object, __: object, found: x509.ExtendedKeyUsage | None) -> None:
    # For authorities, purposes bound those of what they issue, as Go and Windows read them.
    purposes = {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if found is not None and purposes.isdisjoint(found):
        raise ValueError("an issuer is not for certificates that sign code")


def _check_usage(_: object, __: object, found: x509.KeyUsage | None) -> None:
    if found is not None and not found.digital_signature:
        raise ValueError("the key is not for signatures")


def _check_purpose(_: object, __: object, found: x509.ExtendedKeyUsage | None) -> None:
    # A certificate that names no purpose is for any; one for other purposes is not for code.
    if found is not None and ExtendedKeyUsageOID.CODE_SIGNING not in found:
        raise ValueError("the certificate is not for signing code")


def _check_names(leaf: x509.Certificate, authority: Authority) -> None:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    emails = names.get_values_for_type(x509.RFC822Name)
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    if authority.email and authority.email not in emails:
        raise BadSignature(
            f"the certificate is for {_listed(emails)}; the policy wants {quote(authority.email)}"
        )
    if authority.hostname and not _is_host(authority.hostname, hosts, addresses):
        raise BadSignature(
            f"the certificate is for {_listed([*hosts, *map(str, addresses)])};"
            f" the policy wants {quote(authority.hostname)}"
        )
    if authority.issuer and (found := _issuer_of(leaf)) != authority.issuer:
        said = "nobody" if found is None else quote(found)
        raise BadSignature(
            f"the certificate's login was confirmed by {said};"
            f" the policy wants {quote(authority.issuer)}"
        )


def _issuer_of(leaf: x509.Certificate) -> str | None:
    """Return the OIDC issuer that Fulcio has noted in a certificate: its docs/oid-info.md."""
    found = set()
    for extension in leaf.extensions:
        value = getattr(extension.value, "value", b"")
        if extension.oid == ISSUER_V1:
            found.add(value.decode())
        elif extension.oid == ISSUER_V2:
            found.add(der.read(value, UTF8_STRING).body.decode())
    if len(found) > 1:
        raise Malformed("the certificate has two issuers of logins")
    return found.pop() if found else None


def _is_host(wanted: str, hosts: Sequence[str], addresses: Sequence[object]) -> bool:
    """Say whether *wanted* is among a certificate's names.  Spec: RFC 6125, section 6.4."""
    try:
        return ipaddress.ip_address(wanted) in addresses
    except ValueError:
        pass
    wanted = wanted.lower().removesuffix(".")
    below = wanted.partition(".")[2]
    for host in hosts:
        name = host.lower().removesuffix(".")
        if name == wanted or (name.startswith("*.") and below and name[2:] == below):
            return True
    return False


def _listed(names: Sequence[str]) -> str:
    return ", ".join(quote(name) for name in names[:5]) or "nobody"
