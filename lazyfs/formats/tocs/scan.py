"""TOCs that the native core has read: what is usual, without an object for every entry.

The rules are those of ``toc.py``, whose results these are: the native core takes less than they
allow, and leaves whatever is rare or wrong to them.  So it has no messages of its own, and where
nothing was compiled only time is lost.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, overload

import msgspec

from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.streams.limits import Limits
from lazyfs.formats.tocs.rawtoc import Xattrs, read_xattrs
from lazyfs.formats.tocs.toc_keys import check_xattrs_keys

try:
    from lazyfs._native import scan_toc
except ImportError:  # it was installed without a compiler
    scan_toc = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from lazyfs._native import Toc as NativeToc
    from lazyfs.formats.tocs.toc import TocEntry

_XATTRS = msgspec.json.Decoder(dict[str, bytes])


class ScannedEntries(Sequence["TocEntry"]):
    """The entries of a scanned TOC: made, all at once, when one of them is looked at.

    ``xattrs`` are by entry, paths as in ``TocEntry``.  ``inside``: the blob offsets of chunks that
    begin inside a DEFLATE stream, which a TOC does not tell, so the native core does not know it.
    """

    def __init__(
        self,
        native: "NativeToc",
        xattrs: Mapping[int, tuple[bytes, Xattrs]],
        read: Callable[[], Sequence["TocEntry"]],
        inside: Set[int] = frozenset(),
    ) -> None:
        self.native = native
        self.xattrs = xattrs
        self.inside = inside
        self._count, _, self.device_size, self.prefetch_end, self.tar_split = native.facts()
        self._read = read
        self._entries: Sequence[TocEntry] | None = None

    def _all(self) -> Sequence["TocEntry"]:
        if self._entries is None:
            self._entries = self._read()
        return self._entries

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> "TocEntry": ...
    @overload
    def __getitem__(self, index: slice) -> Sequence["TocEntry"]: ...
    def __getitem__(self, index: int | slice) -> "TocEntry | Sequence[TocEntry]":
        return self._all()[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, ScannedEntries) else other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def can_scan() -> bool:
    """Say whether the native core is there."""
    return scan_toc is not None


def scan(
    data: bytes,
    blob_size: int,
    codec: Codec,
    ratio: int,
    limits: Limits,
    read: Callable[[], Sequence["TocEntry"]],
) -> ScannedEntries | None:
    """Return the entries of the TOC in *data*, or None where that is for the reader in Python.

    *read* is that reader; it is called when entries are looked at.
    """
    if scan_toc is None:
        return None
    native = scan_toc(
        data,
        codec,
        (
            blob_size, ratio, limits.entries,
            limits.path_size, limits.component_size, limits.depth, limits.implied_size,
            limits.link_size, limits.chunk_size, limits.stream_size, limits.device_size,
            limits.block_size,
        ),
    )  # fmt: skip
    if native is None:
        return None
    try:
        xattrs = {}
        for number, path, text in native.xattrs():
            named = _XATTRS.decode(text)
            check_xattrs_keys(bytes(text), len(named))
            xattrs[number] = path.replace(b"\0", b"/"), read_xattrs(named, limits)
    except (msgspec.MsgspecError, ValueError):
        return None
    return ScannedEntries(native, xattrs, read)
