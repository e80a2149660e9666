"""Times of TOC entries."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.tocs.modtime import parse_modtime


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", (0, 0)),
        ("2023-11-14T22:13:20Z", (1_700_000_000, 0)),
        ("2023-11-14T22:13:20.1234567Z", (1_700_000_000, 123_456_700)),
        ("2023-11-14T22:13:20.999999999999Z", (1_700_000_000, 999_999_999)),
        ("1969-12-31T23:59:59Z", (-1, 0)),
        ("1969-12-31T23:59:59.5Z", (-1, 500_000_000)),
        ("0001-01-01T00:00:00Z", (-62_135_596_800, 0)),
        ("0000-02-29T00:00:00Z", (-62_162_121_600, 0)),
        ("-0001-12-31T23:59:59Z", (-62_167_219_201, 0)),
        ("2200-01-01T00:00:00Z", (7_258_118_400, 0)),
        ("9999-12-31T23:59:59Z", (253_402_300_799, 0)),
        ("10000-01-01T00:00:00Z", (253_402_300_800, 0)),
        ("2016-12-31T23:59:60Z", (1_483_228_800, 0)),
        ("2023-11-15T00:13:20+02:00", (1_700_000_000, 0)),
        ("2023-11-14t17:43:20-04:30", (1_700_000_000, 0)),
    ],
)
def test_known_times(text, expected):
    assert parse_modtime(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2023-11-14",
        "2023-11-14T22:13:20",
        "2023-11-14 22:13:20Z",
        "2023-13-14T22:13:20Z",
        "2023-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2023-00-10T00:00:00Z",
        "2023-01-00T00:00:00Z",
        "2023-01-01T24:00:00Z",
        "2023-01-01T00:60:00Z",
        "2023-01-01T00:00:61Z",
        "2023-01-01T00:00:00.Z",
        "2023-01-01T00:00:00Zx",
        "2023-01-01T00:00:00Z\n",
        "٢٠٢٣-01-01T00:00:00Z",
        "9999999999-01-01T00:00:00Z",
        "now",
    ],
)
def test_refused(text):
    with pytest.raises(
        ValueError, match=r"time .* (is not in the form of RFC 3339|does not exist)"
    ):
        parse_modtime(text)


zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(timezones=st.just(UTC)), zones)
def test_agrees_with_datetime(moment, zone):
    try:
        text = moment.astimezone(zone).isoformat()
    except OverflowError:
        text = moment.isoformat()
    seconds, nanoseconds = parse_modtime(text)
    elapsed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert seconds == elapsed.days * 86400 + elapsed.seconds
    assert nanoseconds == elapsed.microseconds * 1000


@given(st.text(max_size=40))
def test_any_text(text):
    with pytest.raises(ValueError, match="RFC 3339"):
        parse_modtime(text)
