"""zstd:chunked layers, in both dialects: from the last bytes of a blob to its verified TOC.

A blob is a row of zstd frames: payloads, then skippable frames with the TOC (itself a zstd frame
of JSON), in one dialect with a tar-split document, and with the footer.  All numbers of the
footer are little-endian, 8 bytes each:

    0   TOC: blob offset (behind the skippable frame's header), size, plain size, type 1
    32  only in the longer one, tar-split: blob offset, size, plain size
    -8  magic: "GnUlInUx" in stargz's dialect, "GNUlInUx" in that of containers/storage

Spec: stargz-snapshotter docs/overview.md, "zstd:chunked"; containers/storage docs.  No I/O here.
"""

import struct

import msgspec

from lazyfs.digest import verify_digest
from lazyfs.errors import FormatError
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.streams.unzstd import BadFrame, unzstd
from lazyfs.formats.tocs.claims import CONTAINERS, STARGZ, TOC_TYPE, BadAnnotation, Claims, Place
from lazyfs.formats.tocs.rawtoc import BadToc
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.tocs.toc_reader import decode_toc

SKIPPABLE_MAGIC = b"\x50\x2a\x4d\x18"
FRAME_HEADER_SIZE = 8  # magic and size
SHORT, LONG = struct.Struct("<4sI4Q8s"), struct.Struct("<4sI7Q8s")
MAX_FOOTER_SIZE = LONG.size
MAGICS = {b"GnUlInUx": STARGZ, b"GNUlInUx": CONTAINERS}


class BadZstdFooter(FormatError):
    """The last bytes of a blob are not a zstd:chunked footer, or point where nothing can be."""

    code = "E_NOT_ESTARGZ"


class ZstdFooter(msgspec.Struct, frozen=True):
    """Where TOC and tar-split lie, and whose dialect it is; ``size`` is the footer's own."""

    toc: Place
    tar_split: Place | None
    dialect: str
    size: int


def parse_zstd_footer(tail: bytes, blob_size: int) -> ZstdFooter:
    """Return the footer that *tail*, the end of a blob of *blob_size* bytes, ends with."""
    dialect = MAGICS.get(tail[-8:])
    if dialect is None:
        raise BadZstdFooter(
            f"footer: got magic {tail[-8:]!r}, expected one of"
            f" {', '.join(str(magic) for magic in MAGICS)}"
        )
    for form in (LONG, SHORT):
        data = tail[-form.size :]
        header = SKIPPABLE_MAGIC + struct.pack("<I", form.size - FRAME_HEADER_SIZE)
        if len(data) == form.size and data.startswith(header):
            break
    else:
        raise BadZstdFooter(
            f"footer: {tail[-MAX_FOOTER_SIZE:]!r} does not end with a skippable frame of"
            f" {SHORT.size - FRAME_HEADER_SIZE} or {LONG.size - FRAME_HEADER_SIZE} bytes"
        )
    numbers = form.unpack(data)[2:-1]
    if numbers[3] != TOC_TYPE:
        raise BadZstdFooter(f"footer: got TOC type {numbers[3]}, expected {TOC_TYPE}")
    toc = Place(*numbers[:3])
    tar_split = Place(*numbers[4:7]) if form is LONG and any(numbers[4:7]) else None
    end = blob_size - form.size
    if toc.offset < FRAME_HEADER_SIZE or not toc.size or toc.end > end:
        raise BadZstdFooter(
            f"footer: got a TOC at {toc.offset} of {toc.size} bytes,"
            f" expected it between {FRAME_HEADER_SIZE} and {end}"
        )
    if tar_split is not None and not toc.end <= tar_split.offset <= tar_split.end <= end:
        raise BadZstdFooter(
            f"footer: got tar-split at {tar_split.offset} of {tar_split.size} bytes,"
            f" expected it between {toc.end} and {end}"
        )
    return ZstdFooter(toc, tar_split, dialect, form.size)


def check_claims(footer: ZstdFooter, claims: Claims) -> None:
    """Raise BadAnnotation where the annotations say otherwise than the blob."""
    if claims.dialect not in (None, footer.dialect):
        raise BadAnnotation(
            f"zstd:chunked: got dialect {footer.dialect} in the footer,"
            f" expected {claims.dialect} as in the annotations"
        )
    for what, got, expected in (
        ("TOC", footer.toc, claims.place),
        ("tar-split", footer.tar_split, claims.tar_split),
    ):
        if expected is not None and got != expected:
            raise BadAnnotation(
                f"zstd:chunked: got {what} at {_spell(got)} in the footer,"
                f" expected {_spell(expected)} as in the annotations"
            )


def read_zstd_toc(
    frame: bytes, footer: ZstdFooter, claims: Claims, *, limits: Limits = DEFAULT_LIMITS
) -> tuple[Toc, bytes]:
    """Return the TOC in *frame*, the bytes at ``footer.toc``, and its JSON.

    Both digests that *claims* may hold are checked.  Raises BadToc or DigestMismatch.
    """
    place = footer.toc
    if claims.checksum is not None:
        verify_digest(frame, claims.checksum, "compressed TOC")
    allowed = min(limits.toc_size, max(limits.small_toc_size, len(frame) * limits.toc_ratio))
    if len(frame) > limits.member_size or place.raw_size > allowed:
        raise BadToc(
            f"TOC: got {len(frame)} compressed bytes that expand to {place.raw_size},"
            f" expected at most {limits.member_size} and {allowed}"
        )
    try:
        data = unzstd(frame, place.raw_size, "TOC")
    except BadFrame as exc:
        raise BadToc(exc.message) from exc
    if len(data) != place.raw_size:
        raise BadToc(f"TOC: got {len(data)} bytes, expected {place.raw_size} as in the footer")
    toc = decode_toc(
        data,
        expected=claims.toc_digest,
        vouched=claims.key,
        blob_size=place.offset - FRAME_HEADER_SIZE,
        codec=Codec.ZSTD,
        limits=limits,
    )
    return toc, data


def _spell(place: Place | None) -> str:
    return "no place" if place is None else f"{place.offset}:{place.size}:{place.raw_size}"
