"""Sizes, shares and rates as people write them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cli.quantities import (
    BadQuantity,
    parse_budget,
    parse_duration,
    parse_rate,
    size_text,
)
from lazyfs.store.upkeep.budget import Budget


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("17B", 17),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1k", 1024),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("10GB", 10**10),
        ("10 GB", 10**10),
        ("1.5GiB", 3 << 29),
        ("0.1kB", 100),
        ("2TiB", 2 << 40),
        ("2TB", 2 * 10**12),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_sizes(text, size):
    assert parse_budget(text) == Budget(size=size)
    assert parse_rate(text) == size
    assert parse_rate(f"{text}/s") == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "B", "MB", "-1", "+1", "1e9", "1,5GB", ".5GB", "5.", "0x10", "1 0", " 1", "1 "),
        *("10XB", "10MBB", "10Mb", "10b", "10GBs", "1Ki B", "10Mbit", "10GB/s", "٣", "1_000"),
        *("9223372036854775808", "8388608TiB", "1" * 21, "1\n", "1\0"),
    ],
)
def test_no_sizes(text):
    with pytest.raises(BadQuantity, match=r"is not a size such as|is more than"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "share"), [("20%", 0.2), ("100%", 1.0), ("0%", 0.0), ("2.5 %", 0.025)]
)
def test_shares(text, share):
    assert parse_budget(text) == Budget(share=share)


@pytest.mark.parametrize("text", ["101%", "100.01%", "-1%", "%", "20%%", "20 % "])
def test_no_shares(text):
    with pytest.raises(BadQuantity, match=r"is not a size such as|is more than"):
        parse_budget(text)


def test_a_share_is_of_the_filesystem(tmp_path):
    status = os.statvfs(tmp_path)
    whole = status.f_blocks * status.f_frsize
    assert parse_budget("100%").size_in(tmp_path) == whole
    assert parse_budget("25%").size_in(tmp_path) == whole // 4
    assert parse_budget("1GB").size_in(tmp_path) == 10**9


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0", 0),
        ("0MB/s", 0),
        ("10MB/s", 10**7),
        ("10MiB/s", 10 << 20),
        ("100Mbit/s", 12_500_000),
        ("100mbit", 12_500_000),
        ("1Gbit/s", 125_000_000),
        ("8bit/s", 1),
        ("8Kibit/s", 1024),
    ],
)
def test_rates(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "/s", "10Mb/s", "10MB/h", "10MB/s/s", "20%", "Mbit/s", "1bit/s", "0.5B/s", "-1"]
)
def test_no_rates(text):
    with pytest.raises(BadQuantity, match=r"is not a rate such as|is less than one byte"):
        parse_rate(text)


@given(st.text(max_size=30))
def test_any_text_is_a_quantity_or_refused(text):
    for parse in (parse_budget, parse_rate):
        try:
            parse(text)
        except BadQuantity:
            pass


@given(st.integers(0, 1 << 40))
def test_what_is_shown_can_be_parsed(size):
    assert abs(parse_rate(size_text(size)) - size) <= max(size / 10, 1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("1.5 h", 5400)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1", "-1s", "1w", "1M", "1 day", "h1", "1e3s", "nan"])
def test_no_durations(text):
    with pytest.raises(BadQuantity, match="is not a time such as"):
        parse_duration(text)
