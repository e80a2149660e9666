"""Certificates and chains: what is read, and what may stand where."""

from datetime import UTC, datetime
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from lazyfs.trust import der
from lazyfs.trust.certificates import (
    check_issued_by,
    parse_certificate,
    parse_certificates,
    parse_time,
)
from lazyfs.trust.chains import NotAllowed, check_issuers, find_chain
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.names import Name, parse_name
from lazyfs.trust.notation.chain import check_chain
from tests.support.trust import pki
from tests.support.trust.notation import certificates

MANY = [each for data in certificates() for each in parse_certificates(data, 100)]


@pytest.mark.parametrize("certificate", MANY, ids=lambda each: each.thumbprint[:8])
def test_it_reads_what_the_library_reads(certificate: object) -> None:
    from lazyfs.trust.certificates import Certificate

    assert isinstance(certificate, Certificate)
    other = x509.load_der_x509_certificate(certificate.raw)
    assert certificate.serial == other.serial_number
    assert certificate.not_before == other.not_valid_before_utc
    assert certificate.not_after == other.not_valid_after_utc
    assert certificate.subject.raw == other.subject.public_bytes()
    assert str(certificate.subject) == other.subject.rfc4514_string()
    assert certificate.signed == other.tbs_certificate_bytes
    assert certificate.key == other.public_key()
    usage = other.extensions.get_extension_for_class(x509.KeyUsage)
    assert certificate.usage is not None
    assert certificate.usage.is_critical == usage.critical
    assert ("keyCertSign" in certificate.usage.names) == usage.value.key_cert_sign


def test_addresses_and_extended_usage() -> None:
    issued = pki.issue(
        "x",
        pki.root(),
        extensions=[
            pki.points("http://a.test/1", "ldap://a.test/2"),
            pki.responders("http://o.test"),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), True),
            (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), True),
        ],
    ).certificate
    assert issued.crl_urls == ("http://a.test/1", "ldap://a.test/2")
    assert issued.ocsp_urls == ("http://o.test",)
    assert issued.extended is not None
    assert issued.extended.is_critical
    assert issued.extended.names == {"1.3.6.1.5.5.7.3.3"}
    assert not issued.is_authority


def test_an_address_too_many() -> None:
    with pytest.raises(Malformed, match="more than 8"):
        _ = pki.issue("x", extensions=[pki.points(*["http://a.test"] * 9)]).certificate
    with pytest.raises(Malformed, match="too long"):
        _ = pki.issue("x", extensions=[pki.points("http://a.test/" + "x" * 3000)]).certificate


