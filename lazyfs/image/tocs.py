"""The TOCs of an image's layers: from the store, or from the tails of the blobs, in parallel."""

from collections.abc import Sequence

import trio

from lazyfs.digest import Digest
from lazyfs.errors import LazyfsError, VerificationFailed
from lazyfs.formats.estargz import Layer, NotEstargz, find_toc, read_toc, toc_digest_of
from lazyfs.formats.toc import Toc, decode_toc
from lazyfs.image.origin import Origin
from lazyfs.oci.descriptor import Descriptor
from lazyfs.rootfs.table import build_table
from lazyfs.store.layers import load_table, load_toc, save_layer
from lazyfs.store.paths import Store

TAIL_MIN = 64 << 10
TAIL_MAX = 1 << 20
TAIL_SHARE = 100
"""The first read of a blob's tail, bytes.  A TOC takes 65 bytes a file: 1/140 of the layers of a
system or of python, so this share of a blob gets footer and TOC in one round trip.  The TOC of
a layer of very small files (1/43 of 246 MB) costs a second one, and wastes nothing."""

TOC_MEMBER_LIMIT = 150 << 20
"""Compressed TOC, bytes; the limit of containers/storage."""


class Unverifiable(NotEstargz):
    """The manifest does not vouch for the layer's TOC."""


def required_toc_digest(layer: Descriptor) -> Digest:
    """Return the TOC digest that the manifest states for a layer, or raise Unverifiable."""
    digest = toc_digest_of(layer.annotations)
    if digest is None:
        raise Unverifiable(
            f"layer {layer.digest}: got no TOC digest annotation, expected "
            "containerd.io/snapshot/stargz/toc.digest",
            hint="the layer cannot be verified lazily; `lazyfs convert` makes one that can",
        )
    return digest


async def load_tocs(store: Store, origin: Origin, layers: Sequence[Descriptor]) -> list[Toc]:
    """Return the verified TOC of each layer, and see that the store has its layer table.

    The error raised is that of the lowest layer that has one.
    """
    tocs: dict[int, Toc] = {}
    errors: dict[int, LazyfsError] = {}

    async def load(number: int, layer: Descriptor) -> None:
        try:
            tocs[number] = await _load_toc(store, origin, layer)
        except LazyfsError as exc:
            errors[number] = exc

    async with trio.open_nursery() as nursery:
        for number, layer in enumerate(layers):
            nursery.start_soon(load, number, layer)
    if errors:
        raise errors[min(errors)]
    return [tocs[number] for number in range(len(layers))]


async def _load_toc(store: Store, origin: Origin, layer: Descriptor) -> Toc:
    digest = required_toc_digest(layer)
    stored = load_toc(store, digest)
    if stored is not None and load_table(store, digest) is not None:
        return decode_toc(stored, expected=digest, blob_size=layer.size)
    found = await _fetch_from_anywhere(origin, layer, digest)
    save_layer(store, digest, found.toc_bytes, build_table(found.toc, found.payload_end))
    return found.toc


async def _fetch_from_anywhere(origin: Origin, layer: Descriptor, digest: Digest) -> Layer:
    """Fetch a TOC; one that is wrong once more at least, and once from each endpoint."""
    try:
        return await fetch_toc(origin, layer, digest)
    except VerificationFailed as exc:
        origin.source.blame(layer, 0, layer.size, exc.message)
    while True:
        try:
            return await fetch_toc(origin, layer, digest)
        except VerificationFailed as exc:
            if not origin.source.blame(layer, 0, layer.size, exc.message):
                raise


async def fetch_toc(origin: Origin, layer: Descriptor, digest: Digest) -> Layer:
    """Fetch and verify a layer's TOC: one request, or two when the TOC is long."""
    tail_size = min(layer.size, max(TAIL_MIN, min(TAIL_MAX, layer.size // TAIL_SHARE)))
    tail_start = layer.size - tail_size
    try:
        tail = await read_range(origin, layer, tail_start, layer.size)
        location = find_toc(tail, layer.size, media_type=layer.media_type)
        if location.end - location.start > TOC_MEMBER_LIMIT:
            raise NotEstargz(
                f"TOC: got {location.end - location.start} compressed bytes, "
                f"expected at most {TOC_MEMBER_LIMIT}"
            )
        if location.start < tail_start:
            tail = await read_range(origin, layer, location.start, tail_start) + tail
            tail_start = location.start
        member = tail[location.start - tail_start : location.end - tail_start]
        return read_toc(member, expected=digest, blob_size=layer.size)
    except LazyfsError as exc:
        raise type(exc)(f"layer {layer.digest}: {exc.message}", hint=exc.hint) from exc


async def read_range(origin: Origin, layer: Descriptor, start: int, end: int) -> bytes:
    """Return bytes *start* to *end* of a layer's blob; nothing vouches for them yet."""
    async with origin.source.open_range(layer, start, end) as body:
        return b"".join([data async for data in body])
