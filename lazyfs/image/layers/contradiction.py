"""Whether a table of contents that was claimed of a layer is one of it.

Two tables of the same layer may cut its files into different chunks.  What they say of names and
attributes must be the same, and the claimed chunks must have their digests in the contents that a
full pass has verified.
"""

import errno
import hashlib
import os
from collections.abc import Iterator

from lazyfs.digest import parse_digest
from lazyfs.errors import VerificationFailed
from lazyfs.formats.streams.codec import Codec
from lazyfs.formats.tars.comparison import Disagreement, compare_fields, first_of
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.image.layers.indexes import IndexContradicted
from lazyfs.oci.descriptor import Descriptor
from lazyfs.rootfs.layout import device_offsets
from lazyfs.store.layers import load_table, load_toc
from lazyfs.store.passes import load_pass
from lazyfs.store.paths import Store

READ_SIZE = 1 << 20


class TreesDiffer(VerificationFailed):
    """A layer's table of contents shows another tree than its tar."""

    code = "E_TREES_DIFFER"


def trees_differ(layer: object, differences: object) -> TreesDiffer:
    """Return the error for *differences* between the tar and the TOC of *layer*."""
    return TreesDiffer(
        f"layer {layer}: its table of contents contradicts its tar: {differences}",
        hint="do not use this layer: unpacking it gives other files than mounting it lazily",
    )


def contradiction(store: Store, claimed: Toc, found: Toc) -> Disagreement | None:
    """Return what *claimed* says that is not so; None if all of it is.

    *found* is the TOC of a full pass that has just been made: its contents are in *store*.
    """
    if claimed.digest == found.digest:
        return None
    return first_of(_differences(store, claimed, found))


def _differences(store: Store, claimed: Toc, found: Toc) -> Iterator[str]:
    said = {entry.path: entry for entry in claimed.entries}
    with open(store.layer_path(found.digest) / "content", "rb") as content:
        for entry, offset in zip(found.entries, device_offsets(found), strict=True):
            other = said.pop(entry.path, None)
            if other is None:
                yield f"{entry.path!r}: in the tar, and not in the TOC"
                continue
            difference = compare_fields(entry.path, entry, other)
            if difference is None and entry.kind is Kind.HARDLINK and entry.link != other.link:
                difference = (
                    f"{entry.path!r}: a hard link to {entry.link!r} in the tar, to {other.link!r}"
                    " in the TOC"
                )
            if difference is None and any(
                not _has_bytes(content.fileno(), offset, chunk) for chunk in other.chunks
            ):
                difference = f"{entry.path!r}: other bytes in the tar than in the TOC"
            if difference is not None:
                yield difference
    for path in said:
        yield f"{path!r}: in the TOC, and not in the tar"


def _has_bytes(fd: int, offset: int, chunk: Chunk) -> bool:
    """Say whether the file that begins at *offset* has what *chunk* says of it."""
    start = offset + chunk.offset
    if chunk.codec == Codec.HOLE:
        return _is_zeros(fd, start, chunk.size)
    return _hash(fd, start, chunk.size) == chunk.digest


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


def claimed_toc(store: Store, layer: Descriptor) -> Toc | None:
    """Return the TOC that an index from elsewhere has, if it was used here."""
    record = load_pass(store, layer.digest)
    if record is None or not record.index_digest:
        return None
    digest = parse_digest(record.toc_digest)
    data, table = load_toc(store, digest), load_table(store, digest)
    if data is None or table is None:
        return None
    return decode_toc(data, expected=digest, blob_size=layer.size, codec=table.format.codec)


def check_claim(store: Store, layer: Descriptor, claimed: Toc | None, found: Toc) -> None:
    """Raise IndexContradicted where a full pass has found another layer than an index claimed."""
    if claimed is None:
        return
    why = contradiction(store, claimed, found)
    if why is not None:
        raise IndexContradicted(
            f"layer {layer.digest}: the index contradicts the layer: {why}",
            hint="do not trust who published that index; remove what was mounted with it",
        )
