"""How much a layer may claim before it is refused.

A TOC is read before anything vouches for it (its digest is known only once it is here), and its
author may be hostile even when the digest is right.  Each limit is far above what real images
need and low enough that a mount survives the worst that passes.
"""

import msgspec

from lazyfs.formats.streams.codec import MAX_RATIO, Codec


class Limits(msgspec.Struct, frozen=True):
    """Bounds for one layer; sizes in bytes.

    ``toc_size`` bounds the JSON (an entry takes about 400 bytes), ``member_size`` the gzip member
    around it, and ``toc_ratio`` how far the one may exceed the other; TOCs below
    ``small_toc_size`` may be of any ratio.  ``entries`` counts chunks too.

    ``implied_size`` bounds the directories that paths imply without naming them: a few long paths
    can imply very many.  ``path_size``, ``component_size`` and ``link_size`` are what Linux can
    express.  ``xattr_*`` are the kernel's limits on one name, one value and one file's list of
    names.

    ``chunk_size`` bounds what must sit in memory to be verified, ``stream_size`` what must be
    inflated to reach a chunk inside a shared stream, and ``stream_ratio`` how far that may exceed
    the blob from there on.  ``device_size`` bounds the sum of all
    payloads, each rounded up to a block: an EROFS image addresses 2^32 blocks of 4096 bytes.

    ``memory`` bounds what a TOC takes while it is read and an index is made of it, as
    ``toc_memory`` estimates it; None: whatever it takes.
    """

    toc_size: int = 256 << 20
    member_size: int = 64 << 20
    toc_ratio: int = 250
    small_toc_size: int = 1 << 20
    entries: int = 1_000_000
    path_size: int = 4095
    component_size: int = 255
    depth: int = 1024
    implied_size: int = 64 << 20
    link_size: int = 4095
    xattr_name_size: int = 255
    xattr_value_size: int = 65536
    xattr_list_size: int = 65536
    chunk_size: int = 256 << 20
    stream_size: int = 1 << 30
    stream_ratio: int = MAX_RATIO[Codec.GZIP]
    device_size: int = 2**44
    block_size: int = 4096
    memory: int | None = None


DEFAULT_LIMITS = Limits()

ENTRY_MEMORY = 430
TWIN_ENTRY_MEMORY = 1350
"""Bytes that an entry takes beside its JSON, from reading it to the finished index: where the
native core reads it, and where Python does.  Measured with regular files of one chunk."""


def toc_memory(size: int, entries: int, per_entry: int) -> int:
    """Return how many bytes reading a TOC takes: its JSON twice, or once and its entries."""
    return size + max(size, entries * per_entry)
