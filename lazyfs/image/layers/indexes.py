"""Indexes of plain layers in a registry: published as a referrer of the image, used by its digest.

An index is a manifest with the image's as its subject and one blob per plain layer
(formats/layer_index.py).  Who can push can add referrers, so what a registry lists is not believed:
an index is used that was built here, or whose manifest's digest somebody has pinned.
"""

import json
from collections.abc import Sequence

import msgspec
import trio

from lazyfs.digest import Digest, digest_of, parse_digest
from lazyfs.errors import FormatError, LazyfsError, NotFound, VerificationFailed
from lazyfs.formats.layer_index import LayerIndex, decode_index, encode_index
from lazyfs.formats.layer_pass import codec_of, placed
from lazyfs.formats.layers import PLAIN
from lazyfs.formats.streams.limits import DEFAULT_LIMITS, Limits
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import OCI_MANIFEST, Manifest, decode_manifest
from lazyfs.registry.source import Source
from lazyfs.rootfs.table import build_table
from lazyfs.store.layers import load_toc, save_layer
from lazyfs.store.passes import PassRecord, load_pass, save_pass
from lazyfs.store.paths import Store
from lazyfs.store.spans import load_spans, save_spans

ARTIFACT_TYPE = "application/vnd.lazyfs.index.v1+json"
LAYER_INDEX_TYPE = "application/vnd.lazyfs.layer-index.v1"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
LAYER_KEY = "lazyfs.layer"
"""Annotation of a blob: the digest of the layer whose index it is."""

INDEX_LIMIT = 1 << 30  # decode_index has the real limits
INDEX_LEAST = 64 << 20
INDEX_SHARE = 4
"""A blob's index may have this part of the blob's size, and INDEX_LEAST: what is kept of 128 KiB of
a layer to begin there has some KiB at most."""


class BadIndex(FormatError):
    """A manifest that is no index of the image, or that does not have what is needed of it."""

    code = "E_BAD_INDEX"


class IndexContradicted(VerificationFailed):
    """A full pass over a layer found something else than the index that was used for it says."""

    code = "E_INDEX_CONTRADICTED"


class Artifact(msgspec.Struct, frozen=True):
    """An index that is ready to be pushed: ``manifest`` is the document, the rest its blobs."""

    manifest: bytes
    blobs: tuple[tuple[Descriptor, bytes], ...]

    @property
    def digest(self) -> Digest:
        """What to pin."""
        return digest_of(self.manifest)


def build_artifact(subject: Descriptor, indexes: Sequence[tuple[Descriptor, bytes]]) -> Artifact:
    """Return the index of the image *subject*: for each plain layer, its encoded index.

    Spec: OCI image-spec, manifest.md, "Guidelines for Artifact Usage".
    """
    config = Descriptor(EMPTY_TYPE, digest_of(EMPTY), len(EMPTY))
    blobs = [
        (
            Descriptor(
                LAYER_INDEX_TYPE, digest_of(data), len(data), {LAYER_KEY: str(layer.digest)}
            ),
            data,
        )
        for layer, data in indexes
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": config.document(),
        "layers": [descriptor.document() for descriptor, _ in blobs],
        "subject": subject.document(),
    }
    manifest = json.dumps(document, separators=(",", ":")).encode()
    return Artifact(manifest, ((config, EMPTY), *blobs))


def local_index(store: Store, layer: Descriptor) -> bytes | None:
    """Return the index of a layer that a pass here has left, None without one."""
    record = load_pass(store, layer.digest)
    if record is None or record.index_digest:
        return None
    toc_digest = parse_digest(record.toc_digest)
    toc_json = load_toc(store, toc_digest)
    if toc_json is None:
        return None
    spans = load_spans(store, toc_digest, layer.size)
    if spans is None:
        return None
    return encode_index(
        LayerIndex(
            blob_digest=layer.digest,
            blob_size=record.blob_size,
            diff_id=parse_digest(record.diff_id),
            plain_size=record.plain_size,
            toc_digest=toc_digest,
            toc_json=toc_json,
            codec=codec_of(spans),
            spans=spans,
        )
    )


