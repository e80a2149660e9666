"""The device space of a layer: where each file's payload lies in the layer's own address space.

A TOC says where a payload lies in the compressed blob, not in the tar, so a layer's device is a
layout of our own: the payloads of the regular files in TOC order, each starting on a 4096-byte
boundary.  Landmarks and entries that a later duplicate replaces keep their place, so the layout is
a pure function of the TOC: no other layer, option or producer changes it.  A change of these rules
needs another ``LAYOUT_VERSION``.
"""

from lazyfs.errors import FormatError
from lazyfs.formats.tocs.scan import ScannedEntries
from lazyfs.formats.tocs.toc import Toc

LAYOUT_VERSION = 1
BLOCK_SIZE = 4096
# An extent starts at a 32-bit block number, and EROFS takes the last one for a hole: a file there
# would read as zeros.
MAX_DEVICE_SIZE = 0xFFFFFFFF * BLOCK_SIZE
NO_PAYLOAD = -1


class BadLayout(FormatError):
    """A TOC whose payloads cannot be laid out."""


def device_offsets(toc: Toc) -> list[int]:
    """Return the device offset of each entry's payload, NO_PAYLOAD (-1) for entries without one.

    The list is as long as ``toc.entries``.  Raises BadLayout if the device would be larger than
    MAX_DEVICE_SIZE.
    """
    offsets: list[int] = []
    append = offsets.append
    end = 0
    for entry in toc.entries:
        if entry.chunks:
            append(end)
            end += entry.size + (-entry.size & (BLOCK_SIZE - 1))
        else:
            append(NO_PAYLOAD)
    _check_size(end)
    return offsets


def device_size(toc: Toc) -> int:
    """Return the size of the device in bytes, a multiple of BLOCK_SIZE; 0 without any payload.

    Raises BadLayout if it is larger than MAX_DEVICE_SIZE.
    """
    if isinstance(toc.entries, ScannedEntries):
        return toc.entries.device_size
    mask = BLOCK_SIZE - 1
    end = sum(entry.size + (-entry.size & mask) for entry in toc.entries if entry.chunks)
    _check_size(end)
    return end


def _check_size(size: int) -> None:
    if size > MAX_DEVICE_SIZE:
        raise BadLayout(f"layer payloads: got {size} bytes, expected at most {MAX_DEVICE_SIZE}")
