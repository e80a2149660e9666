"""The 51 bytes at the end, and their neighbours'."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.footer import (
    FOOTER_SIZE,
    MAX_TOC_OFFSET,
    TAILS,
    BadFooter,
    Footer,
    build_footer,
    format_of_tail,
    parse_footer,
)
from tests.support.formats.readers import check_fixed

OFFSET = 0x1A2B3C
ESTARGZ = bytes.fromhex(
    "1f8b08040000000000ff1a00534716003030303030303030303031613262336353544152475a"
    "010000ffff0000000000000000"
)
LEGACY = bytes.fromhex(
    "1f8b08040000000000ff16003030303030303030303031613262336353544152475a010000ffff0000000000000000"
)
EXTERNAL = (
    bytes.fromhex("1f8b08040000000000ff150053471100")
    + b"STARGZEXTERNALTOC"
    + bytes.fromhex("010000ffff0000000000000000")
)
ZSTD_CHUNKED = bytes.fromhex(
    "502a4d1828000000e8030000000000002c01000000000000d0070000000000000100000000000000"
    "476e556c496e5578"
)


def test_known_vector():
    check_fixed(parse_footer, ESTARGZ, Footer(OFFSET), BadFooter)
    assert build_footer(OFFSET) == ESTARGZ
    assert len(ESTARGZ) == FOOTER_SIZE
    assert gzip.decompress(ESTARGZ) == b""


@given(st.integers(0, MAX_TOC_OFFSET))
def test_round_trip(offset):
    assert parse_footer(build_footer(offset)) == Footer(offset)


@pytest.mark.parametrize("offset", [-1, MAX_TOC_OFFSET + 1])
def test_impossible_offsets_are_not_built(offset):
    with pytest.raises(ValueError, match="TOC offset"):
        build_footer(offset)


@pytest.mark.parametrize(
    "digits",
    [
        b"00000000001A2B3C",  # capitals
        b"+0000000001a2b3c",
        b"-0000000001a2b3c",
        b" 0000000001a2b3c",
        b"0x000000001a2b3c",
        b"0_00000001a2b3c0",
        b"000000000000000g",
        b"8000000000000000",  # beyond a signed 64-bit number
        b"ffffffffffffffff",
    ],
)
def test_offsets_are_sixteen_lower_case_digits(digits):
    with pytest.raises(BadFooter, match="footer: "):
        parse_footer(ESTARGZ[:16] + digits + ESTARGZ[32:])


@pytest.mark.parametrize("at", [*range(16), *range(32, FOOTER_SIZE)])
def test_every_byte_counts(at):
    with pytest.raises(BadFooter):
        parse_footer(ESTARGZ[:at] + bytes([ESTARGZ[at] ^ 1]) + ESTARGZ[at + 1 :])


@pytest.mark.parametrize(
    ("tail", "name"),
    [
        (LEGACY, "legacy stargz"),
        (EXTERNAL, "external TOC"),
        (ZSTD_CHUNKED, "zstd:chunked"),
        (ZSTD_CHUNKED[:-8] + b"GNUlInUx", "zstd:chunked"),
        (gzip.compress(b"x" * 100, mtime=0), "no footer"),
        (ESTARGZ[:-1] + b"x", "damaged"),
    ],
)
def test_neighbours_are_named(tail, name):
    padded = b"\xee" * 100 + tail
    assert name in TAILS[format_of_tail(padded)]
    with pytest.raises(BadFooter, match=name):
        parse_footer(padded[-FOOTER_SIZE:])


@given(st.binary(max_size=120))
def test_random_bytes_are_refused(data):
    with pytest.raises(BadFooter):
        parse_footer(data)
    assert format_of_tail(data) in TAILS
