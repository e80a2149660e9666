"""DER, CBOR and JSON: one meaning for every document, and none for anything else."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.trust import cbor, der
from lazyfs.trust.errors import Malformed
from lazyfs.trust.strict_json import parse, parse_object


def value(text: str) -> der.Value:
    return der.read(bytes.fromhex(text), None)


# DER


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("", "cut off"),
        ("30", "cut off"),
        ("3002", "cut off"),
        ("308000", "indefinite"),
        ("300000", "behind"),
        ("30810102", "shortest"),
        ("3082000102", "shortest"),
        ("3085000000000100", "5 bytes"),
        ("308201", "cut off"),
        ("3084ffffffff", "cut off"),
        ("3f2000", "above 30"),
        ("31 00", "expected 0x30"),
    ],
)
def test_what_is_not_der(data: str, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        der.read(bytes.fromhex(data), None if fault == "above 30" else der.SEQUENCE)


@given(st.integers(-(1 << 200), 1 << 200))
def test_integers(number: int) -> None:
    assert der.read(der.encode_integer(number), der.INTEGER).integer() == number


@pytest.mark.parametrize("data", ["0200", "020200 01", "0202ff80", "0202 007f", "0101ff"])
def test_integers_that_are_not(data: str) -> None:
    with pytest.raises(Malformed):
        value(data).integer()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("0603551d13", "2.5.29.19"),
        ("06092a864886f70d010702", "1.2.840.113549.1.7.2"),
        ("0603883703", "2.999.3"),
        ("060127", "0.39"),
        ("0600", None),
        ("0602 8055", None),
        ("060355 8001", None),
        ("060255 80", None),
        ("0641" + "01" * 65, None),
    ],
)
def test_object_identifiers(data: str, text: str | None) -> None:
    if text is not None:
        assert value(data).oid() == text
        return
    with pytest.raises(Malformed):
        value(data).oid()


def test_booleans_and_bits() -> None:
    assert value("0101ff").boolean()
    assert not value("010100").boolean()
    assert value("030200a5").bits() == b"\xa5"
    for bad in ("010101", "0100", "01020000"):
        with pytest.raises(Malformed):
            value(bad).boolean()
    for bad in ("0300", "030201a4", "0400"):
        with pytest.raises(Malformed):
            value(bad).bits()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("20261201000000Z", datetime(2026, 12, 1, tzinfo=UTC)),
        ("20261201000000.25Z", datetime(2026, 12, 1, microsecond=250000, tzinfo=UTC)),
        ("20261201000000.123456789Z", datetime(2026, 12, 1, microsecond=123456, tzinfo=UTC)),
        ("99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("20261201000000.50Z", None),
        ("20261201000000.Z", None),
        ("20261201000000,5Z", None),
        ("20261201000000+0100", None),
        ("20261301000000Z", None),
        ("20261201000000", None),
    ],
)
def test_times(text: str, moment: datetime | None) -> None:
    found = der.read(der.encode(der.GENERALIZED_TIME, text.encode()), None)
    if moment is not None:
        assert found.time() == moment
        return
    with pytest.raises(Malformed):
        found.time()


def test_nesting_and_numbers_are_bounded() -> None:
    data = b""
    for _ in range(100):
        data = der.encode(der.SEQUENCE, data)
    found = der.read(data)
    for _ in range(der.DEPTH_LIMIT):
        found = found.parts().take()
    with pytest.raises(Malformed, match="32 levels"):
        found.parts()
    many = der.read(der.encode(der.SEQUENCE, b"\x05\x00" * 5000))
    with pytest.raises(Malformed, match="4096"):
        list(many.parts())
    with pytest.raises(Malformed, match="longer than"):
        der.read(bytes(der.SIZE_LIMIT + 1))
    with pytest.raises(Malformed, match="no parts"):
        value("0500").parts()
    # The element says that it is longer than what it is in.
    with pytest.raises(Malformed, match="cut off"):
        value("3003 020500").parts().take()


@given(st.binary(max_size=300))
def test_lengths_of_every_size(body: bytes) -> None:
    found = der.read(der.encode(der.OCTET_STRING, body), der.OCTET_STRING)
    assert found.octets() == body
    assert found.raw == der.encode(der.OCTET_STRING, body)


# CBOR: the examples of RFC 8949, appendix A, that concern us


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("00", 0),
        ("17", 23),
        ("1818", 24),
        ("1903e8", 1000),
        ("1a000f4240", 1000000),
        ("1bffffffffffffffff", 18446744073709551615),
        ("20", -1),
        ("3903e7", -1000),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("4401020304", b"\1\2\3\4"),
        ("6449455446", "IETF"),
        ("62c3bc", "\u00fc"),
        ("8301820203820405", [1, [2, 3], [4, 5]]),
        ("a201020304", {1: 2, 3: 4}),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("c11a514b67b0", cbor.Tagged(1, 1363896240)),
        ("d28440a0f640", cbor.Tagged(18, [b"", {}, None, b""])),
    ],
)
def test_cbor(data: str, expected: object) -> None:
    assert cbor.decode(bytes.fromhex(data)) == expected


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("", "cut off"),
        ("18", "cut off"),
        ("1817", "shortest"),
        ("1900ff", "shortest"),
        ("1a0000ffff", "shortest"),
        ("1b00000000ffffffff", "shortest"),
        ("5801ff", "shortest"),
        ("1c", "reserved"),
        ("5f42010243030405ff", "indefinite"),
        ("9fff", "indefinite"),
        ("bf61610161629f0203ffff", "indefinite"),
        ("f93c00", "floating"),
        ("f7", "unknown simple"),
        ("f8ff", "unknown simple"),
        ("62c328", "UTF-8"),
        ("a201020103", "twice"),
        ("a2616101616102", "twice"),
        ("a1f501", "neither"),
        ("a1f401", "neither"),
        ("a1410101", "neither"),
        ("0000", "behind"),
        ("8301", "cut off"),
        ("9bffffffffffffffff", "cut off"),
        ("bbffffffffffffffff", "cut off"),
        ("5bffffffffffffffff", "cut off"),
        ("9a00ffffff00", "cut off"),
    ],
)
def test_what_is_not_cbor_to_us(data: str, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        cbor.decode(bytes.fromhex(data))


def test_cbor_is_bounded() -> None:
    with pytest.raises(Malformed, match="16 levels"):
        cbor.decode(b"\x81" * 2000 + b"\x00")
    with pytest.raises(Malformed, match="16 levels"):
        cbor.decode(b"\xc1" * 2000 + b"\x00")
    with pytest.raises(Malformed, match="10000 items"):
        cbor.decode(b"\x99\x4e\x20" + bytes(20000))
    with pytest.raises(Malformed, match="longer than"):
        cbor.decode(bytes(cbor.SIZE_LIMIT + 1))


# JSON


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": {"b": 1, "\\u0062": 2}}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": ' + "9" * 100 + "}",
        '{"a": 0.' + "9" * 100 + "}",
        '{"a": "\\ud800"}',
        '{"\\udfff": 1}',
        "\ufeff{}",
        "{} x",
        "{}{}",
        "{} // x",
        "{'a': 1}",
        '{"a": 1,}',
        '{"a": "\n"}',
        "[]",
        "1",
        "",
        "{",
    ],
)
def test_what_is_not_an_object_of_json(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_object(text.encode("utf-8", "surrogatepass"), "the thing")
    assert caught.value.message.startswith("the thing")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("data", [b'{"a": "\xff"}', b'{"\xc3": 1}', '{"a": 1}'.encode("utf-16")])
def test_json_is_utf_8(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(data, "the thing")


def test_json_is_bounded() -> None:
    for open_, close in (("[", "]"), ('{"a":', "}")):
        for depth in (40, 200_000):
            inner = open_ * depth + "1" + close * depth
            with pytest.raises(Malformed, match="levels deep"):
                parse(inner.encode(), "the thing", 1 << 24)
    with pytest.raises(Malformed, match="longer than 10 bytes"):
        parse(b'{"a":   1}  ', "the thing", 10)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_that_is_sound_means_what_it_means(document: object) -> None:
    assert parse(json.dumps(document).encode(), "the thing") == document
