"""Images that are kept beside the snapshots: an OCI image layout under ``base/``.

``index.json`` lists each image with the snapshots that it is kept for, before any blob is stored:
what no committed or young snapshot claims is garbage.  Blobs are shared by all snapshots.
Spec: OCI image-spec, image-layout.md.
"""

import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from lazyfs.digest import Digest, digest_of, parse_digest
from lazyfs.documents.errors import BaseCorrupt, BaseUnavailable, StoreConflict, StoreFailed
from lazyfs.documents.manifest import Manifest
from lazyfs.errors import FormatError
from lazyfs.oci import manifest as oci
from lazyfs.oci.descriptor import Descriptor
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.keys import BASE
from lazyfs.snapshot.stores.objects import ObjectMissing, ObjectStore

log = logging.getLogger(__name__)

INDEX_KEY = f"{BASE}index.json"
LAYOUT_KEY = f"{BASE}oci-layout"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_LIMIT = 16 << 20  # bytes
CLAIMS = "lazyfs.snapshots"  # annotation: the ids of snapshots, with blanks between
REF_NAME = "org.opencontainers.image.ref.name"
SHORT = 12  # hex digits: what tools may call the image
PIECE_SIZE = 1 << 20
TRIES = 50  # of changing the index, which others change too


class Listed(msgspec.Struct, rename="camel", omit_defaults=True):
    """An image of the layout."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}

    @property
    def claims(self) -> list[str]:
        """The ids of the snapshots that it is kept for."""
        return self.annotations.get(CLAIMS, "").split()


class _Index(msgspec.Struct, rename="camel"):
    schema_version: int = 2
    media_type: str = oci.OCI_INDEX
    manifests: list[Listed] = []


def embed(
    objects: ObjectStore,
    snapshot_id: str,
    manifest: bytes,
    media_type: str,
    blobs: Mapping[str, Path | bytes],
    *,
    algorithm: str = "sha256",
) -> None:
    """Keep the image of *manifest* for a snapshot: *blobs* are its config and layers, by digest.

    Blobs that are stored already need not be given.  *algorithm* is that of the digest by which the
    snapshot names the manifest.  Raises BaseCorrupt for bytes that do not have their digest,
    BaseUnavailable for a blob that is nowhere.
    """
    digest = digest_of(manifest, algorithm)
    needed = _blobs_of(manifest, media_type, digest)
    for blob in needed:
        content = blobs.get(str(blob.digest))
        if content is None:
            _require(objects, digest, blob)
        else:
            _check(content, blob)
    objects.put_if_absent(LAYOUT_KEY, LAYOUT)
    change_index(objects, lambda listed: _claim(listed, digest, manifest, media_type, snapshot_id))
    for blob in needed:
        content = blobs.get(str(blob.digest))
        if content is None:  # claimed now: before that, it could have been collected
            _require(objects, digest, blob)
        else:
            _put(objects, blob.digest, content, blob.size)
    _put(objects, digest, manifest, len(manifest))


def embedded(objects: ObjectStore, manifest: Manifest, scratch: Path) -> Path | None:
    """Return an image layout that has the snapshot's embedded images, None if it has none.

    A directory's own layout is used; from elsewhere it is copied to *scratch*, verified.  Blobs
    that are missing or wrong are left out and logged: whoever needs them says so.
    """
    wanted = {image.manifest_digest: image for image in manifest.images if image.embedded is True}
    if not wanted:
        return None
    if isinstance(objects, DirectoryStore):
        return objects.path / BASE.rstrip("/")
    with local_errors(scratch, "make"):
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "oci-layout").write_bytes(LAYOUT)
        listed = []
        for text, image in wanted.items():
            digest = parse_digest(text)
            path = _fetch(objects, digest, scratch, oci.DOCUMENT_LIMIT)
            if path is None:
                continue
            listed.append(Listed(image.manifest_media_type, text, path.stat().st_size))
            for blob in _blobs_of(path.read_bytes(), image.manifest_media_type, digest):
                _fetch(objects, blob.digest, scratch, blob.size)
        (scratch / "index.json").write_bytes(msgspec.json.encode(_Index(manifests=listed)))
    return scratch


def verify(objects: ObjectStore, manifest: Manifest) -> list[BaseCorrupt | BaseUnavailable]:
    """Read all blobs of the snapshot's embedded images; return what is missing or wrong."""
    wrong: list[BaseCorrupt | BaseUnavailable] = []
    for image in manifest.images:
        if image.embedded is not True:
            continue
        limits = {layer.digest: layer.size for layer in image.layers}
        for text in dict.fromkeys([image.manifest_digest, image.config_digest, *limits]):
            digest = parse_digest(text)
            left = limits.get(text, oci.DOCUMENT_LIMIT) + 1
            hashed = hashlib.new(digest.algorithm, usedforsecurity=False)
            what = f"image {image.name}: embedded blob"
            try:
                with objects.open(blob_key(digest)) as stream:
                    while left and (data := stream.read(min(left, PIECE_SIZE))):
                        hashed.update(data)
                        left -= len(data)
            except ObjectMissing:
                wrong.append(BaseUnavailable(f"{what} {digest} is missing"))
                continue
            if not left or hashed.hexdigest() != digest.hex:
                got = f"{digest.algorithm}:{hashed.hexdigest()}"
                wrong.append(BaseCorrupt(f"{what}: got {got}, expected {digest}"))
    return wrong


