"""eStargz layers: from the last bytes of a blob to its verified TOC.

Spec: stargz-snapshotter docs/estargz.md.  A blob is a row of gzip members: payloads, then one
member that holds the TOC as the only file of a tar, then the footer.  No I/O here: callers bring
the tail of the blob, learn where the TOC is, and bring its member.
"""

import msgspec

from lazyfs.digest import Digest
from lazyfs.errors import FormatError
from lazyfs.formats.footer import FOOTER_SIZE, TAILS, BadFooter, format_of_tail, parse_footer
from lazyfs.formats.streams.inflate import INFLATE_ERRORS, open_member
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.tocs.rawtoc import BadToc
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.tocs.toc_reader import decode_toc

# What to read first.  It holds the TOC of about 2,500 files, and takes as long as one round trip
# on a link of 20 ms and 100 Mbit/s: guessing too low or too high costs about the same.
TAIL_SIZE = 256 * 1024

TOC_NAME = b"stargz.index.json"
BLOCK_SIZE = 512
INFLATE_STEP = 1 << 20

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGICS = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")
TAR_MAGIC = slice(257, 262)

# Ordinary layers, and how a message says it.
LAYERS = {
    "gzip": "plain gzip",
    "zstd": "plain zstd",
    "tar": "a plain tar",
    "unknown": "plain (no footer)",
}


class NotEstargz(FormatError):
    """A blob that is something else; the message says what it looks like."""

    code = "E_NOT_ESTARGZ"


class TocLocation(msgspec.Struct, frozen=True):
    """The blob range [start, end) of the TOC's gzip member."""

    start: int
    end: int


class Layer(msgspec.Struct, frozen=True):
    """A layer's TOC, the JSON it came from, and where its payloads end in the blob."""

    toc: Toc
    toc_bytes: bytes
    payload_end: int


def find_toc(tail: bytes, blob_size: int, *, media_type: str | None = None) -> TocLocation:
    """Return where the TOC is in a blob of *blob_size* bytes that ends with *tail*.

    *tail* holds FOOTER_SIZE bytes or more, or the whole of a shorter blob.  *media_type*, the
    layer's, only helps to say what a blob is that is not eStargz.  Raises NotEstargz.
    """
    if blob_size < FOOTER_SIZE:
        raise NotEstargz(f"layer: got {blob_size} bytes, expected at least {FOOTER_SIZE}")
    try:
        footer = parse_footer(tail[-FOOTER_SIZE:])
    except BadFooter as exc:
        name = format_of(tail, blob_size, media_type)
        looks = LAYERS.get(name) or TAILS[name]
        raise NotEstargz(
            f"layer: {looks}, not eStargz or zstd:chunked",
            hint=_advice(name, exc.message),
        ) from exc
    end = blob_size - FOOTER_SIZE
    # An offset of 0 is legal: a layer without entries may consist of nothing but its TOC.
    if footer.toc_offset >= end:
        raise NotEstargz(f"footer: got TOC offset {footer.toc_offset}, expected less than {end}")
    return TocLocation(footer.toc_offset, end)


def format_of(tail: bytes, blob_size: int, media_type: str | None) -> str:
    """Return the short name of a blob's format: ``estargz``, or a key of LAYERS or TAILS.

    Where the end does not tell, the start does if *tail* is the whole blob, else *media_type*.
    """
    try:
        parse_footer(tail[-FOOTER_SIZE:])
        return "estargz"
    except BadFooter:
        name = format_of_tail(tail)
    if name != "unknown":
        return name
    head = tail if len(tail) == blob_size else b""
    kind = (media_type or "").lower()
    if head.startswith(ZSTD_MAGICS) or kind.endswith("+zstd"):
        return "zstd"
    if head.startswith(GZIP_MAGIC) or kind.endswith(("+gzip", ".gzip")):
        return "gzip"
    if head[TAR_MAGIC] == b"ustar" or kind.endswith(".tar"):
        return "tar"
    return "unknown"


