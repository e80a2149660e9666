"""Convert every platform of an image: an index comes in, an index goes out.

What an index lists beside images (attestations, signatures) is copied as it is, and goes on
speaking of the source's manifests, by digest.
"""

import tempfile
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lazyfs.digest import Digest
from lazyfs.errors import FormatError, StoreError
from lazyfs.image.convert import (
    Conversion,
    ConvertOptions,
    Report,
    convert_image,
    convert_manifest,
    siblings_of,
)
from lazyfs.image.profiled import NoProfile
from lazyfs.image.push_tocs import push_tocs
from lazyfs.image.rebuild import build_index
from lazyfs.image.whole import fetch_file
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    decode_manifest,
)
from lazyfs.registry.source import Destination, Source

REFERENCE_TYPE = "vnd.docker.reference.type"  # of what BuildKit lists as if it were an image


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
    a profile is converted without one, as long as another has one.  Raises what convert_image
    raises, and FormatError for an index in the index.
    """
    document = await source.fetch_manifest(identifier)
    found = decode_manifest(document.data, document.media_type)
    if isinstance(found, Manifest):
        only = await convert_image(
            source, document.digest, destination, tag, options, report=report
        )
        return ConvertedIndex(only.manifest_digest, (only,))
    made = {}
    tocs: list[tuple[Digest, bytes]] = []
    missing: NoProfile | None = None
    without = 0
    for place, listed in enumerate(found.manifests):
        each = await source.fetch_manifest(listed.digest)
        manifest = decode_manifest(each.data, each.media_type)
        if not isinstance(manifest, Manifest):
            raise FormatError(
                f"index {document.digest}: got another index in it, {listed.digest},"
                " expected images"
            )
        if not _is_image(listed, manifest):
            await _copy(source, destination, manifest, options)
            await destination.push_manifest(each.data, each.media_type, None)
            continue
        arguments = (source, each, manifest, destination)
        try:
            converted = await convert_manifest(*arguments, options, report)
        except NoProfile as exc:
            missing, without = exc, without + 1
            converted = await convert_manifest(*arguments, replace(options, advise=None), report)
        await destination.push_manifest(converted.manifest, OCI_MANIFEST, None)
        made[place] = converted
        tocs += converted.tocs
    if missing is not None and without == len(made):
        raise missing
    sizes = {
        place: (each.conversion.manifest_digest, len(each.manifest)) for place, each in made.items()
    }
    await push_tocs(destination, tag, tocs, options.writer)
    is_same = found.media_type == OCI_INDEX and all(
        found.manifests[place].digest == digest for place, (digest, _) in sizes.items()
    )
    index = document.data if is_same else build_index(document.data, sizes)
    digest = await destination.push_manifest(index, OCI_INDEX, tag)
    return ConvertedIndex(digest, tuple(each.conversion for each in made.values()))


def _is_image(listed: Descriptor, manifest: Manifest) -> bool:
    is_artifact = listed.artifact_type or manifest.artifact_type or manifest.subject
    is_attached = REFERENCE_TYPE in listed.annotations
    has_config = manifest.config.media_type in (OCI_CONFIG, DOCKER_CONFIG)
    return has_config and not is_artifact and not is_attached


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
        raise StoreError(f"convert: {exc}", hint="TMPDIR says where temporary files go") from exc
