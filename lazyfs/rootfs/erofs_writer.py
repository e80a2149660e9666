"""Write the rootfs index: the merged tree of an image as one EROFS image of metadata only.

Canonical: the same layers give the same bytes.  Behind the superblock and the device table come
the inodes in depth-first order, the root first, names sorted by their bytes; each inode with its
xattrs and its directory's tail, symlink's target or file's one chunk index.  Whole directory
blocks and what fits beside no inode follow in the same order.  Every regular file is one extent in
the device of its layer: device k is layer k - 1, laid out by layout.py.  The bytes of all parts
are in docs/format.md.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence

import msgspec

from lazyfs.formats.tocs.toc import Kind, Toc, TocEntry
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.rootfs import erofs_format as erofs
from lazyfs.rootfs.erofs_directory import build_directory, directory_size
from lazyfs.rootfs.erofs_format import BLOCK_SIZE, INODE_SIZE, SLOT_SIZE, UnsupportedByErofs
from lazyfs.rootfs.erofs_xattrs import DroppedXattr, XattrBodies, xattr_count
from lazyfs.rootfs.layout import device_size
from lazyfs.rootfs.merge import Directory, Node, merge
from lazyfs.rootfs.provenance import build_provenance
from lazyfs.rootfs.scanned import WrittenInodes, write_scanned

# The root follows the device table, and its nid has 16 bits.
_ROOT_ROOM = 0xFFFF * SLOT_SIZE - BLOCK_SIZE  # it may begin in the next block
MAX_DEVICES = (_ROOT_ROOM - erofs.DEVICE_TABLE_OFFSET) // erofs.DEVICE_SLOT_SIZE
TAG_SIZE = 64
IMPLICIT = TocEntry(b"", Kind.DIRECTORY, 0o755, 0, 0)


class BuiltIndex(msgspec.Struct, frozen=True):
    """A rootfs index, its provenance table, and the image's xattrs that are not in it."""

    image: bytes | bytearray
    provenance: bytes
    inode_count: int
    dropped_xattrs: tuple[DroppedXattr, ...]


