"""One member of a tar, as the scanner reads it and the writers take it."""

from collections.abc import Iterator

import msgspec

from lazyfs.errors import FormatError
from lazyfs.formats.tars.tar_sparse import Pieces
from lazyfs.formats.tocs.toc import Kind


class BadTar(FormatError):
    """A layer's tar stream cannot be understood."""


class TarMember(msgspec.Struct, frozen=True, gc=False):
    """One member of a tar.

    The fields are those of ``TocEntry`` and mean the same.  ``offset`` is where the payload
    starts in the tar stream, for regular files.  ``user_name`` and ``group_name`` are as stored.
    ``pieces`` are those that a sparse file's payload holds, one after the other; the rest of its
    ``size`` bytes is zeros.  A file whose ``path`` is empty is none: no name is left of it.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_seconds: int = 0
    mtime_nanoseconds: int = 0
    link: bytes = b""
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    user_name: bytes = b""
    group_name: bytes = b""
    offset: int = 0
    pieces: Pieces | None = None

    @property
    def stored_size(self) -> int:
        """The size of the payload in the tar."""
        if self.pieces is None:
            return self.size
        return sum(size for _, size in self.pieces)

    def extents(self) -> Iterator[tuple[int, int, int]]:
        """Yield (offset in the tar, size, offset in the file) of each stretch of the payload."""
        if self.pieces is None:
            yield self.offset, self.size, 0
            return
        at = self.offset
        for offset, size in self.pieces:
            yield at, size, offset
            at += size


class HeaderText(msgspec.Struct, frozen=True, gc=False):
    """What a member's header says in its own words; ``end`` is the tar offset behind it.

    ``name`` and ``link`` are not normalised, ``mode`` may have the bits of a kind in it, times are
    (seconds, nanoseconds).  ``is_after_global``: a global PAX header stands before it.
    """

    name: bytes
    link: bytes
    mode: int
    end: int
    access_time: tuple[int, int] | None = None
    change_time: tuple[int, int] | None = None
    is_after_global: bool = False
