"""What a layer descriptor's annotations promise of the layer's table of contents.

Spec: stargz-snapshotter docs/estargz.md and docs/overview.md (``containerd.io/…`` and
``io.containers.*``); containers/storage (``io.github.containers.*``).  The two families for
zstd:chunked say the same things: the digest of the TOC *as compressed*, and where it lies.  The
eStargz key holds the digest of the TOC's plain bytes.  A manifest vouches for all of them alike,
so where several are there all of them must hold.
"""

import re
from collections.abc import Mapping

import msgspec

from lazyfs.digest import BadDigest, Digest, parse_digest
from lazyfs.errors import FormatError

TOC_DIGEST_KEYS = (
    "containerd.io/snapshot/stargz/toc.digest",
    "org.opencontainers.image.toc.digest",
    "org.opencontainers.image.estargz.toc.digest",
)
STARGZ, CONTAINERS = "stargz", "containers"
"""The dialects of zstd:chunked."""
PREFIXES = {
    STARGZ: "io.containers.zstd-chunked.",
    CONTAINERS: "io.github.containers.zstd-chunked.",
}
CHECKSUM, POSITION = "manifest-checksum", "manifest-position"
TAR_SPLIT_CHECKSUM, TAR_SPLIT_POSITION = "tarsplit-checksum", "tarsplit-position"
TOC_TYPE = 1  # the only type of TOC that there is
NUMBERS_RE = re.compile(r"[0-9]{1,19}(:[0-9]{1,19}){2,3}")


class BadAnnotation(FormatError):
    """A layer's annotations that contradict themselves, or the layer, or hold no digest."""

    code = "E_BAD_ANNOTATION"


class Place(msgspec.Struct, frozen=True):
    """Blob bytes ``offset`` to ``offset + size``, which hold ``raw_size`` plain bytes."""

    offset: int
    size: int
    raw_size: int

    @property
    def end(self) -> int:
        """The blob offset behind it."""
        return self.offset + self.size


class Claims(msgspec.Struct, frozen=True):
    """What annotations say; None where they say nothing.

    ``toc_digest`` is of the TOC's plain bytes, ``checksum`` of its zstd frame, which lies at
    ``place``.  ``dialect`` is None where zstd:chunked is not claimed, or in both dialects at once.
    """

    toc_digest: Digest | None = None
    checksum: Digest | None = None
    place: Place | None = None
    tar_split: Place | None = None
    tar_split_checksum: Digest | None = None
    dialect: str | None = None

    @property
    def key(self) -> Digest | None:
        """The digest that vouches for the TOC, and names the layer in the store."""
        return self.toc_digest or self.checksum

    @property
    def is_zstd(self) -> bool:
        """Whether the layer is claimed to be zstd:chunked."""
        return self.checksum is not None or self.place is not None


def claims_of(annotations: Mapping[str, str]) -> Claims:
    """Return what a layer's annotations claim.

    Raises BadAnnotation when a value does not parse, or two keys disagree.
    """
    found = {
        dialect: claims
        for dialect, prefix in PREFIXES.items()
        if (claims := _zstd_claims(annotations, prefix)) != Claims()
    }
    toc_digest = toc_digest_of(annotations)
    if not found:
        return Claims(toc_digest)
    (dialect, claims), *others = found.items()
    for other in (each for _, each in others):
        if (other.checksum, other.place) != (claims.checksum, claims.place):
            raise BadAnnotation(
                f"zstd:chunked: {PREFIXES[STARGZ]}* and {PREFIXES[CONTAINERS]}* state different"
                f" TOCs, with checksums {claims.checksum} and {other.checksum}"
            )
        claims = other  # the dialect that knows of tar-split
    if claims.checksum is None:
        raise BadAnnotation(f"zstd:chunked: the annotations {PREFIXES[dialect]}* lack {CHECKSUM}")
    return Claims(
        toc_digest,
        claims.checksum,
        claims.place,
        claims.tar_split,
        claims.tar_split_checksum,
        None if others else dialect,
    )


def toc_digest_of(annotations: Mapping[str, str]) -> Digest | None:
    """Return the digest of the plain TOC that annotations promise, None without one.

    Raises BadAnnotation when a value is no digest, or two keys disagree.
    """
    found: dict[str, Digest] = {}
    for key in TOC_DIGEST_KEYS:
        if key in annotations:
            found[key] = _digest(annotations, key)
    if len(set(found.values())) > 1:
        spelled = ", ".join(f"{key}={digest}" for key, digest in found.items())
        raise BadAnnotation(f"the annotations state different TOC digests: {spelled}")
    return next(iter(found.values()), None)


def _zstd_claims(annotations: Mapping[str, str], prefix: str) -> Claims:
    def digest(name: str) -> Digest | None:
        return _digest(annotations, prefix + name) if prefix + name in annotations else None

    def place(name: str, numbers: int) -> Place | None:
        return _place(annotations, prefix + name, numbers) if prefix + name in annotations else None

    return Claims(
        None,
        digest(CHECKSUM),
        place(POSITION, 4),
        place(TAR_SPLIT_POSITION, 3),
        digest(TAR_SPLIT_CHECKSUM),
    )


def _digest(annotations: Mapping[str, str], key: str) -> Digest:
    try:
        return parse_digest(annotations[key])
    except BadDigest as exc:
        raise BadAnnotation(f"annotation {key}: {exc}") from exc


def _place(annotations: Mapping[str, str], key: str, count: int) -> Place:
    """Return what ``offset:size:raw size`` says, or with a fourth number ``…:type``."""
    text = annotations[key]
    numbers = [int(word) for word in text.split(":")] if NUMBERS_RE.fullmatch(text) else []
    if len(numbers) != count or (count == 4 and numbers[3] != TOC_TYPE):
        expected = "offset:size:size" + (f":{TOC_TYPE}" if count == 4 else "")
        raise BadAnnotation(f"annotation {key}: {text[:100]!r} is not of the form {expected}")
    return Place(*numbers[:3])