@pytest.mark.parametrize(
    ("tag", "text", "moment"),
    [
        (der.UTC_TIME, b"491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (der.UTC_TIME, b"500101000000Z", datetime(1950, 1, 1, tzinfo=UTC)),
        (der.GENERALIZED_TIME, b"99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (der.UTC_TIME, b"4912312359Z", None),
        (der.UTC_TIME, b"491231235959+0100", None),
        (der.UTC_TIME, b"490230000000Z", None),
        (der.GENERALIZED_TIME, b"20261231235959.5Z", None),
        (der.GENERALIZED_TIME, b"00000101000000Z", None),
        (der.GENERALIZED_TIME, b"20261231235960Z", None),
        (der.OCTET_STRING, b"491231235959Z", None),
    ],
)
def test_times(tag: int, text: bytes, moment: datetime | None) -> None:
    value = der.read(der.encode(tag, text), None)
    if moment is not None:
        assert parse_time(value) == moment
        return
    with pytest.raises(Malformed):
        parse_time(value)


def test_the_last_year_of_the_calendar() -> None:
    end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert pki.issue("x", end=end).certificate.is_valid_at(pki.NOW)


def test_a_key_that_is_not_supported_is_no_fault_yet() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    found = pki.issue("x", key=key).certificate
    assert found.key is None
    assert not found.is_self_signed
    assert pki.issue("x", key=ec.generate_private_key(ec.SECP256K1())).certificate.key is None


def test_weak_hashes_are_not_accepted() -> None:
    from cryptography.x509 import CertificateBuilder

    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        CertificateBuilder()
        .subject_name(pki.name("x"))
        .issuer_name(pki.name("x"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(pki.BEGIN)
        .not_valid_after(pki.END)
    )
    weak = pki.Issued(builder.sign(key, hashes.SHA224()), key).certificate
    with pytest.raises(Malformed, match="not accepted"):
        check_issued_by(weak, weak)
    # The name of the algorithm is inside what is signed; a SHA-1 signature cannot be made here.
    sha1 = der.read(der.encode(der.SEQUENCE, bytes.fromhex("06072a8648ce3d0401")))
    from lazyfs.trust.algorithms import check_signature

    assert weak.key is not None
    with pytest.raises(Malformed, match="SHA-1"):
        check_signature(weak.key, sha1, b"", b"")


def test_other_kinds_of_signatures() -> None:
    """Authorities may use RSA, PSS and Ed25519; DSA has no place."""
    from cryptography.hazmat.primitives.asymmetric import padding

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert pki.issue("x", key=key).certificate.is_self_signed
    builder = (
        x509.CertificateBuilder()
        .subject_name(pki.name("x"))
        .issuer_name(pki.name("x"))
        .serial_number(1)
        .not_valid_before(pki.BEGIN)
        .not_valid_after(pki.END)
    )
    sha = hashes.SHA384()
    for salt, is_good in ((48, True), (20, False)):
        scheme = padding.PSS(padding.MGF1(sha), salt)
        made = builder.public_key(key.public_key()).sign(key, sha, rsa_padding=scheme)
        assert pki.Issued(made, key).certificate.is_self_signed == is_good
    edwards = ed25519.Ed25519PrivateKey.generate()
    made = builder.public_key(edwards.public_key()).sign(edwards, None)
    assert pki.Issued(made, key).certificate.is_self_signed
    old = dsa.generate_private_key(1024)
    made = builder.public_key(old.public_key()).sign(old, hashes.SHA256())
    assert not pki.Issued(made, key).certificate.is_self_signed


def replaced(old: bytes, new: bytes) -> bytes:
    data = pki.issue("x", pki.root(), extensions=[pki.points("http://a.test/1")]).der
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Version 3 → 9; a list's address that is not ASCII; key usage with unused bits above 7.
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020108")),
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020101")),
        (b"http://a.test/1", b"http://a.test/\xff"),
        (bytes.fromhex("03020780"), bytes.fromhex("03020980")),
        # The inner algorithm is another one than the outer.
        (bytes.fromhex("06082a8648ce3d040302"), None),
    ],
)
def test_broken_certificates(old: bytes, new: bytes | None) -> None:
    if new is None:
        data = pki.root().der
        at = data.index(old)
        changed = data[:at] + old[:-1] + b"\x03" + data[at + len(old) :]
    else:
        changed = replaced(old, new)
    with pytest.raises(Malformed):
        parse_certificate(changed)


def test_an_extension_twice_and_a_path_length_without_an_authority() -> None:
    critical = der.encode(der.BOOLEAN, b"\xff")
    one = der.encode(
        der.SEQUENCE,
        bytes.fromhex("0603551d13"),
        critical,
        der.encode(der.OCTET_STRING, der.encode(der.SEQUENCE)),
    )
    from lazyfs.trust.certificates import read_extensions

    wrapped = der.encode(der.context(0), der.encode(der.SEQUENCE, one, one))
    with pytest.raises(Malformed, match="twice"):
        list(read_extensions(der.read(wrapped, None)))


def test_files_of_certificates() -> None:
    first, second = pki.root(), pki.middle()
    text = b"# a comment\n" + first.pem + b"\nmore\n" + second.pem
    assert parse_certificates(text, 2) == [first.certificate, second.certificate]
    assert parse_certificates(first.der, 1) == [first.certificate]
    for bad in (
        b"",
        b"no certificate",
        text.replace(b"END", b"EN"),
        first.pem + b"-----BEGIN CERTIFICATE-----\nAAAA",
        first.pem + first.pem.replace(b"CERTIFICATE", b"PUBLIC KEY"),
        first.pem.replace(b"MII", b"M!I"),
        first.der + b"\0",
    ):
        with pytest.raises(Malformed):
            parse_certificates(bad, 2)
    with pytest.raises(Malformed, match="more than 1"):
        parse_certificates(text, 1)


# Chains


def test_a_chain_with_every_number_of_authorities() -> None:
    chain = [pki.issue("leaf", pki.middle()), pki.middle(), pki.root()]
    check_chain([each.certificate for each in chain])
    check_chain([pki.issue("leaf", pki.root()).certificate, pki.root().certificate])
    check_chain([pki.issue("self").certificate])


def test_a_chain_in_another_order_is_none() -> None:
    chain = [pki.issue("leaf", pki.middle()), pki.middle(), pki.root()]
    for order in permutations(chain):
        if list(order) != chain:
            with pytest.raises(NotAllowed):
                check_chain([each.certificate for each in order])


def test_nothing_stands_behind_the_root() -> None:
    leaf = pki.issue("leaf", pki.root()).certificate
    root = pki.root().certificate
    with pytest.raises(NotAllowed, match="behind its root"):
        check_chain([leaf, root, root])


def test_the_length_of_a_path() -> None:
    tight = pki.issue("tight", authority=True, path_length=0)
    check_chain([pki.issue("leaf", tight).certificate, tight.certificate])
    between = pki.issue("between", tight, authority=True)
    leaf = pki.issue("leaf", between)
    with pytest.raises(NotAllowed, match="more than 0"):
        check_chain([each.certificate for each in (leaf, between, tight)])


def test_another_key_behind_the_same_name() -> None:
    twin = pki.issue("root", authority=True)
    with pytest.raises(NotAllowed):
        check_issuers([pki.issue("leaf", twin).certificate, pki.root().certificate])
    with pytest.raises(BadSignature):
        check_issued_by(pki.issue("leaf", twin).certificate, pki.root().certificate)


def test_another_name_before_the_same_key() -> None:
    twin = pki.issue("twin", authority=True, key=pki.root().key)
    leaf = pki.issue("leaf", twin).certificate
    check_issued_by(leaf, twin.certificate)
    with pytest.raises(BadSignature, match="not issued by"):
        check_issued_by(leaf, pki.root().certificate)


def test_an_authority_whose_key_is_not_supported() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    authority = pki.issue("weak", authority=True, key=weak)
    with pytest.raises(Malformed, match=r"CN=weak,.* is not supported"):
        check_issued_by(pki.issue("leaf", authority).certificate, authority.certificate)


@pytest.mark.parametrize(
    "extension",
    [
        (x509.BasicConstraints(True, None), False),
        (x509.BasicConstraints(False, None), True),
        (pki.usage(digital_signature=True), True),
        (pki.usage(key_cert_sign=True), False),
    ],
)
def test_who_must_not_issue(extension: tuple[x509.ExtensionType, bool]) -> None:
    authority = pki.issue("authority", authority=True, extensions=[extension])
    leaf = pki.issue("leaf", authority)
    with pytest.raises(NotAllowed):
        check_chain([leaf.certificate, authority.certificate])


@pytest.mark.parametrize(
    "extension",
    [
        (pki.usage(digital_signature=True), False),
        (pki.usage(content_commitment=True), True),
        (pki.usage(digital_signature=True, crl_sign=True), True),
        (pki.usage(digital_signature=True, key_agreement=True), True),
        (x509.BasicConstraints(True, None), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False),
        (
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            False,
        ),
    ],
)
def test_who_must_not_sign(extension: tuple[x509.ExtensionType, bool]) -> None:
    leaf = pki.issue("leaf", pki.root(), extensions=[extension])
    with pytest.raises(NotAllowed, match="CN=leaf"):
        check_chain([leaf.certificate, pki.root().certificate])


def test_which_keys_sign() -> None:
    """Authorities may have others: RSA with 2560 bits, Ed25519."""
    odd = rsa.generate_private_key(public_exponent=65537, key_size=2560)
    leaf = pki.issue("leaf", pki.root(), key=odd)
    with pytest.raises(NotAllowed, match="its key is not RSA with"):
        check_chain([leaf.certificate, pki.root().certificate])
    authority = pki.issue("odd", authority=True, key=odd)
    check_chain([pki.issue("leaf", authority).certificate, authority.certificate])


def test_a_chain_is_found_among_others() -> None:
    leaf = pki.issue("leaf", pki.middle()).certificate
    twins = [pki.issue("middle", pki.root(), authority=True).certificate for _ in range(3)]
    roots = [pki.issue("root", authority=True).certificate, pki.root().certificate]
    pool = [*twins, pki.middle().certificate]
    found = find_chain(leaf, pool, roots, pki.NOW)
    assert found == (leaf, pki.middle().certificate, pki.root().certificate)
    assert find_chain(leaf, pool, roots[:1], pki.NOW) is None
    assert find_chain(leaf, twins, roots, pki.NOW) is None
    assert find_chain(leaf, pool, roots, pki.END.replace(year=2060)) is None


def test_looking_for_a_chain_ends() -> None:
    """Authorities that issue each other, and many of one name: signatures are checked 64 times."""
    key = ec.generate_private_key(ec.SECP256R1())
    ring = [
        pki.issue("ring", authority=True, key=key, serial=1 + at).certificate for at in range(30)
    ]
    leaf = pki.issue("leaf", pki.Issued(x509.load_der_x509_certificate(ring[0].raw), key))
    assert find_chain(leaf.certificate, ring, [pki.root().certificate], pki.NOW) is None


def test_names_are_written_by_the_book() -> None:
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, ' #a,b+c"d\\e<f>g;h=i '),
            x509.NameAttribute(x509.NameOID.EMAIL_ADDRESS, "a@b"),
        ]
    )
    found = pki.issue("x", subject=subject).certificate.subject
    assert isinstance(found, Name)
    assert str(found) == ('1.2.840.113549.1.9.1=a@b,O=\\ #a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h\\=i\\ ')
    shown = pki.issue("a\nb\u202e").certificate.who
    assert "\n" not in shown
    assert "\u202e" not in shown


