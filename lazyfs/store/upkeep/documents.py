"""Which of the stored manifests, indexes and configs the stored images need."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError
from lazyfs.oci.manifest import DOCUMENT_LIMIT, Index, Manifest, decode_manifest
from lazyfs.store.content.regular import open_regular
from lazyfs.store.images import ImageRecord
from lazyfs.store.paths import Store


def documents_in(store: Store) -> Iterator[tuple[Path, Digest]]:
    """Yield the documents of the store, sorted; names that are no digest are not ours."""
    for path in sorted(store.blobs.glob("*/*")):
        try:
            yield path, parse_digest(f"{path.parent.name}:{path.name}")
        except FormatError:
            continue


def unneeded_documents(store: Store, kept: Iterable[ImageRecord]) -> list[Path]:
    """Return the documents that none of the images *kept* needs.

    An image needs its manifest, its config and the indexes that list it: with those a reference by
    digest is resolved without a request.
    """
    manifests, needed = _needed(kept)
    return [
        path
        for path, digest in documents_in(store)
        if digest not in needed and not manifests & listed_in(path)
    ]


def documents_of(
    store: Store, manifest_digest: Digest, config_digest: Digest | None, kept: Iterable[ImageRecord]
) -> list[Path]:
    """Return the documents of one image that none of the images *kept* needs."""
    manifests, needed = _needed(kept)
    found = []
    for path, digest in documents_in(store):
        if digest in needed:
            continue
        if digest in (manifest_digest, config_digest):
            found.append(path)
        else:
            listed = listed_in(path)
            if manifest_digest in listed and not manifests & listed:
                found.append(path)
    return found


def config_of(store: Store, manifest_digest: Digest) -> Digest | None:
    """Return the digest of an image's config, if its manifest is stored."""
    found = _decoded(store.blob_path(manifest_digest))
    return found.config.digest if isinstance(found, Manifest) else None


def listed_in(path: Path) -> set[Digest]:
    """Return the manifests that an index lists; none for any other document."""
    found = _decoded(path)
    return {each.digest for each in found.manifests} if isinstance(found, Index) else set()


def _needed(kept: Iterable[ImageRecord]) -> tuple[set[Digest], set[Digest]]:
    """Return the manifests of images, and these and their configs."""
    kept = list(kept)
    manifests = {parse_digest(record.manifest_digest) for record in kept}
    return manifests, manifests | {parse_digest(record.config_digest) for record in kept}


def _decoded(path: Path) -> Manifest | Index | None:
    try:
        with open_regular(path) as file:
            data = file.read(DOCUMENT_LIMIT + 1)
        return decode_manifest(data, None)
    except (OSError, FormatError):
        return None
