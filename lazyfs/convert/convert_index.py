"""Convert every platform of an image: an index comes in, an index goes out.

What an index lists beside images (attestations, signatures) is copied as it is, and goes on
speaking of the source's manifests, by digest.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lazyfs.convert.convert import (
    Conversion,
    ConvertOptions,
    Report,
    convert_image,
    convert_manifest,
    siblings_of,
)
from lazyfs.convert.push_tocs import push_tocs
from lazyfs.convert.rebuild import build_index
from lazyfs.digest import Digest, digest_of
from lazyfs.errors import FormatError, StoreError
from lazyfs.fetch.origins.whole import fetch_file
from lazyfs.image.profiled import NoProfile
from lazyfs.image.resolve import DEPTH
from lazyfs.oci.choosing import is_image, is_image_manifest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    decode_manifest,
)
from lazyfs.registry.source import Destination, Document, Source


class ConvertedIndex(msgspec.Struct, frozen=True):
    """What was converted: the new index's digest, and each image, in the index's order."""

    manifest_digest: Digest
    images: tuple[Conversion, ...]


async def convert_index(
    source: Source,
    identifier: str | Digest,
    destination: Destination,
    tag: str,
    options: ConvertOptions,
    *,
    report: Report = lambda layer: None,
) -> ConvertedIndex:
    """Convert all images of the index that *identifier* names; a single image by itself.

    The options' platform does not count.  Images come one after another: when one of them fails,
    blobs of those before it may be there already, but nothing that names them.  A platform without
    a profile is converted without one, as long as another has one.  Indexes in the index are
    converted too.  Raises what convert_image raises, and FormatError where they are nested deeper
    than DEPTH.
    """
    document = await source.fetch_manifest(identifier)
    found = decode_manifest(document.data, document.media_type)
    if isinstance(found, Manifest):
        only = await convert_image(
            source, document.digest, destination, tag, options, report=report
        )
        return ConvertedIndex(only.manifest_digest, (only,))
    work = _Indexes(source, destination, options, report)
    index = await work.convert(document, found, depth=1)
    if work.missing is not None and work.without == len(work.images):
        raise work.missing
    await push_tocs(destination, tag, work.tocs, options.writer)
    digest = await destination.push_manifest(index, OCI_INDEX, tag)
    return ConvertedIndex(digest, tuple(work.images))


@dataclass(slots=True)
class _Indexes:
    """An index, and those in it, on their way; what was converted so far."""

    source: Source
    destination: Destination
    options: ConvertOptions
    report: Report
    images: list[Conversion] = field(default_factory=list)
    tocs: list[tuple[Digest, bytes]] = field(default_factory=list)
    missing: NoProfile | None = None
    without: int = 0  # images that have no profile

    async def convert(self, document: Document, index: Index, depth: int) -> bytes:
        """Convert and push all that *index* lists; return the new index, which is not pushed."""
        if depth > DEPTH:
            raise FormatError(f"index {document.digest}: indexes are nested more than {DEPTH} deep")
        made = {}
        for place, listed in enumerate(index.manifests):
            each = await self.source.fetch_manifest(listed.digest)
            found = decode_manifest(each.data, each.media_type)
            if isinstance(found, Manifest) and not _is_image(listed, found):
                await _copy(self.source, self.destination, found, self.options)
                await self.destination.push_manifest(each.data, each.media_type, None)
                continue
            if isinstance(found, Manifest):
                data, media_type = await self._image(each, found), OCI_MANIFEST
            else:
                data, media_type = await self.convert(each, found, depth + 1), OCI_INDEX
            await self.destination.push_manifest(data, media_type, None)
            made[place] = (digest_of(data), len(data), media_type)
        is_same = index.media_type == OCI_INDEX and all(
            index.manifests[place].digest == digest for place, (digest, _, _) in made.items()
        )
        return document.data if is_same else build_index(document.data, made)

    async def _image(self, document: Document, manifest: Manifest) -> bytes:
        """Convert one image; return its new manifest."""
        arguments = (self.source, document, manifest, self.destination)
        try:
            converted = await convert_manifest(*arguments, self.options, self.report)
        except NoProfile as exc:
            self.missing, self.without = exc, self.without + 1
            options = replace(self.options, advise=None)
            converted = await convert_manifest(*arguments, options, self.report)
        self.images.append(converted.conversion)
        self.tocs += converted.tocs
        return converted.manifest


def _is_image(listed: Descriptor, manifest: Manifest) -> bool:
    return is_image(listed) and is_image_manifest(manifest)


async def _copy(
    source: Source, destination: Destination, manifest: Manifest, options: ConvertOptions
) -> None:
    """Copy the blobs that a manifest names."""
    siblings = siblings_of(source.repository, destination.repository)
    try:
        with tempfile.TemporaryDirectory(prefix="lazyfs-", dir=options.temporary_dir) as name:
            for blob in (manifest.config, *manifest.layers):
                if not await destination.has_blob(blob):
                    path = Path(name, blob.digest.hex)
                    await fetch_file(source, blob, path)
                    await destination.push_blob(blob, path, mount_from=siblings)
    except OSError as exc:
        raise StoreError(
            f"convert: {exc}", hint="set TMPDIR to put temporary files elsewhere"
        ) from exc
