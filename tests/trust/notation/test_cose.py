"""COSE envelopes made by hand: each rule, broken once."""

from typing import Any

import pytest

from lazyfs.trust import cbor
from lazyfs.trust.cbor import Tagged
from lazyfs.trust.errors import BadSignature, Malformed
from lazyfs.trust.notation.cose import parse_cose, signed_bytes
from lazyfs.trust.notation.envelope import (
    AUTHENTIC_TIME,
    EXPIRY,
    LAST_SECOND,
    PAYLOAD_TYPE,
    SCHEME,
    SIGNING_TIME,
    TIMESTAMP,
    X509,
)
from tests.support.trust import pki
from tests.support.trust.notation import vectors

LEAF = pki.issue("leaf", pki.root())
PAYLOAD = pki.payload("sha256:" + "0" * 64, 7)
CHAIN = [LEAF.der, pki.root().der]


def encode(value: Any) -> bytes:
    """Return CBOR for the few types that envelopes consist of."""
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encode, value))
    if isinstance(value, dict):
        inner = b"".join(encode(key) + encode(each) for key, each in value.items())
        return head(5, len(value)) + inner
    assert isinstance(value, Tagged)
    return head(6, value.tag) + encode(value.value)


def head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major << 5 | value])
    for detail, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << (8 * size):
            return bytes([major << 5 | detail]) + value.to_bytes(size)
    raise AssertionError(value)


def cose(
    protected: dict[Any, Any] | None = None,
    unprotected: dict[Any, Any] | None = None,
    *,
    payload: Any = PAYLOAD,
    tag: int = 18,
    parts: list[Any] | None = None,
) -> bytes:
    """Return an envelope; an attribute that is None is left out."""
    signed = {
        1: -7,
        2: [SCHEME],
        3: PAYLOAD_TYPE,
        SCHEME: X509,
        SIGNING_TIME: Tagged(1, 1796000000),
        **(protected or {}),
    }
    header = encode({key: value for key, value in signed.items() if value is not None})
    given = {33: CHAIN, **(unprotected or {})}
    beside = {key: value for key, value in given.items() if value is not None}
    signature = pki.sign(
        LEAF.key, signed_bytes(header, payload if isinstance(payload, bytes) else b"")
    )
    return encode(Tagged(tag, parts or [header, beside, payload, signature]))


def test_a_good_one() -> None:
    found = parse_cose(cose())
    found.verify()
    assert found.algorithm == "ES256"
    assert found.target.size == 7
    assert found.timestamp is None
    assert parse_cose(cose({2: [1, 3, SCHEME, SIGNING_TIME]})).target.size == 7
    assert parse_cose(cose({99: b"x", "other": None})).target.size == 7
    assert parse_cose(cose(None, {TIMESTAMP: b"x"})).timestamp == b"x"


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 65535, 65536])
def test_what_is_signed(size: int) -> None:
    expected = encode(["Signature1", b"p" * size, b"", b"q" * size])
    assert signed_bytes(b"p" * size, b"q" * size) == expected
    assert cbor.decode(expected) == ["Signature1", b"p" * size, b"", b"q" * size]


@pytest.mark.parametrize(
    ("protected", "fault"),
    [
        ({2: None}, "what is critical"),
        ({2: []}, "not marked"),
        ({2: SCHEME}, "what is critical"),
        ({2: [True, SCHEME]}, "what is critical"),
        ({2: [SCHEME, SCHEME]}, "twice"),
        ({2: [SCHEME, 99]}, "absent"),
        ({2: [SCHEME, 99], 99: 1}, "unknown"),
        ({2: [SCHEME, "x"], "x": 1}, "unknown"),
        ({3: None}, "payload is of type"),
        ({3: 50}, "payload is of type"),
        ({SCHEME: 1}, "scheme"),
        ({SCHEME: None}, "scheme"),
        ({SIGNING_TIME: None}, "missing"),
        ({SIGNING_TIME: 1796000000}, "not tagged"),
        ({SIGNING_TIME: Tagged(0, "2026-01-01T00:00:00Z")}, "not tagged"),
        ({SIGNING_TIME: Tagged(1, "x")}, "number of seconds"),
        ({SIGNING_TIME: Tagged(1, True)}, "number of seconds"),
        ({SIGNING_TIME: Tagged(1, -1)}, "number of seconds"),
        ({SIGNING_TIME: Tagged(1, LAST_SECOND + 1)}, "number of seconds"),
        ({SIGNING_TIME: Tagged(1, (1 << 64) - 1)}, "number of seconds"),
        ({AUTHENTIC_TIME: Tagged(1, 1796000000)}, "does not go"),
        ({EXPIRY: Tagged(1, 1796000001)}, "not marked"),
        ({EXPIRY: Tagged(1, 1796000000), 2: [SCHEME, EXPIRY]}, "expires before"),
        ({33: CHAIN}, "both headers"),
    ],
)
def test_signed_attributes(protected: dict[Any, Any], fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        parse_cose(cose(protected))


def test_the_last_second_of_the_calendar() -> None:
    found = parse_cose(cose({EXPIRY: Tagged(1, LAST_SECOND), 2: [SCHEME, EXPIRY]}))
    assert found.expiry is not None
    assert found.expiry.year == 9999


@pytest.mark.parametrize(
    ("unprotected", "fault"),
    [
        ({33: None}, "chain is missing"),
        ({33: []}, "chain is missing"),
        ({33: LEAF.der}, "chain is missing"),
        ({33: ["x"]}, "chain is missing"),
        ({33: CHAIN * 6}, "longer than"),
        ({TIMESTAMP: "x"}, "not a byte string"),
        ({1: -7}, "both headers"),
    ],
)
def test_attributes_that_are_not_signed(unprotected: dict[Any, Any], fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        parse_cose(cose(None, unprotected))


@pytest.mark.parametrize(
    "data",
    [
        cose(tag=17),
        cose(tag=98),
        cose()[1:],
        cose(payload=None),
        cose(payload="text"),
        cose(parts=[b"", {}, b"", b""]),
        cose(parts=[b"\xa0", {}, b""]),
        cose(parts=[b"\xa0", {}, b"", b"", b""]),
        cose(parts=[b"\xa0", [], b"", b""]),
        cose(parts=[b"\x80", {}, b"", b""]),
        cose(parts=[{}, {}, b"", b""]),
        encode(Tagged(18, {})),
        encode([b"", {}, b"", b""]),
    ],
    ids=range(13),
)
def test_what_is_no_envelope(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_cose(data)


@pytest.mark.parametrize("number", [-35, -37, -8, 5, None, "ES256"])
def test_an_algorithm_that_the_key_is_not_for(number: Any) -> None:
    with pytest.raises(Malformed, match="asks for ES256"):
        parse_cose(cose({1: number})).verify()


def test_the_signature_is_over_both() -> None:
    good = cose()
    changed = good.replace(b'"size": 7', b'"size": 8')
    assert changed != good
    with pytest.raises(BadSignature):
        parse_cose(changed).verify()
    with pytest.raises(BadSignature):
        parse_cose(good[:-1] + bytes([good[-1] ^ 1])).verify()


def test_real_ones_are_understood() -> None:
    for key, name in (("rsa3072", "PS384"), ("p521", "ES512")):
        found = parse_cose(vectors().envelope(f"cose-{key}"))
        assert found.algorithm == name
        found.verify()
