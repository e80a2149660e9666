"""The table of contents of a layer: what every layer format becomes.

The validated, normalised form; the rest of lazyfs never sees a producer's spelling.  The only way
to it is ``decode_toc`` (toc_reader.py).
"""

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from lazyfs.digest import Digest
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tocs.rawtoc import (
    Xattrs,
)

ZEROS = "zeros"
"""The type of a chunk that is a hole, as TOCs of containers/storage spell it."""

PREFETCH_LANDMARK = b".prefetch.landmark"
NO_PREFETCH_LANDMARK = b".no.prefetch.landmark"


class Kind(IntEnum):
    """What a TOC entry is; the values are EROFS' directory-entry types."""

    REGULAR = 1
    DIRECTORY = 2
    CHAR = 3
    BLOCK = 4
    FIFO = 5
    SYMLINK = 7
    HARDLINK = 8  # never reaches an index: it becomes another name of its target


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """One separately verified piece of a regular file's payload.

    ``offset`` and ``size`` are in the file; ``blob_offset`` is where the compressed stream starts
    that holds it; ``inner_offset`` is how many decompressed bytes of that stream come before it.
    ``digest`` is the raw sha256 of the piece.  A piece whose ``codec`` is HOLE is zeros: it has
    neither a place in the blob nor a digest, both are 0.
    """

    offset: int
    size: int
    blob_offset: int
    inner_offset: int
    digest: bytes
    codec: int = Codec.GZIP


class TocEntry(msgspec.Struct, frozen=True, gc=False):
    """One name of a layer.

    ``path`` is normalised: no leading or trailing slash, no empty, ``.`` or ``..`` component; the
    root is ``b""``.  ``mode`` holds permission bits and suid, sgid, sticky only (07777).
    ``link`` is a symlink's target verbatim, or a hardlink's normalised target path.
    ``mtime_seconds`` may be negative.  ``chunks`` of a regular file are sorted, contiguous and sum
    up to ``size``; they are empty exactly when ``size`` is 0.  ``digest`` is the raw sha256 of the
    whole file where the producer gives it.  ``xattrs`` are sorted by name.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int = 0
    mtime_seconds: int = 0
    mtime_nanoseconds: int = 0
    link: bytes = b""
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: Xattrs = ()
    digest: bytes | None = None
    chunks: tuple[Chunk, ...] = ()


class Toc(msgspec.Struct, frozen=True):
    """A layer's table of contents, in the producer's order.

    Entries with the same path may occur; the last one counts.  Whiteouts (``.wh.*``) are ordinary
    entries here; landmarks too, and ``prefetch_end`` says what they mean: the blob offset up to
    which the producer advises to prefetch, 0 for "do not", None for no advice.
    """

    digest: Digest
    entries: Sequence[TocEntry]
    prefetch_end: int | None = None
    tar_split_digest: Digest | None = None
