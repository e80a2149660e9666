"""Layers for whose TOC the manifest does not vouch, and how they are to be had."""

from collections.abc import Callable, Iterable

import msgspec

from lazyfs.digest import Digest, DigestMismatch
from lazyfs.errors import FormatError
from lazyfs.formats.tocs.claims import claims_of
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import is_layer_encrypted, is_layer_tar
from lazyfs.store.images import LayerRecord
from lazyfs.store.passes import PassRecord

Progress = Callable[[int], object]
"""Told a number of bytes."""

PASS, INDEX = "pass", "index"
"""What vouches for the TOC of a plain layer: a full pass, or whoever pinned an index."""


class PlainOptions(msgspec.Struct, frozen=True):
    """How plain layers are had.

    ``pinned`` is the digest of an index to believe.  ``believed`` are layers and TOCs, digests as
    text, that an index has vouched for before, in this image.  ``progress`` is told bytes of
    blobs, ``on_total`` how many there will be, once they are known.
    """

    pinned: Digest | None = None
    believed: frozenset[tuple[str, str]] = frozenset()
    progress: Progress = msgspec.field(default=lambda size: None)
    on_total: Progress = msgspec.field(default=lambda size: None)

    def believes(self, record: PassRecord) -> bool:
        """Say whether *record*, of a pass or an index, is to be believed here.

        An index is, that was pinned for this image: whoever made it vouches for no other one.
        """
        if not record.index_digest or record.index_digest == str(self.pinned):
            return True
        return (record.blob_digest, record.toc_digest) in self.believed


def believed_of(layers: Iterable[LayerRecord]) -> frozenset[tuple[str, str]]:
    """Return what an index has vouched for of an image's *layers*."""
    return frozenset(
        (layer.digest, layer.toc_digest) for layer in layers if layer.verified_by == INDEX
    )


class EncryptedLayer(FormatError):
    """A layer that nobody can read who has no key."""

    code = "E_ENCRYPTED_LAYER"


class NotATar(FormatError):
    """A layer of a type that is not known to be a tar: another file system, an artifact."""

    code = "E_LAYER_TYPE"


def check_readable(layer: Descriptor) -> None:
    """Raise EncryptedLayer or NotATar for one, before anything of it is fetched."""
    if is_layer_encrypted(layer.media_type):
        raise EncryptedLayer(
            f"layer {layer.digest} is encrypted ({layer.media_type})",
            hint="decrypt the image first: `skopeo copy --decryption-key KEY SRC DST`",
        )
    if not is_layer_tar(layer.media_type):
        named = f"the media type {layer.media_type[:100]!r}"
        called = named if layer.media_type else "no media type"
        raise NotATar(
            f"layer {layer.digest} has {called}; it is not known to be a tar",
            hint="lazyfs reads the layer types of OCI and Docker: tar, tar+gzip, tar+zstd",
        )


def check_image(layers: Iterable[Descriptor]) -> None:
    """Raise what check_readable raises for the lowest layer that cannot be read."""
    for layer in layers:
        check_readable(layer)


def check_pairs(layers: Iterable[tuple[Descriptor, Digest]]) -> None:
    """Raise DigestMismatch where a layer that is there twice has two diffIDs: one is not its own.

    A pass is made once for each layer, and compared with one.
    """
    stated: dict[Digest, Digest] = {}
    for layer, diff_id in layers:
        other = stated.setdefault(layer.digest, diff_id)
        if other != diff_id:
            raise DigestMismatch(
                f"layer {layer.digest} has two different diffIDs: {other} and {diff_id}"
            )


def is_plain(layer: Descriptor) -> bool:
    """Say whether the manifest vouches for no TOC of *layer*.

    Raises BadAnnotation and EncryptedLayer.
    """
    check_readable(layer)
    return claims_of(layer.annotations).key is None
