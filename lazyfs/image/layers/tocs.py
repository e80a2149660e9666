"""The TOCs of an image's layers: from the store, or from the tails of the blobs, in parallel.

What makes a layer lazily mountable is decided by ``formats/layers.py``; here its TOC is found,
fetched, and checked against the digest that the manifest states for it.  Where the manifest states
none, the blob's own digest can take its place: then all of the blob is read first.
"""

import hashlib
import logging
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import trio

from lazyfs.digest import Digest, DigestMismatch
from lazyfs.errors import LazyfsError, VerificationFailed
from lazyfs.fetch.origins.origin import Origin
from lazyfs.formats.estargz import NotEstargz
from lazyfs.formats.layers import Format, LayerToc, TocPlace, find_layer_toc, read_layer_toc
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tocs.claims import Claims, claims_of
from lazyfs.formats.tocs.rawtoc import TocTooLarge
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.image.layers.budget import Budget
from lazyfs.image.layers.plain import check_readable
from lazyfs.image.layers.toc_image import NoTocImage, TocImage
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import is_layer_gzip, is_layer_zstd
from lazyfs.rootfs.layout import device_size
from lazyfs.rootfs.table import LayerTable, build_table
from lazyfs.store.layers import has_digests, load_table, load_toc, save_layer
from lazyfs.store.paths import Store

log = logging.getLogger(__name__)

TAIL_MIN = 64 << 10
TAIL_MAX = 1 << 20
TAIL_SHARE = 100
"""The first read of a blob's tail, bytes.  A TOC takes 65 bytes a file: 1/140 of the layers of a
system or of python, so this share of a blob gets footer and TOC in one round trip.  The TOC of
a layer of very small files (1/43 of 246 MB) costs a second one, and wastes nothing."""

PLACED_MAX = 4 << 20
"""Where an annotation says where the TOC is, so much of the tail is read at once, bytes."""

TOC_MEMBER_LIMIT = 150 << 20
"""Compressed TOC, bytes; the limit of containers/storage."""


Error = TypeVar("Error", bound=LazyfsError)


class Unverifiable(NotEstargz):
    """The manifest does not vouch for the layer's TOC."""


WRONG_BYTES = (
    "the bytes do not match the digest in the manifest: registry, mirror or image is wrong"
)


class WrongTail(NotEstargz):
    """A layer does not end with what the manifest says: a TOC that has a certain digest."""


class LoadedToc(msgspec.Struct, frozen=True):
    """A verified TOC, the format of its layer, and what vouched for it.

    That is "toc", its own digest in the manifest, or "blob", the digest of the whole blob.
    """

    toc: Toc
    format: Format
    verified_by: str


def layer_claims(layer: Descriptor, verify: str = "toc") -> Claims:
    """Return what the manifest claims of a layer's TOC.

    Raises BadAnnotation, EncryptedLayer, and Unverifiable where nothing is claimed, unless *verify*
    is "blob".
    """
    check_readable(layer)
    try:
        claims = claims_of(layer.annotations)
    except LazyfsError as exc:
        raise _named(layer, exc) from exc
    if claims.key is None and verify != "blob":
        raise Unverifiable(
            f"layer {layer.digest}: the manifest has no digest of its TOC "
            "(annotation containerd.io/snapshot/stargz/toc.digest, or that of zstd:chunked)",
            hint="`lazyfs convert` makes layers that can be verified lazily; --verify=blob "
            "downloads and hashes a whole layer that has a TOC",
        )
    return claims


