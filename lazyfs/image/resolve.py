"""From what the user typed to one platform's manifest and config.

Everything asked for by digest is looked for in the store first, so a digest that was mounted
before needs no request.
"""

import logging

import msgspec

from lazyfs.digest import Digest
from lazyfs.errors import FormatError, Unavailable
from lazyfs.image.offline import last_known, resolve_offline, with_hint
from lazyfs.image.origin import Origin
from lazyfs.oci.config import ImageConfig, decode_config
from lazyfs.oci.manifest import Index, Manifest, decode_manifest
from lazyfs.oci.platforms import Platform, choose
from lazyfs.oci.reference import LayoutReference
from lazyfs.registry.source import Document
from lazyfs.store.blobs import load_blob, save_blob
from lazyfs.store.paths import Store, StoreUnwritten

CONFIG_LIMIT = 4 << 20

log = logging.getLogger(__name__)


class Resolved(msgspec.Struct, frozen=True):
    """A manifest, by digest, and how it was found; ``index_digest`` if it came from an index."""

    manifest: Manifest
    document: Document
    index_digest: Digest | None


class Resolver:
    """Finds manifests and configs, in the store or at the origin, and keeps them in the store."""

    def __init__(self, store: Store, origin: Origin) -> None:
        self._store = store
        self._origin = origin

    async def document(self, reference: str | Digest) -> Document:
        """Return a manifest or index by tag or digest."""
        if isinstance(reference, Digest):
            data = load_blob(self._store, reference)
            if data is not None:
                return Document(data, decode_manifest(data, None).media_type, reference)
        document = await self._origin.source.fetch_manifest(reference)
        self._keep(document.digest, document.data)
        return document

    def _keep(self, digest: Digest, data: bytes) -> None:
        """Keep a document; where the disk does not take it, it is asked for again next time."""
        try:
            save_blob(self._store, digest, data)
        except StoreUnwritten as exc:
            log.debug("%s", exc.message)

    async def resolve(self, reference: str | Digest, platform: Platform) -> Resolved:
        """Return the manifest that *reference* names, or the one its index has for *platform*."""
        document = await self._named(reference, platform)
        found = decode_manifest(document.data, document.media_type)
        if isinstance(found, Manifest):
            return Resolved(found, document, None)
        chosen = await self.document(_choose(found, platform))
        manifest = decode_manifest(chosen.data, chosen.media_type)
        if not isinstance(manifest, Manifest):
            raise FormatError(
                f"index {document.digest}: entry for {platform}: got another index, "
                "expected a manifest"
            )
        return Resolved(manifest, chosen, document.digest)

    async def _named(self, reference: str | Digest, platform: Platform) -> Document:
        """Return what a name means now; what it meant the last time only where that is wanted."""
        named = self._origin.reference
        if isinstance(reference, Digest) or isinstance(named, LayoutReference):
            return await self.document(reference)
        if self._origin.is_offline:
            return await self.document(resolve_offline(self._store, named, platform))
        try:
            return await self.document(reference)
        except Unavailable as exc:
            known = last_known(self._store, named, platform)
            raise with_hint(exc, known) from exc

    async def config(self, manifest: Manifest) -> ImageConfig:
        """Return the image's config, its digest checked."""
        descriptor = manifest.config
        data = load_blob(self._store, descriptor.digest)
        if data is None:
            data = await self._origin.source.fetch_blob(descriptor, limit=CONFIG_LIMIT)
            self._keep(descriptor.digest, data)
        config = decode_config(data)
        if len(config.diff_ids) != len(manifest.layers):
            raise FormatError(
                f"config {descriptor.digest}: got {len(config.diff_ids)} diffIDs, "
                f"expected one per layer: {len(manifest.layers)}"
            )
        return config


def _choose(index: Index, platform: Platform) -> Digest:
    offered = [
        descriptor.platform or Platform("unknown", "unknown") for descriptor in index.manifests
    ]
    return index.manifests[choose(platform, offered)].digest
