"""Which files of a rootfs index have bytes in given ranges of a layer's device."""

import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from lazyfs.rootfs.erofs_reader import ErofsIndex

Range = tuple[int, int]
"""Offset of the first byte, and of the one behind the last."""


def owners_of(
    index: ErofsIndex, device: int, ranges: Sequence[Range]
) -> Iterator[tuple[int, int, int]]:
    """Yield (nid, offset in the file, size) of what files have in *ranges* of *device*.

    *ranges* are sorted and do not overlap.  Looks at the whole tree: an index has no way back from
    contents to files.
    """
    starts = [start for start, _ in ranges]
    waiting, seen = [index.root_nid], {index.root_nid}
    while waiting:
        for entry in index.entries(waiting.pop()):
            if entry.nid in seen:
                continue
            seen.add(entry.nid)
            inode = index.inode(entry.nid)
            if stat.S_ISDIR(inode.mode):
                waiting.append(entry.nid)
                continue
            extent = index.extent_of(inode) if stat.S_ISREG(inode.mode) else None
            if extent is None or extent.device != device:
                continue
            end = extent.offset + extent.size
            for start, stop in ranges[max(0, bisect_right(starts, extent.offset) - 1) :]:
                if start >= end:
                    break
                low, high = max(start, extent.offset), min(stop, end)
                if low < high:
                    yield entry.nid, low - extent.offset, high - low
