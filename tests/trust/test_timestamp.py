"""Time-stamps: whose word on when something was signed is taken."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from lazyfs.trust import der
from lazyfs.trust.chains import NotAllowed
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.notation.jws import parse_jws
from lazyfs.trust.timestamp import UntrustedTime, verify_token
from tests.support.trust import pki
from tests.support.trust.notation import vectors

MESSAGE = b"a signature"
MOMENT = datetime(2026, 11, 30, tzinfo=UTC)
CLOCK = pki.authority_for_time()
STAMPING = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])


def verify(token: bytes, message: bytes = MESSAGE) -> tuple[datetime, datetime]:
    found = verify_token(token, message, [pki.root().certificate])
    return found.earliest, found.latest


def accuracy(seconds: int | None, milli: int | None = None, micro: int | None = None) -> bytes:
    parts = []
    if seconds is not None:
        parts.append(der.encode_integer(seconds))
    for number, value in ((0, milli), (1, micro)):
        if value is not None:
            body = der.encode_integer(value)[2:]
            parts.append(der.encode(der.context(number, constructed=False), body))
    return der.encode(der.SEQUENCE, *parts)


def test_when() -> None:
    assert verify(pki.timestamp(CLOCK, MESSAGE)) == (MOMENT, MOMENT)
    token = pki.timestamp(CLOCK, MESSAGE, accuracy=accuracy(2, 500, 250))
    margin = timedelta(seconds=2, milliseconds=500, microseconds=250)
    assert verify(token) == (MOMENT - margin, MOMENT + margin)
    token = pki.timestamp(CLOCK, MESSAGE, accuracy=accuracy(None, 999))
    assert verify(token)[1] == MOMENT + timedelta(milliseconds=999)


@pytest.mark.parametrize(
    "given", [(-1,), (86_401,), (1 << 70,), (1, 0), (1, 1000), (1, None, 1 << 40)]
)
def test_an_accuracy_out_of_range(given: tuple[int, ...]) -> None:
    with pytest.raises(Malformed, match="accuracy"):
        verify(pki.timestamp(CLOCK, MESSAGE, accuracy=accuracy(*given)))


def test_the_ends_of_the_calendar() -> None:
    for moment in ("99991231235959Z", "00010101000000Z"):
        begin = datetime(1950, 1, 1, tzinfo=UTC)
        end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
        root = pki.issue("long", authority=True, begin=begin, end=end)
        clock = pki.issue("clock", root, begin=begin, end=end, extensions=[(STAMPING, True)])
        token = pki.timestamp(clock, MESSAGE, moment, accuracy=accuracy(60))
        with pytest.raises((Malformed, UntrustedTime)):
            verify_token(token, MESSAGE, [root.certificate])


def test_other_bytes() -> None:
    with pytest.raises(BadSignature, match="other bytes"):
        verify(pki.timestamp(CLOCK, MESSAGE), b"another signature")


def test_whose_clock() -> None:
    other = pki.issue("root", authority=True)
    with pytest.raises(UntrustedTime):
        verify_token(pki.timestamp(CLOCK, MESSAGE), MESSAGE, [other.certificate])
    with pytest.raises(UntrustedTime):
        verify_token(pki.timestamp(CLOCK, MESSAGE), MESSAGE, [])
    past = pki.authority_for_time(end=datetime(2026, 11, 29, tzinfo=UTC))
    with pytest.raises(UntrustedTime):
        verify(pki.timestamp(past, MESSAGE))


def test_a_chain_through_a_middle() -> None:
    clock = pki.issue("clock", pki.middle(), extensions=[(STAMPING, True)])
    verify(pki.timestamp(clock, MESSAGE, certificates=[pki.middle(), clock]))
    with pytest.raises(UntrustedTime):
        verify(pki.timestamp(clock, MESSAGE))


CODE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING, ExtendedKeyUsageOID.CODE_SIGNING])


@pytest.mark.parametrize(
    "extensions",
    [
        [],
        [(STAMPING, False)],
        [(CODE, True)],
        [(STAMPING, True), (pki.usage(content_commitment=True), True)],
        [(STAMPING, True), (pki.usage(digital_signature=True), False)],
        [(STAMPING, True), (x509.BasicConstraints(True, None), True)],
    ],
)
def test_whose_certificate_is_not_for_time(
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> None:
    with pytest.raises(NotAllowed):
        verify(pki.timestamp(pki.authority_for_time(extensions=extensions), MESSAGE))


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ({"certificate": None}, "missing"),
        ({"digest": None}, "missing"),
        ({"content": None}, "missing"),
        ({"digest": der.encode(der.OCTET_STRING, bytes(32))}, "other content"),
        ({"content": bytes.fromhex("06092a864886f70d010701")}, "another type"),
        (
            {
                "certificate": der.encode(
                    der.SEQUENCE,
                    der.encode(
                        der.SEQUENCE,
                        der.encode(der.SEQUENCE, der.encode(der.OCTET_STRING, bytes(32))),
                    ),
                )
            },
            "signer is missing",
        ),
    ],
)
def test_signed_attributes(attributes: dict[str, bytes | None], fault: str) -> None:
    with pytest.raises((Malformed, BadSignature), match=fault):
        verify(pki.timestamp(CLOCK, MESSAGE, attributes=attributes))


def test_what_occurs_twice_and_what_is_too_much() -> None:
    again = der.encode(
        der.SEQUENCE,
        bytes.fromhex("06092a864886f70d010904"),
        der.encode(der.SET, der.encode(der.OCTET_STRING, bytes(32))),
    )
    with pytest.raises(Malformed, match="twice"):
        verify(pki.timestamp(CLOCK, MESSAGE, more=[again]))
    with pytest.raises(Malformed, match="more than 16"):
        verify(pki.timestamp(CLOCK, MESSAGE, certificates=[CLOCK] * 17))
    strange = pki.authority_for_time(key=ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(Malformed, match="not supported"):
        verify(pki.timestamp(strange, MESSAGE))


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"inside": bytes.fromhex("06092a864886f70d010701")}, "does not contain one"),
        ({"detached": True}, "does not contain one"),
        ({"signers": 0}, "0 signatures"),
        ({"signers": 2}, "2 signatures"),
        ({"version": 2}, "unknown version"),
        ({"moment": "20261130000000.50Z"}, "not of the form"),
    ],
)
def test_what_is_no_time_stamp(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        verify(pki.timestamp(CLOCK, MESSAGE, **given))


def test_another_kind_of_message() -> None:
    token = pki.timestamp(CLOCK, MESSAGE)
    enveloped = token.replace(
        bytes.fromhex("06092a864886f70d010702"), bytes.fromhex("06092a864886f70d010703")
    )
    with pytest.raises(Malformed, match="not signed data"):
        verify(enveloped)


def test_a_twin_in_the_place_of_the_signer() -> None:
    """Same name and number, other key: the digest of the certificate tells them apart."""
    twin = pki.issue(
        "clock", pki.root(), serial=CLOCK.certificate.serial, extensions=[(STAMPING, True)]
    )
    with pytest.raises(Malformed, match="signer is missing"):
        verify(pki.timestamp(CLOCK, MESSAGE, certificates=[twin]))
    verify(pki.timestamp(CLOCK, MESSAGE, certificates=[twin, CLOCK]))


def test_a_broken_signature() -> None:
    token = pki.timestamp(CLOCK, MESSAGE)
    with pytest.raises((BadSignature, Malformed)):
        verify(token[:-1] + bytes([token[-1] ^ 1]))


def test_what_openssl_makes_is_read() -> None:
    """Its certificates are not sorted, which DER asks for and other readers insist on."""
    envelope = parse_jws(vectors().envelope("jws-tsa-tsa"))
    assert envelope.timestamp is not None
    store = vectors().policy("tsa")
    assert b"tsa:main" in store
    from lazyfs.trust.certificates import parse_certificates
    from tests.support.trust.notation import NOTATION

    data = (NOTATION / "truststore/x509/tsa/main/tsa.pem").read_bytes()
    found = verify_token(envelope.timestamp, envelope.signature, parse_certificates(data, 9))
    assert found.earliest.year == 2026
    assert len(found.chain) > 1
