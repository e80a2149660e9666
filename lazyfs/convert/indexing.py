"""Build the index of an image's plain layers, publish it, and see what is published.

Building is a full pass over every plain layer that no pass has been made of here.  Publishing puts
the index beside the image, as a referrer; the image itself stays as it is.
"""

from collections.abc import Callable

import msgspec
import trio

from lazyfs.convert.destination import open_destination
from lazyfs.digest import Digest
from lazyfs.errors import NotFound, UsageError
from lazyfs.fetch.origins.origin import Offline, Origin
from lazyfs.image.layers.contradiction import check_claim, claimed_toc
from lazyfs.image.layers.full_pass import pass_layers
from lazyfs.image.layers.indexes import (
    ARTIFACT_TYPE,
    Artifact,
    build_artifact,
    local_index,
)
from lazyfs.image.layers.plain import check_pairs, is_plain
from lazyfs.image.prepare import Request, wanted_platform
from lazyfs.image.resolve import Resolver
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import OCI_MANIFEST, Manifest
from lazyfs.oci.reference import LayoutReference, parse_reference
from lazyfs.signatures.in_force import judge_of
from lazyfs.store.paths import Store


class NothingToIndex(UsageError):
    """All layers of the image have tables of contents of their own."""

    code = "E_NOTHING_TO_INDEX"


class IndexedLayer(msgspec.Struct, frozen=True):
    """A plain layer with its encoded index."""

    descriptor: Descriptor
    data: bytes


class BuiltIndex(msgspec.Struct, frozen=True):
    """The index of an image: its plain layers, bottom first, and what can be pushed.

    ``lazy`` layers have tables of contents of their own.
    """

    resolved: str
    subject: Descriptor
    layers: tuple[IndexedLayer, ...]
    lazy: tuple[Descriptor, ...]
    artifact: Artifact


async def build_index_of(
    request: Request,
    *,
    again: bool = False,
    progress: Callable[[int], object] = lambda size: None,
    on_total: Callable[[int], object] = lambda size: None,
) -> BuiltIndex:
    """Return the index of the image that *request* names, after the passes that it needs.

    *again* makes a pass over every plain layer, and raises IndexContradicted if one finds something
    else than what an index said that was used before.
    """
    reference = parse_reference(request.reference)
    store = Store(request.cache_dir)
    judge = judge_of(request.access)
    origin = Origin(reference, request.access)
    try:
        resolver = Resolver(store, origin)
        resolved = await resolver.resolve(reference.identifier, wanted_platform(request.platform))
        manifest, document = resolved.manifest, resolved.document
        if judge is not None:
            subjects = await resolver.signable(resolved, None)
            await judge.image(store, origin, subjects, is_image=True)
        config = await resolver.config(manifest)
        pairs = [
            (layer, diff_id)
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
            if is_plain(layer)
        ]
        if not pairs:
            raise NothingToIndex(
                f"{request.reference} has no plain layer to index",
                hint="the image can be mounted lazily as it is",
            )
        check_pairs(pairs)
        missing = [
            pair
            for pair in {layer.digest: (layer, diff_id) for layer, diff_id in pairs}.values()
            if again or local_index(store, pair[0]) is None
        ]
        before = {layer.digest: claimed_toc(store, layer) for layer, _ in missing}
        on_total(sum(layer.size for layer, _ in missing))
        tocs = (
            await pass_layers(store, origin.source, missing, progress=progress) if missing else []
        )
        for (layer, _), toc in zip(missing, tocs, strict=True):
            await trio.to_thread.run_sync(check_claim, store, layer, before[layer.digest], toc)
        subject = Descriptor(document.media_type, document.digest, len(document.data))
        layers = _indexed(store, [layer for layer, _ in pairs])
        return BuiltIndex(
            resolved=f"{origin.repository}@{document.digest}",
            subject=subject,
            layers=layers,
            lazy=tuple(layer for layer in manifest.layers if not is_plain(layer)),
            artifact=build_artifact(subject, [(each.descriptor, each.data) for each in layers]),
        )
    finally:
        await origin.aclose()


def _indexed(store: Store, layers: list[Descriptor]) -> tuple[IndexedLayer, ...]:
    found = []
    for layer in {each.digest: each for each in layers}.values():
        data = local_index(store, layer)
        if data is None:
            raise NotFound(f"layer {layer.digest}: the index that was just built is missing")
        found.append(IndexedLayer(layer, data))
    return tuple(found)


async def push_index(request: Request, built: BuiltIndex) -> Digest:
    """Push the index beside its image; return the digest to pin."""
    target = parse_reference(request.reference)
    place = open_destination(target, request.access, create=False)
    try:
        for descriptor, data in built.artifact.blobs:
            if not await place.has_blob(descriptor):
                await place.push_blob(descriptor, data)
        return await place.push_manifest(built.artifact.manifest, OCI_MANIFEST, None)
    finally:
        await place.aclose()


async def published_indexes(request: Request) -> tuple[str, tuple[Descriptor, ...]]:
    """Return what the image resolves to, and the indexes that are listed as its referrers.

    Anybody who can push can add one: the list says what there is, not what to trust.
    """
    reference = parse_reference(request.reference)
    if isinstance(reference, LayoutReference):
        raise UsageError(f"{request.reference} is an image layout; only a registry lists referrers")
    if request.access.is_offline:
        raise Offline(f"cannot list the referrers of {reference.name} with --offline")
    from lazyfs.registry.client import RegistryClient  # noqa: PLC0415

    store = Store(request.cache_dir)
    origin = Origin(reference, request.access)
    client = RegistryClient(reference, request.access)
    try:
        resolver = Resolver(store, origin)
        resolved = await resolver.resolve(reference.identifier, wanted_platform(request.platform))
        assert isinstance(resolved.manifest, Manifest)
        digest = resolved.document.digest
        referrers = await client.fetch_referrers(digest, ARTIFACT_TYPE)
        return f"{origin.repository}@{digest}", referrers.found
    finally:
        await client.aclose()
        await origin.aclose()
