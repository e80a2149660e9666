"""From what the user typed to one platform's manifest and config.

Everything asked for by digest is looked for in the store first, so a digest that was mounted
before needs no request.
"""

import logging
from collections.abc import Awaitable, Callable

import msgspec

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError, NotFound, Unavailable
from lazyfs.fetch.origins.origin import Offline, Origin
from lazyfs.image.offline import last_known, resolve_offline, with_hint
from lazyfs.oci.choosing import (
    has_features,
    is_image,
    is_image_manifest,
    is_index,
    no_platform,
    rank,
)
from lazyfs.oci.config import ImageConfig, decode_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Index, Manifest, decode_manifest
from lazyfs.oci.platforms import UNKNOWN, NoPlatform, Platform, runs
from lazyfs.oci.reference import LayoutReference
from lazyfs.registry.source import Document, Source
from lazyfs.store.blobs import load_blob, save_blob
from lazyfs.store.names import load_names
from lazyfs.store.paths import Store, StoreUnwritten

log = logging.getLogger(__name__)

CONFIG_LIMIT = 4 << 20
DEPTH = 4  # of indexes in indexes
DOCUMENTS = 32  # that are fetched to find one image
INDEXES = 4  # that led to one image, and may be signed


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
        manifest, chosen = await find_manifest(self.document, self._platform_of, document, platform)
        is_listed = chosen.digest != document.digest
        return Resolved(manifest, chosen, document.digest if is_listed else None)

    async def _platform_of(self, manifest: Manifest) -> Platform:
        return (await self.config(manifest)).platform

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

    async def signable(self, resolved: Resolved, index_digest: str | None) -> list[Document]:
        """Return what may be signed of an image: the index that led to it, and its manifest.

        *index_digest* is of an index that led to it before; so are those of names that are known
        here.  Such a one counts if it lists the manifest.
        """
        if resolved.index_digest is not None:
            return [await self.document(resolved.index_digest), resolved.document]
        wanted = resolved.document.digest
        before = {index_digest} if index_digest is not None else set()
        for record in load_names(self._store):
            if record.manifest_digest == str(wanted) and record.index_digest is not None:
                before.add(record.index_digest)
        found = []
        for text in sorted(before)[:INDEXES]:
            try:
                document = await self.document(parse_digest(text))
                index = decode_manifest(document.data, document.media_type)
            except (NotFound, Offline, FormatError):
                continue
            if isinstance(index, Index) and any(each.digest == wanted for each in index.manifests):
                found.append(document)
        return [*found, resolved.document]

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


def platform_by(source: Source) -> Callable[[Manifest], Awaitable[Platform]]:
    """Return what tells the platform of an image of *source*: its config, fetched."""

    async def platform_of(manifest: Manifest) -> Platform:
        data = await source.fetch_blob(manifest.config, limit=CONFIG_LIMIT)
        return decode_config(data).platform

    return platform_of


async def find_manifest(
    fetch: Callable[[Digest], Awaitable[Document]],
    platform_of: Callable[[Manifest], Awaitable[Platform]],
    document: Document,
    platform: Platform,
) -> tuple[Manifest, Document]:
    """Return the image for *platform* that *document* is or lists, and its document.

    Indexes in indexes are followed, DEPTH deep, and no more than DOCUMENTS of them are fetched.
    Of entries that name no platform the first is taken whose config, by *platform_of*, is for
    *platform*; where there is none, the first.  Raises NoPlatform, FormatError, and what *fetch*
    and *platform_of* raise.
    """
    left = DOCUMENTS
    listed: list[Descriptor] = []
    spare: list[tuple[Manifest, Document]] = []

    async def find(
        document: Document, depth: int, *, is_stated: bool
    ) -> tuple[Manifest, Document] | None:
        nonlocal left
        found = decode_manifest(document.data, document.media_type)
        if isinstance(found, Manifest):
            if is_stated or await _is_for(platform, found, platform_of):
                return found, document
            spare.append((found, document))
            return None
        if depth > DEPTH:
            raise FormatError(f"index {document.digest}: indexes are nested more than {DEPTH} deep")
        listed.extend(found.manifests)
        for entry in rank(found.manifests, platform):
            left -= 1
            if left < 0:
                raise FormatError(f"the index leads to more than {DOCUMENTS} nested documents")
            states = entry.platform is not None or (depth > 1 and is_stated)
            inner = await find(await fetch(entry.digest), depth + 1, is_stated=states)
            if inner is not None:
                return inner
        return None

    # Who names a manifest has chosen; an index states nothing.
    image = await find(document, 1, is_stated=True) or next(iter(spare), None)
    if image is None:
        raise no_platform(listed, platform)
    return image


async def _is_for(
    wanted: Platform,
    manifest: Manifest,
    platform_of: Callable[[Manifest], Awaitable[Platform]],
) -> bool:
    """Say whether a manifest of which no index says what it is for is an image for *wanted*."""
    if not is_image_manifest(manifest):
        return False
    try:
        found = await platform_of(manifest)
    except FormatError:
        return False
    return UNKNOWN in (found.os, found.architecture) or runs(wanted, found)


async def platforms_of(
    fetch: Callable[[Digest], Awaitable[Document]], document: Document
) -> dict[str, Digest]:
    """Return platform → manifest digest of all images that an index lists, those inside it too.

    The first of a platform is the publisher's preference.  Entries for which no platform is stated
    are left out, and those that demand what lazyfs lacks; so are indexes beyond DEPTH and
    DOCUMENTS.
    """
    images: dict[str, Digest] = {}
    left = DOCUMENTS

    async def look(document: Document, depth: int, above: Platform | None) -> None:
        nonlocal left
        found = decode_manifest(document.data, document.media_type)
        for entry in found.manifests if isinstance(found, Index) else ():
            if not (is_image(entry) and has_features(entry)):
                continue
            platform = entry.platform or above
            if is_index(entry) and depth < DEPTH and left > 0:
                left -= 1
                await look(await fetch(entry.digest), depth + 1, platform)
            elif platform is not None and not is_index(entry):
                images.setdefault(str(platform), entry.digest)

    await look(document, 1, None)
    return images


def check_platform(found: Platform, wanted: Platform, name: str, *, is_asked_for: bool) -> None:
    """Warn if the image *name* is not for *wanted*; raise NoPlatform if the user asked for that.

    An index has been chosen from by then, so this is an image that comes alone.  One that does not
    say what it is for passes.
    """
    if UNKNOWN in (found.os, found.architecture) or runs(wanted, found):
        return
    if is_asked_for:
        raise NoPlatform(f"{name} is for {found} only, not for {wanted}")
    log.warning("%s is for %s; this machine is %s", name, found, wanted)