async def fetch_index(
    source: Source, pinned: Digest, image: Digest, layers: Sequence[Descriptor]
) -> dict[Digest, LayerIndex]:
    """Return the indexes of *layers* out of the index *pinned* of *image*.

    Raises NotFound where there is none, BadIndex for an index of another image; a layer that it
    does not have is left out.
    """
    try:
        document = await source.fetch_manifest(pinned)
    except NotFound as exc:
        raise NotFound(
            f"index {pinned} is not in the repository of the image {image}",
            hint="`lazyfs index show IMAGE` lists the published indexes",
        ) from exc
    manifest = decode_manifest(document.data, document.media_type)
    if not isinstance(manifest, Manifest) or manifest.artifact_type != ARTIFACT_TYPE:
        got = manifest.artifact_type if isinstance(manifest, Manifest) else manifest.media_type
        raise BadIndex(f"index {pinned}: got {got or 'an image'}, expected {ARTIFACT_TYPE}")
    subject = None if manifest.subject is None else manifest.subject.digest
    if subject != image:
        raise BadIndex(f"index {pinned}: got subject {subject}, expected {image}")
    blobs = {blob.annotations.get(LAYER_KEY): blob for blob in manifest.layers}
    found: dict[Digest, LayerIndex] = {}
    errors: list[LazyfsError] = []

    async def fetch(layer: Descriptor, blob: Descriptor) -> None:
        try:
            limit = min(INDEX_LIMIT, INDEX_LEAST + layer.size // INDEX_SHARE)
            index = decode_index(await source.fetch_blob(blob, limit=limit))
            if (index.blob_digest, index.blob_size) != (layer.digest, layer.size):
                raise BadIndex(
                    f"index {pinned}: got {index.blob_digest} ({index.blob_size} bytes),"
                    f" expected {layer.digest} ({layer.size} bytes)"
                )
            found[layer.digest] = index
        except LazyfsError as exc:
            errors.append(exc)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for layer in {layer.digest: layer for layer in layers}.values():
            blob = blobs.get(str(layer.digest))
            if blob is not None:
                nursery.start_soon(fetch, layer, blob)
    if errors:
        raise errors[0]
    return found


def keep_index(
    store: Store,
    index: LayerIndex,
    pinned: Digest,
    diff_id: Digest,
    limits: Limits = DEFAULT_LIMITS,
) -> Toc:
    """Keep the index of a layer that came with *pinned*; return its TOC.

    Raises BadIndex where it is of another uncompressed layer than *diff_id*.
    """
    if index.diff_id != diff_id:
        raise BadIndex(
            f"index {pinned}: got diffID {index.diff_id} of {index.blob_digest}, expected {diff_id}"
        )
    toc = toc_of(index, limits)
    save_layer(store, toc.digest, index.toc_json, _table(toc, index))
    save_spans(store, toc.digest, index.spans)
    save_pass(
        store,
        PassRecord(
            blob_digest=str(index.blob_digest),
            blob_size=index.blob_size,
            diff_id=str(index.diff_id),
            plain_size=index.plain_size,
            toc_digest=str(index.toc_digest),
            index_digest=str(pinned),
        ),
    )
    return toc


def _table(toc: Toc, index: LayerIndex) -> bytes:
    return build_table(toc, index.blob_size, PLAIN[index.codec])


def toc_of(index: LayerIndex, limits: Limits = DEFAULT_LIMITS) -> Toc:
    """Return the TOC of an index, by the rules of all TOCs; raises BadToc."""
    toc = decode_toc(
        index.toc_json,
        expected=index.toc_digest,
        blob_size=index.blob_size,
        codec=index.codec,
        limits=limits,
    )
    return placed(toc, index.spans)
