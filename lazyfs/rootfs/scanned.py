"""The rootfs index of scanned TOCs, written by the native core.

It merges the layers and writes the inodes as ``merge.py`` and ``erofs_writer.py`` do, to the byte,
and leaves whatever is unusual to them.  Extended attributes are encoded here: few inodes have any.
"""

from collections.abc import Mapping, Sequence

import msgspec

from lazyfs.formats.tocs.scan import ScannedEntries
from lazyfs.formats.tocs.toc import Toc
from lazyfs.rootfs.erofs_xattrs import DroppedXattr, XattrBodies, Xattrs
from lazyfs.rootfs.provenance import complete_provenance

try:
    from lazyfs._native import merge_tocs
except ImportError:  # it was installed without a compiler
    merge_tocs = None  # type: ignore[assignment]


class WrittenInodes(msgspec.Struct, frozen=True):
    """An index without superblock and device table, its provenance table, what is not in it."""

    image: bytearray
    provenance: bytes
    inode_count: int
    root_nid: int
    dropped_xattrs: tuple[DroppedXattr, ...]


def write_scanned(
    tocs: Sequence[Toc], start: int, root_xattrs: Mapping[bytes, bytes]
) -> WrittenInodes | None:
    """Return the inodes of the layers *tocs*, from byte *start* on; None: Python is to do it.

    Raises UnsupportedByErofs for extended attributes.
    """
    layers = [toc.entries for toc in tocs if isinstance(toc.entries, ScannedEntries)]
    if merge_tocs is None or len(layers) < len(tocs):
        return None
    tree = merge_tocs(tuple(layer.native for layer in layers))
    if tree is None:
        return None
    bodies = XattrBodies()
    found: list[bytes] = []
    own: Xattrs = ()  # the root's
    for layer, number in tree.xattrs():
        path, xattrs = layers[layer].xattrs[number]
        found.append(bodies.body(xattrs, path))
        if not path:
            own = xattrs
    root = bodies.root_body(own, root_xattrs) if root_xattrs else None
    written = tree.write(start, tuple(found), root)
    if written is None:
        return None
    image, records, inode_count, root_nid = written
    return WrittenInodes(
        image, complete_provenance(records), inode_count, root_nid, bodies.dropped()
    )
