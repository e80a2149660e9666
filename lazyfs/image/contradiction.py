"""Whether a table of contents that was claimed of a layer is one of it.

Two tables of the same layer may cut its files into different chunks.  What they say of names and
attributes must be the same, and the claimed chunks must have their digests in the contents that a
full pass has verified.
"""

import errno
import hashlib
import os

from lazyfs.formats.codec import Codec
from lazyfs.formats.toc import Toc, TocEntry
from lazyfs.rootfs.layout import device_offsets
from lazyfs.store.paths import Store

READ_SIZE = 1 << 20


def contradiction(store: Store, claimed: Toc, found: Toc) -> str | None:
    """Return what *claimed* says that is not so; None if all of it is.

    *found* is the TOC of a full pass that has just been made: its contents are in *store*.
    """
    if len(claimed.entries) != len(found.entries):
        return f"got {len(claimed.entries)} entries, expected {len(found.entries)}"
    with open(store.layer_path(found.digest) / "content", "rb") as content:
        fd = content.fileno()
        offsets = device_offsets(found)
        for said, is_, offset in zip(claimed.entries, found.entries, offsets, strict=True):
            if _attributes(said) != _attributes(is_):
                return f"got {said.path!r} with other attributes than {is_.path!r}"
            for chunk in said.chunks:
                if chunk.codec == Codec.HOLE:
                    if not _is_zeros(fd, offset + chunk.offset, chunk.size):
                        return f"got zeros in {said.path!r}, expected its contents"
                elif _hash(fd, offset + chunk.offset, chunk.size) != chunk.digest:
                    return f"got other contents of {said.path!r}"
    return None


def _attributes(entry: TocEntry) -> tuple[object, ...]:
    return (
        *(entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.link),
        *(entry.mtime_seconds, entry.mtime_nanoseconds, entry.dev_major, entry.dev_minor),
        entry.xattrs,
    )


def _is_zeros(fd: int, offset: int, size: int) -> bool:
    """Say whether a range is zeros; where the file has none of it, nothing is read."""
    end = offset + size
    while offset < end:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return True  # no data from there to the end
            raise
        if offset >= end:
            return True
        data = os.pread(fd, min(READ_SIZE, end - offset), offset)
        if not data or data.count(0) != len(data):
            return not data
        offset += len(data)
    return True


def _hash(fd: int, offset: int, size: int) -> bytes:
    hasher = hashlib.sha256()
    while size:
        data = os.pread(fd, min(size, READ_SIZE), offset)
        if not data:
            break
        hasher.update(data)
        offset += len(data)
        size -= len(data)
    return hasher.digest()
