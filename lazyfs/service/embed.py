"""Images kept beside the snapshots: all blobs by digest, so that no registry is needed for ever.

This asks registries, and so no checkpoint imports it: images are embedded before a sandbox is
saved, and a failure leaves the sandbox running.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from lazyfs.digest import parse_digest
from lazyfs.documents.manifest import Image
from lazyfs.errors import FormatError, LazyfsError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.fetch.origins.whole import fetch_file
from lazyfs.image.resolve import Resolver
from lazyfs.interrupts import run_trio
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest, decode_manifest
from lazyfs.oci.reference import parse_reference
from lazyfs.registry.config.access import AccessOptions
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.service.reasons import reason_of
from lazyfs.snapshot.stores.embedding import blob_key
from lazyfs.snapshot.stores.snapshots import Snapshots
from lazyfs.store.blobs import load_blob
from lazyfs.store.paths import Store


def embed_images(
    images: Iterable[Image],
    snapshots: Snapshots,
    snapshot_id: str,
    *,
    cache_dir: Path,
    access: AccessOptions,
) -> frozenset[str]:
    """Keep *images* for a snapshot that is to be; return their manifests' digests.

    What is there already is not fetched.  Raises BaseUnavailable, BaseCorrupt, StoreFailed.
    """
    by_digest = {image.manifest_digest: image for image in images}
    for image in by_digest.values():
        with tempfile.TemporaryDirectory(prefix="lazyfs-embed-") as folder:
            try:
                run_trio(_embed, image, snapshots, snapshot_id, Path(folder), cache_dir, access)
            except LazyfsError as exc:
                raise reason_of(exc, image.original_ref) from exc
    return frozenset(by_digest)


async def _embed(
    image: Image,
    snapshots: Snapshots,
    snapshot_id: str,
    folder: Path,
    cache_dir: Path,
    access: AccessOptions,
) -> None:
    store = Store(cache_dir)
    origin = Origin(parse_reference(image.resolved_ref), access)
    try:
        document = await Resolver(store, origin).document(parse_digest(image.manifest_digest))
        manifest = decode_manifest(document.data, document.media_type)
        if not isinstance(manifest, Manifest):
            raise FormatError(f"{document.digest} is an index, not a manifest")
        blobs: dict[str, Path | bytes] = {}
        for blob in {each.digest: each for each in (manifest.config, *manifest.layers)}.values():
            if snapshots.objects.size(blob_key(blob.digest)) == blob.size:
                continue
            kept = load_blob(store, blob.digest)
            blobs[str(blob.digest)] = kept or await _fetch(origin, blob, folder)
    finally:
        await origin.aclose()
    algorithm = document.digest.algorithm
    snapshots.embed(snapshot_id, document.data, document.media_type, blobs, algorithm=algorithm)


async def _fetch(origin: Origin, blob: Descriptor, folder: Path) -> Path:
    """Fetch a blob to a file, verified."""
    target = folder / blob.digest.hex
    with local_errors(target, "write"):
        await fetch_file(origin.source, blob, target)
    return target