async def load_tocs(
    store: Store,
    origin: Origin,
    layers: Sequence[Descriptor],
    *,
    verify: str = "toc",
    lost: list[Descriptor] | None = None,
    budget: Budget | None = None,
) -> list[LoadedToc]:
    """Return the verified TOC of each layer, and see that the store has its layer table.

    A layer that is listed twice is read once.  *budget* is the image's; without it, one for these
    layers.  The error raised is that of the lowest layer that has one.  Layers whose TOC lies in
    another image that cannot be had are added to *lost*, if it is given, and not in the result.
    """
    loaded: dict[int, LoadedToc] = {}
    errors: dict[int, LazyfsError] = {}
    toc_image = TocImage(origin)
    budget = budget or Budget(origin.environment)
    same: dict[tuple[Digest, int, Claims], list[int]] = {}

    async def load(number: int, layer: Descriptor) -> None:
        try:
            claims = layer_claims(layer, verify)
            numbers = same.setdefault((layer.digest, layer.size, claims), [])
            numbers.append(number)
            if len(numbers) > 1:
                return  # the first of them loads it
            found = stored_toc(store, layer, claims, budget) or await _fetch_and_keep(
                store, origin, toc_image, layer, claims, budget
            )
            loaded.update(dict.fromkeys(numbers, found))
        except NoTocImage as exc:
            if lost is None:
                errors[number] = exc
            else:
                log.warning("%s; fetching the whole layer", exc.message)
                lost.extend(layers[each] for each in numbers)
        except LazyfsError as exc:
            errors[number] = exc

    async with trio.open_nursery() as nursery:
        for number, layer in enumerate(layers):
            nursery.start_soon(load, number, layer)
    if errors:
        raise errors[min(errors)]
    return [loaded[number] for number in sorted(loaded)]


def stored_toc(store: Store, layer: Descriptor, claims: Claims, budget: Budget) -> LoadedToc | None:
    """Return what the store holds of a layer's TOC, or None."""
    if claims.key is None:
        return None
    data, table = load_toc(store, claims.key), load_table(store, claims.key)
    if data is None or table is None or not _fits(table, layer, claims):
        return None
    if not has_digests(store, claims.key, claims.toc_digest, claims.checksum):
        return None  # another image has stated only one of the digests, or the other one
    try:
        toc = decode_toc(
            data,
            expected=None,
            vouched=claims.key,
            blob_size=table.payload_end,
            codec=table.format.codec,
            limits=budget.limits,
        )
    except TocTooLarge as exc:
        raise _named(layer, budget.refusal(exc)) from exc
    budget.spend(toc, len(data))
    if table.device_size != device_size(toc):
        return None  # whole in itself, and of another TOC
    return LoadedToc(toc, table.format, "toc")


def _fits(table: LayerTable, layer: Descriptor, claims: Claims) -> bool:
    """Say whether a stored table can be of this blob.

    Two blobs that hold the same TOC may be compressed in different ways; then the table that was
    made last is the one that is kept.
    """
    codec = table.format.codec
    if claims.is_zstd or is_layer_zstd(layer.media_type):
        return codec == Codec.ZSTD and table.payload_end <= layer.size
    if is_layer_gzip(layer.media_type):
        return codec == Codec.GZIP and table.payload_end <= layer.size
    return table.payload_end <= layer.size


async def _fetch_and_keep(
    store: Store,
    origin: Origin,
    toc_image: TocImage,
    layer: Descriptor,
    claims: Claims,
    budget: Budget,
) -> LoadedToc:
    found = await _fetch_from_anywhere(origin, toc_image, layer, claims, budget)
    table = build_table(found.toc, found.payload_end, found.format)
    save_layer(store, found.toc.digest, found.toc_bytes, table, frame=found.frame)
    return LoadedToc(found.toc, found.format, "blob" if claims.key is None else "toc")


async def _fetch_from_anywhere(
    origin: Origin, toc_image: TocImage, layer: Descriptor, claims: Claims, budget: Budget
) -> LayerToc:
    """Fetch a TOC; one that is wrong once more at least, and once from each endpoint."""
    try:
        return await fetch_toc(origin, toc_image, layer, claims, budget)
    except (VerificationFailed, WrongTail) as exc:
        origin.source.blame(layer, 0, layer.size, exc.message)
    while True:
        try:
            return await fetch_toc(origin, toc_image, layer, claims, budget)
        except (VerificationFailed, WrongTail) as exc:
            if not origin.source.blame(layer, 0, layer.size, exc.message):
                raise