def attribute(tag: int, body: bytes) -> bytes:
    """Return a set with one attribute, a common name."""
    pair = der.encode(der.SEQUENCE, bytes.fromhex("0603550403"), der.encode(tag, body))
    return der.encode(der.SET, pair)


def test_text_in_every_encoding() -> None:
    texts = [
        (0x0C, "\u00fc".encode()),
        (0x14, "\u00fc".encode("latin-1")),
        (0x1C, "\u00fc".encode("utf-32-be")),
        (0x1E, "\u00fc".encode("utf-16-be")),
    ]
    for tag, body in texts:
        name = parse_name(der.read(der.encode(der.SEQUENCE, attribute(tag, body))))
        assert str(name) == "CN=\u00fc"
    strange = parse_name(der.read(der.encode(der.SEQUENCE, attribute(der.OCTET_STRING, b"a"))))
    assert strange.attributes[0].value == "#040161"


@pytest.mark.parametrize(
    "body",
    [
        der.encode(der.SEQUENCE),
        attribute(0x0C, b"\xff"),
        attribute(0x13, "\u00fc".encode()),
        attribute(0x0C, b"x" * 1025),
        attribute(0x1C, "x".encode("utf-32-be") * 1025),
        attribute(0x0C, b"x") * 65,
        der.encode(
            der.SET,
            der.encode(
                der.SEQUENCE, bytes.fromhex("0603550403"), der.encode(0x0C, b"x"), der.encode(5)
            ),
        ),
    ],
    ids=range(7),
)
def test_names_that_are_none(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse_name(der.read(der.encode(der.SEQUENCE, body)))


def certificate_with(extensions: bytes = b"", *, version: int | None = 2) -> bytes:
    """Return a certificate whose parts are given as DER; its signature means nothing."""
    algorithm = der.encode(der.SEQUENCE, bytes.fromhex("06082a8648ce3d040302"))
    name = der.encode(der.SEQUENCE, attribute(0x0C, b"x"))
    period = der.encode(der.UTC_TIME, b"260101000000Z") * 2
    parts = [
        b"" if version is None else der.encode(der.context(0), der.encode_integer(version)),
        der.encode_integer(1),
        algorithm,
        name,
        der.encode(der.SEQUENCE, period),
        name,
        pki.root().certificate.spki.raw,
        extensions and der.encode(der.context(3), der.encode(der.SEQUENCE, extensions)),
    ]
    signature = der.encode(der.BIT_STRING, b"\0x")
    return der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, *parts), algorithm, signature)


