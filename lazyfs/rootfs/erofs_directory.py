"""The data of an EROFS directory: its entries, sorted, in blocks.

A block is an array of 12-byte entries (nid u64, name offset u16, kind u8, reserved u8) followed by
the names; no entry or name crosses a block.  ``.`` and ``..`` are ordinary members in their sorted
places: names that begin with a smaller byte than a dot come before them.
"""

import struct
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from lazyfs.formats.tocs.toc import Kind
from lazyfs.rootfs.erofs_format import (
    BLOCK_SIZE,
    DIRENT_SIZE,
    MAX_NAME_SIZE,
    UnsupportedByErofs,
)

DOTS_SIZE = 2 * DIRENT_SIZE + len("...")
KIND_SHIFT = 16  # an entry is three 32-bit words: low nid, high nid, name offset and kind


def directory_size(names: list[bytes]) -> int:
    """Return the size of a directory with *names* (sorted, without the dots) in bytes.

    The last block counts as far as it is used, all others whole.  Raises UnsupportedByErofs for a
    name that is too long or contains a NUL.
    """
    joined = b"".join(names)
    used = DIRENT_SIZE * len(names) + len(joined) + DOTS_SIZE
    if b"\0" in joined or (len(joined) > MAX_NAME_SIZE and max(map(len, names)) > MAX_NAME_SIZE):
        bad = next(name for name in names if len(name) > MAX_NAME_SIZE or b"\0" in name)
        raise UnsupportedByErofs(
            f"file name {bad[:300]!r} ({len(bad)} bytes) is not valid: "
            f"at most {MAX_NAME_SIZE} bytes and no NUL"
        )
    if used <= BLOCK_SIZE:
        return used
    ends = _block_ends(_with_dots(names))
    last = _with_dots(names)[ends[-2] :]
    return (len(ends) - 2) * BLOCK_SIZE + DIRENT_SIZE * len(last) + sum(map(len, last))


def build_directory(
    names: list[bytes], nids: list[int], kinds: Sequence[int], nid: int, parent_nid: int
) -> bytes:
    """Return the data of directory *nid*: *names* sorted, with the *nids* and *kinds* of each."""
    first = bisect_left(names, b".")
    second = bisect_left(names, b"..", lo=first)
    names = [*names[:first], b".", *names[first:second], b"..", *names[second:]]
    nids = [*nids[:first], nid, *nids[first:second], parent_nid, *nids[second:]]
    kinds = [*kinds[:first], Kind.DIRECTORY, *kinds[first:second], Kind.DIRECTORY, *kinds[second:]]
    used = DIRENT_SIZE * len(names) + sum(map(len, names))
    if used <= BLOCK_SIZE:
        return _block(names, nids, kinds)
    ends = _block_ends(names)
    blocks = []
    for start, end in pairwise(ends):
        block = _block(names[start:end], nids[start:end], kinds[start:end])
        blocks.append(block if end == len(names) else block.ljust(BLOCK_SIZE, b"\0"))
    return b"".join(blocks)


def _with_dots(names: list[bytes]) -> list[bytes]:
    return sorted([*names, b".", b".."])


def _block_ends(names: list[bytes]) -> list[int]:
    """Return where each block ends in the list of *names*, after a leading 0."""
    ends = [0]
    used = 0
    for number, name in enumerate(names):
        used += DIRENT_SIZE + len(name)
        if used > BLOCK_SIZE:
            ends.append(number)
            used = DIRENT_SIZE + len(name)
    ends.append(len(names))
    return ends


def _block(names: Sequence[bytes], nids: Sequence[int], kinds: Sequence[int]) -> bytes:
    count = len(names)
    name_offsets = accumulate(map(len, names), initial=DIRENT_SIZE * count)
    words = [0] * (3 * count)  # nids stay below 2**32: an index that large is refused
    words[0::3] = nids
    words[2::3] = [
        name_offset | kind << KIND_SHIFT
        for name_offset, kind in zip(name_offsets, kinds, strict=False)
    ]
    return struct.pack(f"<{3 * count}I", *words) + b"".join(names)