async def fetch_toc(
    origin: Origin, toc_image: TocImage, layer: Descriptor, claims: Claims, budget: Budget
) -> LayerToc:
    """Fetch and verify a layer's TOC: one request, or two when the TOC is long."""
    try:
        tail_start = _tail_start(layer, claims)
        tail = await read_range(origin, layer, tail_start, layer.size)
        place = _find(tail, layer, claims)
        if place.end - place.start > TOC_MEMBER_LIMIT:
            raise NotEstargz(
                f"TOC: got {place.end - place.start} compressed bytes, "
                f"expected at most {TOC_MEMBER_LIMIT}"
            )
        if claims.key is None:
            return await _fetch_by_blob(origin, layer, claims, place, budget)
        if place.format is Format.EXTERNAL_TOC:
            data = await toc_image.fetch(layer)
        elif place.start < tail_start:
            # A TOC may be followed by much that is not wanted.
            end = min(place.end, tail_start)
            data = await read_range(origin, layer, place.start, end)
            data += tail[: place.end - end]
        else:
            data = tail[place.start - tail_start : place.end - tail_start]
        return _read(data, place, claims, budget)
    except LazyfsError as exc:
        named = _named(layer, exc)
        if isinstance(exc, VerificationFailed) and claims.key is not None:
            named.hint = named.hint or WRONG_BYTES
        raise named from exc


def _find(tail: bytes, layer: Descriptor, claims: Claims) -> TocPlace:
    """Return where the TOC is.  Raises NotEstargz; WrongTail where the manifest has its digest."""
    try:
        return find_layer_toc(tail, layer.size, claims, media_type=layer.media_type)
    except NotEstargz as exc:
        if claims.key is None:
            raise
        raise WrongTail(exc.message, hint=WRONG_BYTES) from exc


def _tail_start(layer: Descriptor, claims: Claims) -> int:
    """Return from where the first read goes to the blob's end."""
    if claims.place is not None and 0 <= layer.size - claims.place.offset <= PLACED_MAX:
        return claims.place.offset
    return layer.size - min(layer.size, max(TAIL_MIN, min(TAIL_MAX, layer.size // TAIL_SHARE)))


def _read(data: bytes, place: TocPlace, claims: Claims, budget: Budget) -> LayerToc:
    try:
        found = read_layer_toc(data, place, claims, limits=budget.limits)
    except TocTooLarge as exc:
        raise budget.refusal(exc) from exc
    budget.spend(found.toc, len(found.toc_bytes))
    return found


async def _fetch_by_blob(
    origin: Origin, layer: Descriptor, claims: Claims, place: TocPlace, budget: Budget
) -> LayerToc:
    """Read all of the blob, verify it, and return the TOC that it holds at *place*.

    *place* is from a tail that nothing vouched for, and is looked for again.
    """
    if place.format is Format.EXTERNAL_TOC:
        raise Unverifiable(
            "layer: the manifest has no digest of its external TOC, which the digest of the blob "
            "does not cover"
        )
    start = min(place.start, layer.size - min(layer.size, TAIL_MIN))
    tail = await _read_verified(origin, layer, start)
    if find_layer_toc(tail, layer.size, claims, media_type=layer.media_type) != place:
        raise VerificationFailed(
            f"footer: the verified blob has another one than was fetched first ({place})"
        )
    data = tail[place.start - start : place.end - start]
    return _read(data, place, claims, budget)


async def _read_verified(origin: Origin, layer: Descriptor, start: int) -> bytes:
    """Read a whole blob, and return what it holds from *start* on; raises DigestMismatch."""
    hasher = hashlib.new(layer.digest.algorithm, usedforsecurity=False)
    position = 0
    kept: list[bytes] = []
    async with origin.source.open_range(layer, 0, layer.size) as body:
        async for data in body:
            hasher.update(data)  # a hundred times faster than what comes over a network
            if position + len(data) > start:
                kept.append(data[max(0, start - position) :])
            position += len(data)
    got = Digest(layer.digest.algorithm, hasher.hexdigest())
    if got != layer.digest:
        raise DigestMismatch(f"blob: got {got}, expected {layer.digest} ({position} bytes)")
    return b"".join(kept)


def _named(layer: Descriptor, exc: Error) -> Error:
    return type(exc)(f"layer {layer.digest}: {exc.message}", hint=exc.hint)


async def read_range(origin: Origin, layer: Descriptor, start: int, end: int) -> bytes:
    """Return bytes *start* to *end* of a layer's blob; nothing vouches for them yet."""
    async with origin.source.open_range(layer, start, end) as body:
        return b"".join([data async for data in body])
