"""Read a rootfs index in place: an EROFS image of metadata, in bytes or in a memory map.

Every access is checked against the buffer's bounds, and every loop is bounded by what the buffer
holds, so a corrupt index raises IndexCorrupt and nothing else, in bounded time.  Nothing is cached:
each answer is read from the buffer, and any number of threads may ask.

Understood are the images of erofs_writer.py and their like: extended inodes, flat directories and
symlinks, regular files of one chunk in an extra device, xattrs without shared ones.
"""

import struct
from collections.abc import Iterator
from mmap import mmap

import msgspec

from lazyfs.errors import FormatError, NotFound
from lazyfs.formats.tocs.toc import Kind
from lazyfs.rootfs import erofs_format as erofs
from lazyfs.rootfs.erofs_format import DIRENT_SIZE, INODE_SIZE, SLOT_SIZE

MIN_BLOCK_BITS, MAX_BLOCK_BITS = 9, 12
FEATURES = (erofs.DEVICE_TABLE, erofs.CHUNKED_FILE | erofs.DEVICE_TABLE)
FORMATS = (erofs.FORMAT_PLAIN, erofs.FORMAT_INLINE, erofs.FORMAT_CHUNKED)
KINDS = {file_type: kind for kind, file_type in erofs.FILE_TYPES.items()}
DIRENT_KINDS = {int(kind): kind for kind in erofs.FILE_TYPES}

unpack_inode = erofs.INODE.unpack_from
unpack_dirent = erofs.DIRENT.unpack_from
unpack_chunk = erofs.CHUNK_INDEX.unpack_from
unpack_xattr = erofs.XATTR_ENTRY.unpack_from
unpack_name_offset = struct.Struct("<8xH").unpack_from
unpack_name_offsets = struct.Struct("<8xH10xH").unpack_from  # of an entry and the next one


class IndexCorrupt(FormatError):
    """Bytes that are not a rootfs index, or an index that contradicts itself."""


class WrongKind(NotFound):
    """An inode was asked for what its kind does not have."""


class Device(msgspec.Struct, frozen=True):
    """An extra device: its tag (the layer's TOC digest) and its size in bytes."""

    tag: str
    size: int


class Inode(msgspec.Struct, frozen=True, gc=False):
    """One inode.  ``mode`` includes the file type; ``size`` is in bytes; mtime may be negative.

    ``layout``, ``union`` and ``xattr_words`` are the format's own: how the data are held, where,
    and the size of the xattrs.
    """

    nid: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_seconds: int
    mtime_nanoseconds: int
    layout: int
    union: int
    xattr_words: int

    @property
    def rdev_major(self) -> int:
        return erofs.decode_device_number(self._rdev)[0]

    @property
    def rdev_minor(self) -> int:
        return erofs.decode_device_number(self._rdev)[1]

    @property
    def _rdev(self) -> int:
        return self.union if self.kind in (Kind.CHAR, Kind.BLOCK) else 0


class DirEntry(msgspec.Struct, frozen=True, gc=False):
    """One name of a directory; ``next_offset`` is where to go on behind it."""

    name: bytes
    nid: int
    kind: Kind
    next_offset: int


class Extent(msgspec.Struct, frozen=True, gc=False):
    """Where the bytes of a regular file lie: device (1 is the bottom layer), offset and size."""

    device: int
    offset: int
    size: int