def extension(oid: str, content: bytes, *more: bytes) -> bytes:
    octets = der.encode(der.OCTET_STRING, content)
    return der.encode(der.SEQUENCE, bytes.fromhex(oid), octets, *more)


CONSTRAINTS, USAGE, EXTENDED = "0603551d13", "0603551d0f", "0603551d25"
POINTS, ACCESS = "0603551d1f", "06082b06010505070101"
TRUE, ONE = der.encode(der.BOOLEAN, b"\xff"), der.encode_integer(1)


def test_versions() -> None:
    sound = extension(CONSTRAINTS, der.encode(der.SEQUENCE, TRUE, ONE))
    assert parse_certificate(certificate_with(sound)).constraints is not None
    assert parse_certificate(certificate_with(version=None)).constraints is None
    assert parse_certificate(certificate_with(version=1)).constraints is None
    for version in (0, 3, -1):
        with pytest.raises(Malformed, match="version"):
            parse_certificate(certificate_with(version=version))
    for old in (None, 1):
        with pytest.raises(Malformed, match="version 3"):
            parse_certificate(certificate_with(sound, version=old))


@pytest.mark.parametrize(
    "broken",
    [
        extension(CONSTRAINTS, der.encode(der.SEQUENCE, TRUE, ONE, ONE)),
        extension(CONSTRAINTS, der.encode(der.SEQUENCE, ONE)),
        extension(CONSTRAINTS, der.encode(der.SEQUENCE, TRUE, der.encode_integer(-1))),
        extension(CONSTRAINTS, der.encode(der.SEQUENCE, TRUE), TRUE),
        extension(USAGE, der.encode(der.BIT_STRING)),
        extension(USAGE, der.encode(der.BIT_STRING, b"\x01")),
        extension(USAGE, der.encode(der.BIT_STRING, b"\x08\x80")),
        extension(USAGE, der.encode(der.BIT_STRING, b"\x00\x80\x00\x00")),
        extension(EXTENDED, der.encode(der.SEQUENCE, ONE)),
        extension(POINTS, der.encode(der.SEQUENCE, ONE)),
        extension(ACCESS, der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, ONE, ONE))),
        extension(
            ACCESS,
            der.encode(
                der.SEQUENCE,
                der.encode(der.SEQUENCE, bytes.fromhex("06082b06010505073001"), ONE, ONE),
            ),
        ),
    ],
    ids=range(12),
)
def test_extensions_that_are_broken(broken: bytes) -> None:
    with pytest.raises(Malformed):
        parse_certificate(certificate_with(broken))


def test_a_certificate_is_one_element_after_another() -> None:
    good = certificate_with()
    outer = list(der.read(good).parts())
    inner = list(outer[0].parts())
    more = der.encode(der.NULL)
    parse_certificate(good)
    for bad in (
        der.encode(der.SEQUENCE, *(each.raw for each in outer), more),
        der.encode(
            der.SEQUENCE,
            der.encode(der.SEQUENCE, *(each.raw for each in inner), more),
            *(each.raw for each in outer[1:]),
        ),
        good.replace(b"260101000000Z" * 1, b"260101000000X"),
    ):
        with pytest.raises(Malformed):
            parse_certificate(bad)