def read_toc(
    member: bytes,
    *,
    expected: Digest | None,
    blob_size: int,
    limits: Limits = DEFAULT_LIMITS,
) -> Layer:
    """Return the layer whose TOC is in *member*, the bytes that find_toc located.

    The JSON's digest must be *expected* (None: not known).  Raises BadToc or DigestMismatch.
    """
    payload_end = blob_size - FOOTER_SIZE - len(member)
    if payload_end < 0:
        raise BadToc(f"TOC: got {len(member)} bytes, expected less than the layer's {blob_size}")
    # Payloads lie before the TOC, so that is all that offsets may reach.
    return read_member(member, expected=expected, payload_end=payload_end, limits=limits)


def read_member(
    member: bytes,
    *,
    expected: Digest | None,
    payload_end: int,
    limits: Limits = DEFAULT_LIMITS,
) -> Layer:
    """Return the layer whose payloads end at *payload_end* and whose TOC is in *member*.

    *member* need not come from the layer's own blob.  Raises BadToc or DigestMismatch.
    """
    toc_bytes = _only_file(_inflate(member, limits))
    toc = decode_toc(toc_bytes, expected=expected, blob_size=payload_end, limits=limits)
    return Layer(toc, toc_bytes, payload_end)


def _inflate(member: bytes, limits: Limits) -> bytes:
    """Return what one gzip member holds; nothing may follow it."""
    if len(member) > limits.member_size:
        raise BadToc(
            f"TOC: got {len(member)} compressed bytes, expected at most {limits.member_size}"
        )
    allowed = min(limits.toc_size, max(limits.small_toc_size, len(member) * limits.toc_ratio))
    allowed += 4 * BLOCK_SIZE  # the tar around it
    inflater = open_member()
    pieces: list[bytes] = []
    size = 0
    rest = member
    try:
        while not inflater.eof:
            piece = inflater.decompress(rest, INFLATE_STEP)
            rest = inflater.unconsumed_tail
            size += len(piece)
            if size > allowed:
                raise BadToc(
                    f"TOC: {len(member)} compressed bytes expand to more than {allowed} bytes"
                )
            if not piece and not rest and not inflater.eof:
                raise BadToc(f"TOC: the gzip member is cut off after {len(member)} bytes")
            pieces.append(piece)
    except INFLATE_ERRORS as exc:
        raise BadToc(f"TOC: the gzip data are damaged: {exc}") from exc
    if inflater.unused_data:
        raise BadToc(f"TOC: {len(inflater.unused_data)} bytes follow its gzip member")
    return b"".join(pieces)


def _only_file(tar: bytes) -> bytes:
    """Return the contents of the file that a tar starts with, which must be the TOC."""
    header = tar[:BLOCK_SIZE]
    if len(header) < BLOCK_SIZE:
        raise BadToc(f"TOC: got a tar of {len(tar)} bytes, expected at least {BLOCK_SIZE}")
    name = header[:100].rstrip(b"\0")
    if name != TOC_NAME or header[156:157] not in b"0\0":
        raise BadToc(f"TOC: its tar begins with {name!r}, not with the regular file {TOC_NAME!r}")
    if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise BadToc("TOC: the checksum of its tar header is wrong")
    size = _octal(header[124:136])
    if size is None:
        raise BadToc("TOC: the size in its tar header is not an octal number")
    if size > len(tar) - BLOCK_SIZE:
        raise BadToc(
            f"TOC: got a tar entry of {size} bytes, expected at most {len(tar) - BLOCK_SIZE}"
        )
    return tar[BLOCK_SIZE : BLOCK_SIZE + size]


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        return None
    return int(digits, 8)


def _advice(name: str, detail: str) -> str:
    if name == "estargz-external-toc":
        return "its TOC is in a second image, whose tag ends with -esgztoc"
    if name == "estargz-damaged":
        return detail
    return "convert the image first: lazyfs convert SRC DST"