class ErofsIndex:
    """A rootfs index.  Inodes are named by their nid."""

    root_nid: int
    inode_count: int
    devices: tuple[Device, ...]
    block_size: int
    uuid: bytes

    def __init__(self, buffer: bytes | bytearray | mmap) -> None:
        """Check the superblock, its checksum and the device table; raises IndexCorrupt.

        The buffer must stay as it is for as long as the index is used.
        """
        self._buffer = buffer
        self._size = len(buffer)
        superblock_end = erofs.SUPERBLOCK_OFFSET + erofs.SUPERBLOCK.size
        if self._size < superblock_end:
            raise IndexCorrupt(
                f"rootfs index: got {self._size} bytes, expected at least {superblock_end}"
            )
        fields = erofs.SUPERBLOCK.unpack_from(buffer, erofs.SUPERBLOCK_OFFSET)
        magic, checksum, compatible, block_bits, _, self.root_nid, self.inode_count = fields[:7]
        _, _, blocks, metadata_block, _, self.uuid, _, features, _ = fields[7:16]
        device_count, device_slot, directory_bits = fields[16:19]
        if magic != erofs.MAGIC:
            raise IndexCorrupt(f"rootfs index: got magic {magic:#x}, expected {erofs.MAGIC:#x}")
        if not MIN_BLOCK_BITS <= block_bits <= MAX_BLOCK_BITS or directory_bits:
            raise IndexCorrupt(
                f"rootfs index: got block bits {block_bits} and directory bits {directory_bits}, "
                f"expected {MIN_BLOCK_BITS} to {MAX_BLOCK_BITS} and 0"
            )
        self.block_size = 1 << block_bits
        self._check_sum(checksum, compatible)
        if features not in FEATURES:
            raise IndexCorrupt(
                f"rootfs index: features {features:#x} are not a device table and chunks only"
            )
        if blocks << block_bits != self._size:
            raise IndexCorrupt(
                f"rootfs index: got {self._size} bytes, expected {blocks} blocks "
                f"of {self.block_size}"
            )
        self._metadata: int = metadata_block << block_bits
        self.devices = self._read_devices(device_count, device_slot)
        if self.inode(self.root_nid).kind != Kind.DIRECTORY:
            raise IndexCorrupt("root inode: it is not a directory")

    @property
    def buffer(self) -> bytes | bytearray | mmap:
        """The bytes that are read."""
        return self._buffer

    def _check_sum(self, expected: int, compatible: int) -> None:
        start = erofs.SUPERBLOCK_OFFSET
        size = self.block_size - start if self.block_size > start else self.block_size
        block = bytearray(self._buffer[start : start + size])
        block[4:8] = bytes(4)
        got = erofs.superblock_checksum(block)
        if len(block) != size or not compatible & erofs.HAS_CHECKSUM or got != expected:
            raise IndexCorrupt(f"superblock: got checksum {expected:#010x}, expected {got:#010x}")

    def _read_devices(self, count: int, slot: int) -> tuple[Device, ...]:
        start = slot * erofs.DEVICE_SLOT_SIZE
        if start + count * erofs.DEVICE_SLOT_SIZE > self._size:
            raise IndexCorrupt(f"device table: {count} devices at {start} lie beyond the end")
        devices = []
        for number in range(count):
            tag, blocks, _ = erofs.DEVICE_SLOT.unpack_from(
                self._buffer, start + number * erofs.DEVICE_SLOT_SIZE
            )
            text = tag.rstrip(b"\0").decode("ascii", errors="replace")
            devices.append(Device(text, blocks * self.block_size))
        return tuple(devices)

    def inode(self, nid: int) -> Inode:
        """Return inode *nid*; raises IndexCorrupt where there is none."""
        position = self._metadata + nid * SLOT_SIZE
        if nid <= 0 or position + INODE_SIZE > self._size:
            raise IndexCorrupt(f"inode {nid} lies outside the index")
        layout, xattr_words, mode, high, size, union, _, uid, gid, seconds, nanoseconds, nlink = (
            unpack_inode(self._buffer, position)
        )
        kind = KINDS.get(mode & 0o170000)
        if layout not in FORMATS or kind is None or high:
            raise IndexCorrupt(f"inode {nid}: format {layout:#x} with mode {mode:#o} is not valid")
        return Inode(
            nid, kind, mode, uid, gid, nlink, size, seconds, nanoseconds, layout, union, xattr_words
        )

    def lookup(self, nid: int, name: bytes) -> int | None:
        """Return the nid of *name* in directory *nid*, None if there is no such name.

        Raises WrongKind if *nid* is not a directory.
        """
        inode = self._inode_of(nid, Kind.DIRECTORY)
        low, high = 0, -(-inode.size // self.block_size)
        # The last block whose first name is not behind *name*.
        while high - low > 1:
            middle = (low + high) // 2
            start, count, end = self._directory_block(inode, middle)
            if self._name(start, 0, count, end) <= name:
                low = middle
            else:
                high = middle
        if not high:
            return None
        start, count, end = self._directory_block(inode, low)
        buffer = self._buffer
        first, last = 0, count
        while first < last:
            middle = (first + last) // 2
            found = self._name(start, middle, count, end)
            if found == name:
                result: int = unpack_dirent(buffer, start + middle * DIRENT_SIZE)[0]
                return result
            if found < name:
                first = middle + 1
            else:
                last = middle
        return None

    def entries(self, nid: int, start: int = 0) -> Iterator[DirEntry]:
        """Yield the names of directory *nid* in order, "." and ".." among them.

        *start* is 0 or the ``next_offset`` of an entry.  Raises WrongKind if *nid* is not a
        directory.
        """
        inode = self._inode_of(nid, Kind.DIRECTORY)
        block_size = self.block_size
        block_count = -(-inode.size // block_size)
        block, offset = divmod(max(start, 0), block_size)
        number = -(-offset // DIRENT_SIZE)
        while block < block_count:
            position, count, end = self._directory_block(inode, block)
            base = block * block_size
            while number < count:
                child, _, raw_kind = unpack_dirent(self._buffer, position + number * DIRENT_SIZE)
                name = self._name(position, number, count, end)
                kind = DIRENT_KINDS.get(raw_kind)
                if kind is None or not name:
                    raise IndexCorrupt(
                        f"directory {nid}: name {name!r} of kind {raw_kind} is not valid"
                    )
                number += 1
                next_offset = base + (number * DIRENT_SIZE if number < count else block_size)
                yield DirEntry(name, child, kind, next_offset)
            block += 1
            number = 0

    def readlink(self, nid: int) -> bytes:
        """Return the target of symlink *nid*; raises WrongKind if it is none."""
        inode = self._inode_of(nid, Kind.SYMLINK)
        if inode.size > erofs.MAX_SYMLINK_SIZE:
            raise IndexCorrupt(f"symlink {nid}: a target of {inode.size} bytes is not valid")
        # Less than a block, so all of it is in one place.
        start, end = self._data_block(inode, 0)
        return bytes(self._buffer[start:end])

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """Return the extended attributes of inode *nid* by their full names."""
        return self._xattrs(self.inode(nid))

    def _xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        xattrs: dict[bytes, bytes] = {}
        if not inode.xattr_words:
            return xattrs
        buffer = self._buffer
        start = self._metadata + inode.nid * SLOT_SIZE + INODE_SIZE
        end = self._xattr_end(inode)
        if end > self._size or buffer[start + 4]:
            raise IndexCorrupt(f"inode {inode.nid}: its xattrs lie beyond the end, or are shared")
        position = start + erofs.XATTR_HEADER_SIZE
        while position < end:
            name_size, index, value_size = unpack_xattr(buffer, position)
            name_start = position + erofs.XATTR_ENTRY.size
            value_start = name_start + name_size
            position = value_start + value_size
            prefix = erofs.XATTR_PREFIXES.get(index)
            if prefix is None or position > end:
                raise IndexCorrupt(f"inode {inode.nid}: an xattr with prefix {index} is damaged")
            name = prefix + buffer[name_start:value_start]
            xattrs[name] = bytes(buffer[value_start:position])
            position += -position & 3
        return xattrs

    def extent(self, nid: int) -> Extent | None:
        """Return where the bytes of regular file *nid* lie, None for an empty one.

        Raises WrongKind if *nid* is not a regular file.
        """
        return self.extent_of(self._inode_of(nid, Kind.REGULAR))

    def extent_of(self, inode: Inode) -> Extent | None:
        """Return where the bytes of a regular file lie, None for an empty one."""
        size = inode.size
        if not size:
            return None
        chunk_format = inode.union & 0xFFFF  # the upper half is reserved
        position = self._xattr_end(inode)
        position += -position & 7
        if (
            inode.layout != erofs.FORMAT_CHUNKED
            or chunk_format & ~erofs.CHUNK_BITS_MASK != erofs.CHUNK_INDEXES
            or size > self.block_size << (chunk_format & erofs.CHUNK_BITS_MASK)
            or position + erofs.CHUNK_INDEX.size > self._size
        ):
            raise IndexCorrupt(f"file {inode.nid}: it has more than one chunk, or none")
        high, device, block = unpack_chunk(self._buffer, position)
        offset = block * self.block_size
        if high or not 0 < device <= len(self.devices):
            raise IndexCorrupt(
                f"file {inode.nid}: got device {device}, expected 1 to {len(self.devices)}"
            )
        if offset + size > self.devices[device - 1].size:
            raise IndexCorrupt(f"file {inode.nid}: its bytes lie beyond the end of device {device}")
        return Extent(device, offset, size)

    def _inode_of(self, nid: int, kind: Kind) -> Inode:
        inode = self.inode(nid)
        if inode.kind != kind:
            raise WrongKind(
                f"inode {nid} is of kind {inode.kind.name.lower()}, not {kind.name.lower()}"
            )
        return inode

    def _xattr_end(self, inode: Inode) -> int:
        """Return where the inode and its xattrs end, possibly behind the buffer."""
        end = self._metadata + inode.nid * SLOT_SIZE + INODE_SIZE
        words = inode.xattr_words
        return end + erofs.XATTR_HEADER_SIZE + 4 * (words - 1) if words else end

    def _data_block(self, inode: Inode, block: int) -> tuple[int, int]:
        """Return the start and end of data block number *block* of a directory or symlink."""
        block_size = self.block_size
        offset = block * block_size
        size = min(block_size, inode.size - offset)
        if inode.layout == erofs.FORMAT_INLINE and size < block_size:
            start = self._xattr_end(inode)
        elif inode.layout != erofs.FORMAT_CHUNKED:
            start = inode.union * block_size + offset
        else:
            raise IndexCorrupt(f"inode {inode.nid}: it has chunks instead of flat data")
        end = start + size
        if size <= 0 or end > self._size:
            raise IndexCorrupt(f"inode {inode.nid}: its data lie beyond the end of the index")
        return start, end

    def _directory_block(self, inode: Inode, block: int) -> tuple[int, int, int]:
        """Return where a directory's block starts, how many entries it has, and where it ends."""
        start, end = self._data_block(inode, block)
        first = 0
        if end - start >= DIRENT_SIZE:
            first = unpack_name_offset(self._buffer, start)[0]
        count, rest = divmod(first, DIRENT_SIZE)
        if not count or rest or first > end - start:
            raise IndexCorrupt(
                f"directory {inode.nid}: name offset {first} in block {block} is not valid"
            )
        return start, count, end

    def _name(self, start: int, number: int, count: int, end: int) -> bytes:
        """Return the name of entry *number* of the *count* in the block from *start* to *end*."""
        position = start + number * DIRENT_SIZE
        if number + 1 < count:
            first, last = unpack_name_offsets(self._buffer, position)
            last += start
            first += start
            if not start < first <= last <= end:
                raise IndexCorrupt(f"directory block at {start}: its name offsets are out of order")
            return bytes(self._buffer[first:last])
        first = start + unpack_name_offset(self._buffer, position)[0]
        if first > end:
            raise IndexCorrupt(f"directory block at {start}: a name lies beyond its end")
        # The last name of a block ends at its first NUL: the rest is padding.
        return bytes(self._buffer[first:end]).partition(b"\0")[0]
