"""What an image is, layer by layer: whether it can be mounted lazily, and if not, why.

Unlike ``prepare`` this does not stop at the first layer that cannot be; nothing but documents and
TOCs is fetched.
"""

import shutil
from dataclasses import dataclass

import trio

from lazyfs.digest import Digest
from lazyfs.errors import FormatError, LazyfsError, NotFound, VerificationFailed
from lazyfs.formats.estargz import find_toc, format_of, toc_digest_of
from lazyfs.image.origin import Origin
from lazyfs.image.prepare import Request, wanted_platform
from lazyfs.image.resolve import Resolver
from lazyfs.image.tocs import load_tocs, read_range, required_toc_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.platforms import Platform
from lazyfs.oci.reference import parse_reference
from lazyfs.store.layers import load_table, load_toc
from lazyfs.store.paths import Store, StoreFull, volatile_store

FORMAT_TAIL_SIZE = 4096  # enough for the footers of all formats


@dataclass(frozen=True, slots=True)
class DescribedLayer:
    """One layer.  ``why`` says why it cannot be mounted lazily, None if it can.

    ``toc_digest`` is what the manifest promises; ``format`` is a name of ``format_of``.
    """

    descriptor: Descriptor
    diff_id: Digest
    format: str
    toc_digest: Digest | None
    why: str | None


@dataclass(frozen=True, slots=True)
class DescribedImage:
    """An image's identity and its layers, bottom first."""

    requested: str
    resolved: str
    index_digest: Digest | None
    manifest_digest: Digest
    config_digest: Digest
    platform: Platform
    layers: tuple[DescribedLayer, ...]


async def describe(request: Request) -> DescribedImage:
    """Resolve *request* and look at the end of each layer.

    Raises what resolving raises, AccessDenied and Unavailable; what is wrong with one layer is in
    the result.
    """
    try:
        return await _describe(request, Store(request.cache_dir))
    except StoreFull:
        store = volatile_store()
    try:
        return await _describe(request, store)
    finally:
        shutil.rmtree(store.root, ignore_errors=True)


async def _describe(request: Request, store: Store) -> DescribedImage:
    reference = parse_reference(request.reference)
    origin = Origin(reference, request.access)
    try:
        resolver = Resolver(store, origin)
        resolved = await resolver.resolve(reference.identifier, wanted_platform(request.platform))
        manifest, digest = resolved.manifest, resolved.document.digest
        config = await resolver.config(manifest)
        layers: list[DescribedLayer | None] = [None] * len(manifest.layers)
        errors: list[LazyfsError] = []

        async def look(number: int, layer: Descriptor, diff_id: Digest) -> None:
            try:
                layers[number] = await _describe_layer(store, origin, layer, diff_id)
            except LazyfsError as exc:
                errors.append(exc)

        async with trio.open_nursery() as nursery:
            pairs = zip(manifest.layers, config.diff_ids, strict=True)
            for number, (layer, diff_id) in enumerate(pairs):
                nursery.start_soon(look, number, layer, diff_id)
        if errors:
            raise errors[0]
        return DescribedImage(
            requested=request.reference,
            resolved=f"{origin.repository}@{digest}",
            index_digest=resolved.index_digest,
            manifest_digest=digest,
            config_digest=manifest.config.digest,
            platform=config.platform,
            layers=tuple(layer for layer in layers if layer is not None),
        )
    finally:
        await origin.aclose()


async def _describe_layer(
    store: Store, origin: Origin, layer: Descriptor, diff_id: Digest
) -> DescribedLayer:
    name = "unknown"
    toc_digest: Digest | None = None
    try:
        toc_digest = toc_digest_of(layer.annotations)
        if toc_digest is not None and _is_stored(store, toc_digest):
            return DescribedLayer(layer, diff_id, "estargz", toc_digest, None)
        start = max(0, layer.size - FORMAT_TAIL_SIZE)
        tail = await read_range(origin, layer, start, layer.size) if layer.size else b""
        name = format_of(tail, layer.size, layer.media_type)
        find_toc(tail, layer.size, media_type=layer.media_type)
        required_toc_digest(layer)
        await load_tocs(store, origin, [layer])
        return DescribedLayer(layer, diff_id, name, toc_digest, None)
    except (FormatError, VerificationFailed, NotFound) as exc:
        why = exc.message.removeprefix(f"layer {layer.digest}: ").removeprefix("layer: ")
        return DescribedLayer(layer, diff_id, name, toc_digest, why)


def _is_stored(store: Store, toc_digest: Digest) -> bool:
    return load_toc(store, toc_digest) is not None and load_table(store, toc_digest) is not None
