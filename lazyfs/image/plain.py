"""Layers for whose TOC the manifest does not vouch, and how they are to be had."""

from collections.abc import Callable

import msgspec

from lazyfs.digest import Digest
from lazyfs.formats.claims import claims_of
from lazyfs.oci.descriptor import Descriptor

Progress = Callable[[int], object]
"""Told a number of bytes."""

PASS, INDEX = "pass", "index"
"""What vouches for the TOC of a plain layer: a full pass, or whoever pinned an index."""


class PlainOptions(msgspec.Struct, frozen=True):
    """How plain layers are had.

    ``pinned`` is the digest of an index to believe.  ``progress`` is told bytes of blobs,
    ``on_total`` how many there will be, once they are known.
    """

    pinned: Digest | None = None
    progress: Progress = msgspec.field(default=lambda size: None)
    on_total: Progress = msgspec.field(default=lambda size: None)


def is_plain(layer: Descriptor) -> bool:
    """Say whether the manifest vouches for no TOC of *layer*; raises BadAnnotation."""
    return claims_of(layer.annotations).key is None