def blob_key(digest: Digest) -> str:
    """Return where a blob is kept."""
    return f"{BASE}blobs/{digest.algorithm}/{digest.hex}"


def layout_key(digest: Digest) -> str:
    """Return where a blob lies in an image layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def blobs_of_image(objects: ObjectStore, listed: Listed) -> set[str]:
    """Return the keys of all blobs of a listed image, its manifest first of all.

    Raises BaseCorrupt where the manifest cannot be read: nobody knows what it needs then.
    """
    digest = parse_digest(listed.digest)
    try:
        data = objects.get(blob_key(digest), oci.DOCUMENT_LIMIT)
    except ObjectMissing:
        return {blob_key(digest)}  # claimed, not stored yet
    if digest_of(data, digest.algorithm) != digest:
        raise BaseCorrupt(f"image {digest}: its manifest has digest {digest_of(data)}")
    blobs = _blobs_of(data, listed.media_type, digest)
    return {blob_key(digest), *(blob_key(blob.digest) for blob in blobs)}


def read_index(objects: ObjectStore) -> list[Listed]:
    """Return the images of the layout."""
    return _read(objects)[1]


def change_index(
    objects: ObjectStore, change: Callable[[list[Listed]], list[Listed]]
) -> list[Listed]:
    """Replace what the index lists by what *change* makes of it; return that."""
    for tries in range(TRIES):
        data, listed = _read(objects)
        changed = change(listed)
        if changed == listed:
            return listed
        new = msgspec.json.encode(_Index(manifests=changed))
        if objects.replace(INDEX_KEY, new, data):
            return changed
        time.sleep(random.uniform(0, 0.01 * min(tries + 1, 20)))
    raise StoreConflict(
        f"{INDEX_KEY} in {objects.url} was changed by others during each of {TRIES} attempts"
    )


def without_claims(listed: Iterable[Listed], is_kept: Callable[[str], bool]) -> list[Listed]:
    """Return the images that snapshots for which *is_kept* claim, with those claims.

    One that no snapshot ever claimed was listed by somebody else, and stays.
    """
    found = []
    for each in listed:
        if CLAIMS not in each.annotations:
            found.append(each)
            continue
        claims = [snapshot_id for snapshot_id in each.claims if is_kept(snapshot_id)]
        if claims:
            found.append(_with_claims(each, claims))
    return found


def _claim(
    listed: list[Listed], digest: Digest, manifest: bytes, media_type: str, snapshot_id: str
) -> list[Listed]:
    for position, each in enumerate(listed):
        if each.digest == str(digest):
            claims = sorted({*each.claims, snapshot_id})
            return [*listed[:position], _with_claims(each, claims), *listed[position + 1 :]]
    new = Listed(media_type, str(digest), len(manifest), {REF_NAME: digest.hex[:SHORT]})
    return [*listed, _with_claims(new, [snapshot_id])]


def _with_claims(listed: Listed, claims: list[str]) -> Listed:
    annotations = listed.annotations | {CLAIMS: " ".join(claims)}
    return msgspec.structs.replace(listed, annotations=annotations)


def _read(objects: ObjectStore) -> tuple[bytes | None, list[Listed]]:
    try:
        data = objects.get(INDEX_KEY, INDEX_LIMIT)
    except ObjectMissing:
        return None, []
    try:
        listed = msgspec.json.decode(data, type=_Index).manifests
        for each in listed:
            parse_digest(each.digest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, FormatError) as error:
        raise StoreFailed(
            f"{INDEX_KEY} in {objects.url} is not a valid index of images: {str(error)[:200]}"
        ) from None
    return data, listed


def _blobs_of(data: bytes, media_type: str, digest: Digest) -> tuple[Descriptor, ...]:
    """Return the config and the layers of a manifest, each once."""
    try:
        document = oci.decode_manifest(data, media_type)
    except FormatError as error:
        raise BaseCorrupt(f"image {digest}: {error.message}") from error
    if not isinstance(document, oci.Manifest):
        raise BaseCorrupt(f"image {digest} is an index, not the manifest of one platform")
    blobs = {blob.digest: blob for blob in (document.config, *document.layers)}
    return tuple(blobs.values())


def _require(objects: ObjectStore, digest: Digest, blob: Descriptor) -> None:
    if objects.size(blob_key(blob.digest)) != blob.size:
        raise BaseUnavailable(f"image {digest}: blob {blob.digest} to embed is missing")


def _check(content: Path | bytes, blob: Descriptor) -> None:
    """Raise BaseCorrupt unless *content* is the blob."""
    hashed, size = hashlib.new(blob.digest.algorithm, usedforsecurity=False), 0
    for data in _pieces(content):
        hashed.update(data)
        size += len(data)
    if hashed.hexdigest() != blob.digest.hex or size != blob.size:
        raise BaseCorrupt(
            f"blob to embed: got {blob.digest.algorithm}:{hashed.hexdigest()} ({size} bytes), "
            f"expected {blob.digest} ({blob.size} bytes)"
        )


def _pieces(content: Path | bytes) -> Iterable[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with local_errors(content, "read"), open(content, "rb") as stream:
        while data := stream.read(PIECE_SIZE):
            yield data


def _put(objects: ObjectStore, digest: Digest, content: Path | bytes, size: int) -> None:
    key = blob_key(digest)
    if objects.size(key) == size:
        return
    if isinstance(content, Path):
        objects.put_file(key, content)
    elif not objects.put_if_absent(key, content):
        found = objects.get(key, max(size, oci.DOCUMENT_LIMIT))
        if found != content:  # somebody's damage
            objects.replace(key, content, found)
    if (stored := objects.size(key)) != size:
        raise StoreFailed(f"blob {digest}: got {stored} bytes in the store, expected {size}")


def _fetch(objects: ObjectStore, digest: Digest, layout: Path, limit: int) -> Path | None:
    """Copy a blob to *layout*, verified; None where it is missing or wrong."""
    target = layout / layout_key(digest)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{digest.hex}")
    hashed, size = hashlib.new(digest.algorithm, usedforsecurity=False), 0
    try:
        with objects.open(blob_key(digest)) as stream, open(temporary, "wb") as output:
            while size <= limit and (data := stream.read(PIECE_SIZE)):
                hashed.update(data)
                size += len(data)
                output.write(data)
    except ObjectMissing:
        log.warning("embedded image blob %s is missing from the store", digest)
        return None
    if size > limit or hashed.hexdigest() != digest.hex:
        log.warning("embedded image blob %s in the store does not have its digest", digest)
        temporary.unlink()
        return None
    temporary.rename(target)
    return target
