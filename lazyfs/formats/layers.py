"""Which format a layer is of, and its table of contents: the one place that decides.

What the manifest's annotations claim comes first, for the manifest is verified; then the magic at
the end of the blob.  A layer whose blob is not what its annotations claim is refused, because
another reader might believe the other of the two.  No I/O here: callers bring the tail of the
blob, learn where the TOC is, and bring its bytes.
"""

from enum import Enum

import msgspec

from lazyfs.formats.estargz import (
    LAYERS,
    find_toc,
    format_of,
    read_member,
)
from lazyfs.formats.footer import (
    EXTERNAL_SIZE,
    LEGACY_SIZE,
    TAILS,
    BadFooter,
    parse_legacy_footer,
)
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.tocs.claims import CONTAINERS, STARGZ, BadAnnotation, Claims
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.zstdchunked import (
    FRAME_HEADER_SIZE,
    ZstdFooter,
    check_claims,
    parse_zstd_footer,
    read_zstd_toc,
)

TAIL_SIZE = 4096
"""Bytes at the end of a blob in which the footers of all formats lie."""


class Format(Enum):
    """A format of layers that can be mounted.

    ``number`` is that of the layer table's header, and never changes its meaning; ``text`` and
    ``dialect`` name it; ``codec`` is that of its chunks, but for holes.
    """

    ESTARGZ = (0, "estargz", None, Codec.GZIP)
    LEGACY = (1, "stargz", None, Codec.GZIP)
    EXTERNAL_TOC = (2, "estargz-external-toc", None, Codec.GZIP)
    ZSTD_STARGZ = (3, "zstd:chunked", STARGZ, Codec.ZSTD)
    ZSTD_CONTAINERS = (4, "zstd:chunked", CONTAINERS, Codec.ZSTD)
    TAR = (5, "tar", None, Codec.RAW)
    TAR_GZIP = (6, "gzip", None, Codec.GZIP)
    TAR_ZSTD = (7, "zstd", None, Codec.ZSTD)

    def __init__(self, number: int, text: str, dialect: str | None, codec: Codec) -> None:
        self.number = number
        self.text = text
        self.dialect = dialect
        self.codec = codec

    def __str__(self) -> str:
        return self.text if self.dialect is None else f"{self.text} ({self.dialect})"


BY_NUMBER = {each.number: each for each in Format}
PLAIN = {
    Codec.RAW: Format.TAR,
    Codec.GZIP: Format.TAR_GZIP,
    Codec.ZSTD: Format.TAR_ZSTD,
}
"""Formats without a TOC of their own: it comes from a full pass, or from an index of one."""
DIALECTS = {STARGZ: Format.ZSTD_STARGZ, CONTAINERS: Format.ZSTD_CONTAINERS}


class TocPlace(msgspec.Struct, frozen=True):
    """Where a layer's TOC is: blob bytes ``start`` to ``end``, none of them where it is elsewhere.

    Payloads lie before ``payload_end``.
    """

    format: Format
    start: int
    end: int
    payload_end: int
    zstd: ZstdFooter | None = None


class LayerToc(msgspec.Struct, frozen=True):
    """A layer's verified TOC, and the JSON it came from.

    ``frame`` is the zstd frame that the JSON lay compressed in, where it did.
    """

    format: Format
    toc: Toc
    toc_bytes: bytes
    payload_end: int
    frame: bytes | None = None


def find_layer_toc(
    tail: bytes, blob_size: int, claims: Claims, *, media_type: str | None = None
) -> TocPlace:
    """Return where the TOC is of a blob of *blob_size* bytes that ends with *tail*.

    *tail* holds TAIL_SIZE bytes or more, or the whole of a shorter blob.  *media_type*, the
    layer's, only helps to say what a blob is that cannot be mounted lazily.  Raises NotEstargz,
    BadZstdFooter, BadFooter, or BadAnnotation where *claims* say otherwise than the blob.
    """
    name = format_of(tail, blob_size, media_type)
    if name == "zstd:chunked":
        footer = parse_zstd_footer(tail, blob_size)
        check_claims(footer, claims)
        place = footer.toc
        payload_end = place.offset - FRAME_HEADER_SIZE
        return TocPlace(DIALECTS[footer.dialect], place.offset, place.end, payload_end, footer)
    if claims.is_zstd:
        looks = LAYERS.get(name) or TAILS.get(name, name)
        raise BadAnnotation(f"layer: the annotations say zstd:chunked, but it is {looks}")
    if name == "estargz-external-toc":
        end = blob_size - EXTERNAL_SIZE
        return TocPlace(Format.EXTERNAL_TOC, end, end, end)
    if name == "stargz":
        start, end = parse_legacy_footer(tail).toc_offset, blob_size - LEGACY_SIZE
        if start >= end:
            raise BadFooter(f"footer: got TOC offset {start}, expected less than {end}")
        return TocPlace(Format.LEGACY, start, end, start)
    found = find_toc(tail, blob_size, media_type=media_type)
    return TocPlace(Format.ESTARGZ, found.start, found.end, found.start)


def read_layer_toc(
    data: bytes, place: TocPlace, claims: Claims, *, limits: Limits = DEFAULT_LIMITS
) -> LayerToc:
    """Return the TOC in *data*, the bytes at *place*, or the blob of a TOC image's layer.

    What *claims* promise of it is checked; where they promise nothing, the caller has verified
    *data*.  Raises BadToc or DigestMismatch.
    """
    if place.zstd is not None:
        toc, toc_bytes = read_zstd_toc(data, place.zstd, claims, limits=limits)
        return LayerToc(place.format, toc, toc_bytes, place.payload_end, data)
    layer = read_member(
        data, expected=claims.toc_digest, payload_end=place.payload_end, limits=limits
    )
    return LayerToc(place.format, layer.toc, layer.toc_bytes, place.payload_end)
