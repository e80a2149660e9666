"""Find the table of contents from the last bytes of an eStargz blob.

Spec: stargz-snapshotter docs/estargz.md, "Footer": 51 bytes, an empty gzip member whose extra
field carries the TOC's offset.  No I/O here: callers bring the bytes.

    0   gzip header: 1f 8b, deflate, FEXTRA, time 0, flags 0, system 255
    10  length of the extra field, 26
    12  subfield "SG", length 22: 16 lower-case hex digits and "STARGZ"
    38  an empty stored block, the last
    43  CRC and size of nothing

Neighbouring formats end in footers of their own; ``format_of_tail`` tells them apart, so that a
refusal can say what a blob is instead.
"""

import re

import msgspec

from lazyfs.errors import FormatError

FOOTER_SIZE = 51
MAX_TOC_OFFSET = 2**63 - 1

GZIP_HEADER = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff"
EMPTY_MEMBER_END = b"\x01\x00\x00\xff\xff" + bytes(8)
ESTARGZ_HEAD = GZIP_HEADER + b"\x1a\x00SG\x16\x00"
# int() alone would accept signs, blanks and underscores.
PAYLOAD_RE = re.compile(rb"([0-9a-f]{16})STARGZ")

LEGACY_HEAD = GZIP_HEADER + b"\x16\x00"
LEGACY_SIZE = 47
EXTERNAL_SIZE = 46
EXTERNAL_TOC = GZIP_HEADER + b"\x15\x00SG\x11\x00STARGZEXTERNALTOC" + EMPTY_MEMBER_END
ZSTD_CHUNKED_MAGICS = (b"GnUlInUx", b"GNUlInUx")  # two dialects

# Short names of what a blob's end can tell, and how a message says it.
TAILS = {
    "estargz-external-toc": "an eStargz blob with an external TOC",
    "stargz": "a legacy stargz blob (crfs)",
    "zstd:chunked": "a zstd:chunked blob",
    "estargz-damaged": "a damaged eStargz footer",
    "unknown": "no footer",
}


class BadFooter(FormatError):
    """The last bytes of a blob are not an eStargz footer."""

    code = "E_NOT_ESTARGZ"


class Footer(msgspec.Struct, frozen=True):
    """Where the TOC's gzip member starts, in bytes from the start of the blob."""

    toc_offset: int


def parse_footer(data: bytes) -> Footer:
    """Return the footer held in *data*, the last FOOTER_SIZE bytes of a blob, or raise BadFooter.

    Whether the offset lies inside the blob is for the caller to check, who knows its size.
    """
    if len(data) != FOOTER_SIZE:
        raise BadFooter(f"footer: got {len(data)} bytes, expected {FOOTER_SIZE}")
    if not data.startswith(ESTARGZ_HEAD) or not data.endswith(EMPTY_MEMBER_END):
        raise BadFooter(f"footer: not that of an eStargz layer ({TAILS[format_of_tail(data)]})")
    payload = data[len(ESTARGZ_HEAD) : -len(EMPTY_MEMBER_END)]
    match = PAYLOAD_RE.fullmatch(payload)
    if match is None:
        raise BadFooter(f"footer: its payload {payload!r} is not 16 hex digits and STARGZ")
    toc_offset = int(match[1], 16)
    if toc_offset > MAX_TOC_OFFSET:
        raise BadFooter(f"footer: got TOC offset {toc_offset}, expected at most {MAX_TOC_OFFSET}")
    return Footer(toc_offset)


def build_footer(toc_offset: int) -> bytes:
    """Return the footer of a blob whose TOC member starts at *toc_offset*."""
    if not 0 <= toc_offset <= MAX_TOC_OFFSET:
        raise ValueError(f"TOC offset: got {toc_offset}, expected 0 to {MAX_TOC_OFFSET}")
    return ESTARGZ_HEAD + b"%016xSTARGZ" % toc_offset + EMPTY_MEMBER_END


def parse_legacy_footer(data: bytes) -> Footer:
    """Return the footer of a legacy stargz blob (crfs) that ends with *data*, or raise BadFooter.

    LEGACY_SIZE bytes: the eStargz footer without "SG" and its length.
    """
    data = data[-LEGACY_SIZE:]
    match = PAYLOAD_RE.fullmatch(data[len(LEGACY_HEAD) : -len(EMPTY_MEMBER_END)])
    if not data.startswith(LEGACY_HEAD) or not data.endswith(EMPTY_MEMBER_END) or match is None:
        raise BadFooter(f"footer: {data!r} is not a legacy stargz footer")
    return Footer(int(match[1], 16))


def format_of_tail(tail: bytes) -> str:
    """Return the short name of the format that a blob with these last bytes follows.

    One of TAILS; ``unknown`` where the end says nothing, as that of an ordinary layer.
    """
    if tail.endswith(EXTERNAL_TOC):
        return "estargz-external-toc"
    legacy = tail[-LEGACY_SIZE:]
    if legacy.startswith(LEGACY_HEAD) and PAYLOAD_RE.fullmatch(legacy[12:34]):
        return "stargz"
    if tail.endswith(ZSTD_CHUNKED_MAGICS):
        return "zstd:chunked"
    if tail[-FOOTER_SIZE:].startswith(ESTARGZ_HEAD):
        return "estargz-damaged"
    return "unknown"
