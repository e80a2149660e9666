"""OCSP answers made by hand, each broken in one place."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from lazyfs.trust import der, ocsp
from lazyfs.trust.errors import BadSignature, Malformed
from tests.support.trust import pki

LEAF = pki.issue("leaf", pki.root(), serial=77)
BEGIN, END = (
    der.encode(der.GENERALIZED_TIME, text) for text in (b"20260101000000Z", b"20490101000000Z")
)
UNTIL = der.encode(der.context(0), END)
GOOD = der.encode(der.context(0, constructed=False))
REVOKED = der.encode(der.context(1), BEGIN)
BY_KEY = der.encode(der.context(2), der.encode(der.OCTET_STRING, bytes(20)))
BASIC = bytes.fromhex("06092b0601050507300101")
ECDSA = der.encode(der.SEQUENCE, bytes.fromhex("06082a8648ce3d040302"))
OIDS = {"sha1": "06052b0e03021a", "sha256": "0609608648016503040201", "md5": "06082a864886f70d0205"}


def identifier(
    hash_name: str = "sha1", serial: int = 77, issuer: pki.Issued | None = None
) -> bytes:
    certificate = (issuer or pki.root()).certificate
    name, key = certificate.subject.raw, certificate.key_bits
    return der.encode(
        der.SEQUENCE,
        der.encode(der.SEQUENCE, bytes.fromhex(OIDS[hash_name]), der.encode(der.NULL)),
        der.encode(der.OCTET_STRING, hashlib.new(hash_name, name).digest()),
        der.encode(der.OCTET_STRING, hashlib.new(hash_name, key).digest()),
        der.encode_integer(serial),
    )


def single(*more: bytes, state: bytes = GOOD, until: bytes = UNTIL, name: bytes = b"") -> bytes:
    return der.encode(der.SEQUENCE, name or identifier(), state, BEGIN, until, *more)


def answer(
    *singles: bytes,
    responder: bytes = BY_KEY,
    more: bytes = b"",
    kind: bytes = BASIC,
    certificates: bytes = b"",
) -> bytes:
    signed = der.encode(der.SEQUENCE, responder, BEGIN, der.encode(der.SEQUENCE, *singles), more)
    assert isinstance(pki.root().key, ec.EllipticCurvePrivateKey)
    signature = pki.root().key.sign(signed, ec.ECDSA(pki.SHA256))
    basic = der.encode(
        der.SEQUENCE, signed, ECDSA, der.encode(der.BIT_STRING, b"\0" + signature), certificates
    )
    inner = der.encode(der.SEQUENCE, kind, der.encode(der.OCTET_STRING, basic))
    return der.encode(der.SEQUENCE, b"\x0a\x01\x00", der.encode(der.context(0), inner))


def state(data: bytes) -> str:
    return ocsp.status_of(data, LEAF.certificate, pki.root().certificate, pki.NOW).state


def extensions(number: int, *, critical: bool) -> bytes:
    flag = der.encode(der.BOOLEAN, b"\xff") if critical else b""
    one = der.encode(
        der.SEQUENCE, bytes.fromhex("06022a03"), flag, der.encode(der.OCTET_STRING, b"")
    )
    return der.encode(der.context(number), der.encode(der.SEQUENCE, one))


def test_answers_made_by_hand() -> None:
    assert state(answer(single())) == "good"
    assert state(answer(single(state=REVOKED))) == "revoked"
    assert state(answer(single(name=identifier("sha256")))) == "good"
    other = single(name=identifier(serial=78), state=REVOKED)
    assert state(answer(other, single(), other)) == "good"
    assert state(answer(single(extensions(1, critical=False)), more=extensions(1, critical=False)))
    by_name = der.encode(der.context(1), pki.root().certificate.subject.raw)
    assert state(answer(single(), responder=by_name)) == "good"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (answer(single(), kind=bytes.fromhex("06022a03")), "unknown kind"),
        (answer(single(), responder=b""), "responder"),
        (answer(single(), responder=der.encode(der.context(3), BY_KEY)), "responder"),
        (answer(single(name=identifier("md5"))), "uses the hash"),
        (answer(*[single()] * 257), "more than 256"),
        (
            answer(
                single(),
                certificates=der.encode(der.context(0), der.encode(der.SEQUENCE, *[LEAF.der] * 6)),
            ),
            "more than 5",
        ),
        (answer(single(), more=extensions(1, critical=True)), "critical extension 1.2.3"),
        (answer(single(extensions(1, critical=True))), "critical extension 1.2.3"),
        (answer(single(state=der.encode(der.context(3, constructed=False)))), "unknown status"),
        (answer(single(state=der.encode(der.context(0, constructed=False), b"x"))), "unknown st"),
        (answer(single(state=der.encode(der.context(1)))), "cut off"),
        (answer(single(until=b"")), "until when"),
        (answer(single(until=END)), "behind"),
        (answer(), "about other"),
        (answer(single(), single(state=REVOKED)), "about other"),
        (answer(single(name=identifier(issuer=pki.middle()))), "about other"),
        (bytes(ocsp.SIZE_LIMIT + 1), "longer than"),
    ],
    ids=range(17),
)
def test_answers_that_say_nothing(data: bytes, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        state(data)


def test_a_signature_over_something_else() -> None:
    good = answer(single())
    with pytest.raises(BadSignature):
        state(good.replace(BEGIN, BEGIN.replace(b"2026", b"2025")))