def build_index(
    tocs: Sequence[Toc],
    *,
    root_xattrs: Mapping[bytes, bytes],
    device_tags: Sequence[str],
) -> BuiltIndex:
    """Return the rootfs index of the layers *tocs*, bottom layer first.

    *root_xattrs* are added to the root's own; *device_tags*, one for each layer, name the devices
    (at most 64 ASCII characters).  Raises FormatError: BadLayer for entries that make no tree,
    BadLayout for payloads and UnsupportedByErofs for values beyond the format's limits.
    """
    if len(device_tags) != len(tocs) or len(tocs) > MAX_DEVICES:
        raise UnsupportedByErofs(
            f"devices: got {len(tocs)} layers and {len(device_tags)} tags, "
            f"expected as many tags as layers and at most {MAX_DEVICES}"
        )
    devices = [
        (tag, device_size(toc) // BLOCK_SIZE) for tag, toc in zip(device_tags, tocs, strict=True)
    ]
    start = erofs.DEVICE_TABLE_OFFSET + len(devices) * erofs.DEVICE_SLOT_SIZE
    once = _each_once(tocs)
    written = write_scanned(once, start, root_xattrs) or _write(once, start, root_xattrs)
    _write_devices(written.image, devices)
    _write_superblock(
        written.image, written.root_nid, written.inode_count, len(devices), _uuid(tocs)
    )
    return BuiltIndex(
        written.image, written.provenance, written.inode_count, written.dropped_xattrs
    )


def _each_once(tocs: Sequence[Toc]) -> list[Toc]:
    """Return *tocs* with an empty one for each that comes again above.

    The tree is the same: all that a layer says, of names that are there and of names that are not,
    it says again where it comes the last time.
    """
    last = {id(toc): number for number, toc in enumerate(tocs)}
    if len(last) == len(tocs):
        return list(tocs)
    empty = decode_toc(b'{"version":1,"entries":[]}', expected=None, blob_size=0)
    return [toc if last[id(toc)] == number else empty for number, toc in enumerate(tocs)]


def _write(tocs: Sequence[Toc], start: int, root_xattrs: Mapping[bytes, bytes]) -> WrittenInodes:
    numbering = _Numbering(start, root_xattrs)
    numbering.number(merge(tocs))
    return WrittenInodes(
        _emit(numbering),
        build_provenance(numbering.nodes),
        len(numbering.nodes),
        numbering.nodes[0].nid,
        numbering.bodies.dropped(),
    )


class _Numbering:
    """First pass: the place of every inode (its nid), its number of names, and the data blocks.

    ``nodes`` are in the order of their nids; ``xattrs`` are the bodies by nid, where there are
    any; ``blocks`` is by nid the first data block, counted from the first of all.
    """

    def __init__(self, start: int, root_xattrs: Mapping[bytes, bytes]) -> None:
        self.end = start
        self.nodes: list[Node] = []
        self.bodies = XattrBodies()
        self.xattrs: dict[int, bytes] = {}
        self.blocks: dict[int, int] = {}
        self.block_count = 0
        self._root_xattrs = root_xattrs

    def number(self, root: Directory) -> None:
        """Number *root* and all below it."""
        append = self.nodes.append
        position = self.end
        pending: list[Node] = [root]
        while pending:
            node = pending.pop()
            if node.nid:
                node.nlink += 1
                continue
            append(node)
            entry = node.entry or IMPLICIT
            body = b""
            if entry.xattrs:
                body = self.bodies.body(entry.xattrs, entry.path)
            if node is root and self._root_xattrs:
                body = self.bodies.root_body(entry.xattrs, self._root_xattrs)
            size = INODE_SIZE + len(body)
            if node.kind == Kind.REGULAR:
                if entry.size:
                    size += -size % 8 + erofs.CHUNK_INDEX.size
                node.nlink = 1
                nid = position // SLOT_SIZE
            elif isinstance(node, Directory):
                children = node.children
                node.names = names = sorted(children)
                position, size = self._place(position, size, directory_size(names))
                nid = position // SLOT_SIZE
                if node is root:  # its names may have moved it to another block
                    node.parent_nid = nid
                node.nlink = 2
                below = [children[name] for name in names]
                for child in below:
                    if isinstance(child, Directory):
                        child.parent_nid = nid
                        node.nlink += 1
                below.reverse()
                pending += below
            else:
                if node.kind == Kind.SYMLINK:
                    _check_symlink(entry)
                    position, size = self._place(position, size, len(entry.link))
                node.nlink = 1
                nid = position // SLOT_SIZE
            node.nid = nid
            if body:
                self.xattrs[nid] = body
            position += size
            position += -position % SLOT_SIZE
        self.end = position

    def _place(self, position: int, size: int, data_size: int) -> tuple[int, int]:
        """Return the place and the size of an inode with data; *size* is without them.

        The part of the data that fills no whole block goes behind the inode, in the same block;
        where it does not fit even from the block's start, it gets a data block.
        """
        block_count, tail = divmod(data_size, BLOCK_SIZE)
        if _is_inline(size, tail):
            size += tail
            if position % BLOCK_SIZE + size > BLOCK_SIZE:
                position += -position % BLOCK_SIZE
        elif tail:
            block_count += 1
        if block_count:
            self.blocks[position // SLOT_SIZE] = self.block_count
            self.block_count += block_count
        return position, size


def _is_inline(size: int, tail: int) -> bool:
    """Return whether *tail* bytes of data go behind an inode with xattrs of *size* bytes."""
    return tail > 0 and size + tail <= BLOCK_SIZE


def _check_symlink(entry: TocEntry) -> None:
    if not 0 < len(entry.link) <= erofs.MAX_SYMLINK_SIZE or b"\0" in entry.link:
        raise UnsupportedByErofs(
            f"symlink {entry.path[:200]!r}: a target of {len(entry.link)} bytes is not valid: "
            f"1 to {erofs.MAX_SYMLINK_SIZE} bytes and no NUL"
        )


def _emit(numbering: _Numbering) -> bytearray:
    """Second pass: return the image, but for the superblock and the device table."""
    first_block = -(-numbering.end // BLOCK_SIZE)
    image = bytearray((first_block + numbering.block_count) * BLOCK_SIZE)
    xattrs = numbering.xattrs
    types = [0] * (max(erofs.FILE_TYPES) + 1)
    for kind, file_type in erofs.FILE_TYPES.items():
        types[kind] = file_type
    pack_inode = erofs.INODE.pack_into
    pack_chunk = erofs.CHUNK_INDEX.pack_into
    for number, node in enumerate(numbering.nodes, start=1):
        entry = node.entry or IMPLICIT
        nid = node.nid
        position = nid * SLOT_SIZE
        inode_end = position + INODE_SIZE
        xattr_words = 0
        if nid in xattrs:
            body = xattrs[nid]
            image[inode_end : inode_end + len(body)] = body
            inode_end += len(body)
            xattr_words = xattr_count(body)
        kind = node.kind
        size = entry.size
        if kind == Kind.REGULAR and size:
            layout = erofs.FORMAT_CHUNKED
            union = erofs.CHUNK_INDEXES | _chunk_bits(entry)
            pack_chunk(
                image, inode_end + -inode_end % 8,
                0, node.layer + 1, node.device_offset // BLOCK_SIZE,
            )  # fmt: skip
        elif kind == Kind.DIRECTORY or kind == Kind.SYMLINK:
            data = _directory_data(node) if isinstance(node, Directory) else entry.link
            layout, union = _write_data(image, numbering, first_block, nid, inode_end, data)
            size = len(data)
        else:
            layout = erofs.FORMAT_PLAIN
            size = 0
            union = 0
            if kind == Kind.REGULAR:
                union = erofs.NO_BLOCK
            elif kind != Kind.FIFO:
                union = erofs.encode_device_number(entry.dev_major, entry.dev_minor)
        try:
            pack_inode(
                image, position, layout, xattr_words, types[kind] | entry.mode & 0o7777, 0,
                size, union, number, entry.uid, entry.gid,
                entry.mtime_seconds, entry.mtime_nanoseconds, node.nlink,
            )  # fmt: skip
        except struct.error as exc:
            raise UnsupportedByErofs(
                f"entry {entry.path[:200]!r}: owner {entry.uid}:{entry.gid} or mtime "
                f"{entry.mtime_seconds} does not fit (owners have 32 bits, times 64)"
            ) from exc
    return image


def _chunk_bits(entry: TocEntry) -> int:
    if entry.size > erofs.MAX_FILE_SIZE:
        raise UnsupportedByErofs(
            f"file {entry.path[:200]!r}: got {entry.size} bytes, "
            f"expected at most {erofs.MAX_FILE_SIZE}"
        )
    return erofs.chunk_bits(entry.size)


def _directory_data(node: Directory) -> bytes:
    below = [node.children[name] for name in node.names]
    nids = [child.nid for child in below]
    kinds = [child.kind for child in below]
    return build_directory(node.names, nids, kinds, node.nid, node.parent_nid)


def _write_data(
    image: bytearray,
    numbering: _Numbering,
    first_block: int,
    nid: int,
    inode_end: int,
    data: bytes,
) -> tuple[int, int]:
    """Write the *data* of inode *nid* to their places; return the inode's format and union."""
    tail = len(data) % BLOCK_SIZE
    whole = len(data)
    layout = erofs.FORMAT_PLAIN
    if _is_inline(inode_end - nid * SLOT_SIZE, tail):
        layout = erofs.FORMAT_INLINE
        whole -= tail
        image[inode_end : inode_end + tail] = data[whole:]
    if not whole:
        return layout, erofs.NO_BLOCK
    start_block = first_block + numbering.blocks[nid]
    start = start_block * BLOCK_SIZE
    image[start : start + whole] = data[:whole]
    return layout, start_block


def _write_devices(image: bytearray, devices: Sequence[tuple[str, int]]) -> None:
    """Write the device table; *devices* are (tag, size in blocks)."""
    position = erofs.DEVICE_TABLE_OFFSET
    unified_start = len(image) // BLOCK_SIZE
    for tag, block_count in devices:
        text = tag.encode("ascii", errors="replace")
        if len(text) > TAG_SIZE:
            raise UnsupportedByErofs(
                f"device tag: got {len(text)} characters, expected at most {TAG_SIZE}"
            )
        # The unified start places all devices behind the image, in one address space.  Where it
        # would pass 32 bits it is left out: readers then know the device by its number only.
        fits = unified_start + block_count <= erofs.NO_BLOCK
        erofs.DEVICE_SLOT.pack_into(
            image, position, text, block_count, unified_start if fits else 0
        )
        unified_start += block_count
        position += erofs.DEVICE_SLOT_SIZE


def _write_superblock(
    image: bytearray, root_nid: int, inode_count: int, device_count: int, uuid: bytes
) -> None:
    start = erofs.SUPERBLOCK_OFFSET
    erofs.SUPERBLOCK.pack_into(
        image, start,
        erofs.MAGIC, 0, erofs.COMPATIBLE, erofs.BLOCK_BITS, 0, root_nid,
        inode_count, 0, 0, len(image) // BLOCK_SIZE, 0, 0, uuid, b"",
        erofs.CHUNKED_FILE | erofs.DEVICE_TABLE, 0, device_count,
        erofs.DEVICE_TABLE_OFFSET // erofs.DEVICE_SLOT_SIZE, 0, 0, 0, 0,
    )  # fmt: skip
    checksum = erofs.superblock_checksum(image[start:BLOCK_SIZE])
    struct.pack_into("<I", image, start + 4, checksum)


def _uuid(tocs: Sequence[Toc]) -> bytes:
    """Return a UUID (version 8) that is a digest of the layers and of our revision."""
    text = "\n".join([f"lazyfs rootfs index {erofs.REVISION}", *(str(toc.digest) for toc in tocs)])
    uuid = bytearray(hashlib.sha256(text.encode()).digest()[:16])
    uuid[6] = uuid[6] & 0x0F | 0x80
    uuid[8] = uuid[8] & 0x3F | 0x80
    return bytes(uuid)
