"""The TOCs of layers whose producer put them into another image.

Spec: stargz-snapshotter docs/external-toc.md.  That image has the main one's tag with ``-esgztoc``
after it, and one layer for each of its layers, which an annotation names.  Nothing vouches for it,
nor need anything: the main image's manifest has the digest of each TOC.
"""

import trio

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError, NotFound
from lazyfs.fetch.origins.origin import Origin
from lazyfs.formats.streams.limits import DEFAULT_LIMITS
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import Manifest, decode_manifest

TAG_SUFFIX = "-esgztoc"
LAYER_DIGEST_KEY = "containerd.io/snapshot/stargz/layer.digest"


class NoTocImage(NotFound):
    """The image that should hold the TOCs cannot be named, or has none for a layer."""

    code = "E_NO_TOC_IMAGE"


class TocImage:
    """The image of TOCs beside the one that *origin* names; asked for when it is needed."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._lock = trio.Lock()
        self._blobs: dict[Digest, Descriptor] | None = None

    async def fetch(self, layer: Descriptor) -> bytes:
        """Return the blob that holds the TOC of *layer*: a gzip member, of a tar of one file."""
        async with self._lock:  # one request for the manifest, whatever the number of layers
            if self._blobs is None:
                self._blobs = await self._list()
        blob = self._blobs.get(layer.digest)
        if blob is None:
            raise NoTocImage(
                f"TOC image {self._name()} has no TOC of layer {layer.digest}, only those of"
                f" {len(self._blobs)} others",
                hint="the image's tag may have moved after its TOCs were pushed",
            )
        return await self._origin.source.fetch_blob(blob, limit=DEFAULT_LIMITS.member_size)

    async def _list(self) -> dict[Digest, Descriptor]:
        name = self._name()
        try:
            document = await self._origin.source.fetch_manifest(name)
        except NotFound as exc:
            raise NoTocImage(f"TOC image {name}: {exc.message}", hint=exc.hint) from exc
        manifest = decode_manifest(document.data, document.media_type)
        if not isinstance(manifest, Manifest):
            raise FormatError(f"TOC image {name} is an index, not a manifest")
        return {
            parse_digest(blob.annotations[LAYER_DIGEST_KEY]): blob
            for blob in manifest.layers
            if LAYER_DIGEST_KEY in blob.annotations
        }

    def _name(self) -> str:
        reference = self._origin.reference
        if reference.tag is None:
            raise NoTocImage(
                "layer: its external TOC is in another image, found by the tag of this one"
                f" (…{TAG_SUFFIX}); the reference has no tag",
                hint="write NAME:TAG@DIGEST",
            )
        return reference.tag + TAG_SUFFIX
