"""Profiles for people: which image a name means, and which files a profile's chunks belong to."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import msgspec

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import NotFound, UsageError
from lazyfs.fetch.origins.origin import Origin
from lazyfs.formats.tocs.toc import Kind
from lazyfs.image.known import known_images
from lazyfs.image.prepare import wanted_platform
from lazyfs.image.resolve import Resolver
from lazyfs.oci.reference import parse_reference
from lazyfs.registry.config.access import AccessOptions
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.layout import LAYOUT_VERSION
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.images import ImageRecord, StoredImage, load_image, load_record
from lazyfs.store.layers import load_table
from lazyfs.store.paths import Store
from lazyfs.store.profiles import BadProfile, Profile, load_profile


class NoProfile(NotFound):
    """There is no profile of an image, or no image to explain it by."""


class WrongImage(UsageError):
    """A profile of another image than the one that was named."""

    code = "E_WRONG_IMAGE"


class ProfiledFile(msgspec.Struct):
    """One file as a profile names it, in the order of first reads; sizes in bytes.

    ``path`` is None for bytes that are in no file of the image: a landmark, or a file that an upper
    layer replaces.  ``size`` is the whole file's, ``read_size`` that of its chunks in the profile.
    ``layer`` counts from 0, the bottom one.
    """

    path: bytes | None
    layer: int
    size: int
    read_size: int = 0
    chunks: int = 0


async def find_manifest(
    store: Store, text: str, platform: str | None, access: AccessOptions
) -> Digest:
    """Return the manifest digest that *text* means.

    What is known here is not asked for; a digest is taken as it is.  Only a tag that was never
    mounted here is looked up.
    """
    found = known_images(store, text)
    wanted = wanted_platform(platform)
    if len(found) > 1:
        for_platform = [each for each in found if _platform_of(store, each) == str(wanted)]
        if len(for_platform) != 1:
            raise UsageError(f"{text} names several images; choose one of {', '.join(found)}")
        found = for_platform
    if found:
        return parse_digest(found[0])
    reference = parse_reference(text)
    if reference.digest is not None:
        return reference.digest
    origin = Origin(reference, access)
    try:
        resolved = await Resolver(store, origin).resolve(reference.identifier, wanted)
    finally:
        await origin.aclose()
    return resolved.document.digest


def check_profile(store: Store, profile: Profile, manifest_digest: Digest) -> None:
    """Raise WrongImage or BadProfile unless *profile* can be one of the image.

    Where the image's layers are stored, each chunk must be one of them.
    """
    if profile.manifest_digest != str(manifest_digest):
        raise WrongImage(
            f"profile: got one of {profile.manifest_digest[:150]}, expected {manifest_digest}",
            hint="a profile belongs to the manifest of one platform; choose it with --platform",
        )
    if profile.layout != LAYOUT_VERSION:
        raise BadProfile(f"profile: got layout {profile.layout}, expected {LAYOUT_VERSION}")
    record = load_record(store.image_path(manifest_digest))
    if record is None:
        return
    if profile.layers != tuple(layer.toc_digest for layer in record.layers):
        raise BadProfile(f"profile: its layers are not those of {manifest_digest}")
    tables = [load_table(store, parse_digest(digest)) for digest in profile.layers]
    for layer, chunk in profile.accesses:
        table = tables[layer]
        if table is not None and chunk >= table.count:
            raise BadProfile(
                f"profile: layer {layer}: got chunk {chunk}, expected less than {table.count}"
            )


def load_profiled(store: Store, profile: Profile) -> tuple[ImageRecord, list[ProfiledFile]]:
    """Return the files that a profile names, in the order of first reads.

    Raises NoProfile where the image's rootfs index or a layer table is not stored.
    """
    digest = parse_digest(profile.manifest_digest)
    image = load_image(store, digest)
    tables = [load_table(store, parse_digest(text)) for text in profile.layers]
    if image is None or None in tables or profile.layout != LAYOUT_VERSION:
        raise NoProfile(
            f"image {digest}: the files cannot be named, its rootfs index is not in the cache",
            hint="run `lazyfs ls` on the image, or mount it, and try again",
        )
    check_profile(store, profile, digest)
    return image.record, _files(image, [table for table in tables if table], profile)


def recorded_files(store: Store, manifest_digest: Digest) -> tuple[str, ...]:
    """Return the files that mounts of an image have read, in the order of first reads.

    For whoever puts them first in a layer: files of which less than half was read are left out,
    since all of a file would be fetched ahead.  Raises NoProfile.
    """
    found = load_profile(store, manifest_digest)
    if found is None:
        raise NoProfile(
            f"image {manifest_digest} has no profile",
            hint="a profile is recorded when the image is mounted and read",
        )
    _, files = load_profiled(store, found)
    return tuple(
        file.path.decode("utf-8", "surrogateescape")
        for file in files
        if file.path is not None and 2 * file.read_size >= file.size
    )


def _files(
    image: StoredImage, tables: Sequence[LayerTable], profile: Profile
) -> list[ProfiledFile]:
    extents: list[list[tuple[int, int, bytes]]] = [[] for _ in tables]
    for device, offset, extent_size, name in _extents(image.index):
        if device <= len(tables):
            extents[device - 1].append((offset, extent_size, name))
    for each in extents:
        each.sort()
    starts = [[offset for offset, _, _ in each] for each in extents]
    found: dict[tuple[int, bytes | None], ProfiledFile] = {}
    for layer, chunk in profile.accesses:
        offset = tables[layer].device_offset(chunk)
        place = bisect_right(starts[layer], offset) - 1
        path: bytes | None = None
        size = 0
        if place >= 0:
            start, whole, name = extents[layer][place]
            if offset < start + whole:
                path, size = name, whole
        file = found.setdefault((layer, path), ProfiledFile(path, layer, size))
        file.read_size += tables[layer].size(chunk)
        file.chunks += 1
    return list(found.values())


def _extents(index: ErofsIndex) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield device, offset, size and path of each file with contents; hardlinks once."""
    seen: set[int] = set()
    pending = [(index.root_nid, b"")]
    while pending:
        directory, prefix = pending.pop()
        for entry in index.entries(directory):
            if entry.name in (b".", b"..") or entry.nid in seen:
                continue
            seen.add(entry.nid)
            path = prefix + b"/" + entry.name
            if entry.kind is Kind.DIRECTORY:
                pending.append((entry.nid, path))
            elif entry.kind is Kind.REGULAR:
                extent = index.extent(entry.nid)
                if extent is not None:
                    yield extent.device, extent.offset, extent.size, path


def _platform_of(store: Store, manifest_digest: str) -> str | None:
    record = load_record(store.image_path(parse_digest(manifest_digest)))
    return None if record is None else record.platform
