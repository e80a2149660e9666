"""Driver 1: the handlers of pyfuse3 over the rootfs index.

The FUSE inode number is the index's nid, except for the root, which is 1 for FUSE; a file handle
is the inode number.  So there is nothing to remember, nothing that ``forget`` would have to
forget, and nothing that a crash loses.  An image never changes: whatever the kernel has been told
holds for ever, that a name does not exist too.

Two rules of pyfuse3 (``_pyfuse3.py``, class Operations): a handler may raise FUSEError only, since
any other exception ends the whole mount; every handler here ends in the same two lines for that.
And pyfuse3 has no notion of an interrupted request: a handler always runs to its end, so that a
reader that was killed leaves its fetch alive.  The kernel lets a killed reader go by itself.

Hits are answered on the event loop.  Handing one to a thread costs ten times the work itself.
"""

import errno
import os
from typing import NoReturn

import trio

from lazyfs.errors import Unavailable
from lazyfs.formats.tocs.toc import Kind
from lazyfs.mount.attrs import BLOCK_SIZE, ExtendedAttributes, blocks_of
from lazyfs.mount.contents import MountedImage
from lazyfs.mount.errnos import errno_of
from lazyfs.mount.faults import FaultLog
from lazyfs.mount.forgetting import Page
from lazyfs.mount.libfuse import pyfuse3
from lazyfs.rootfs.erofs_reader import IndexCorrupt

ROOT = 1  # FUSE_ROOT_ID
FOREVER = 1e9  # seconds; the kernel and libfuse take it without overflow
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
MAX_NAME = 255
MAX_EXTENTS = 4096  # remembered between two reads of a file
MAX_WAITING = 900
"""Reads that may wait for contents; a further one fails, since names and hits need tasks too."""
NANOSECONDS = 1_000_000_000
DEVICE_KINDS = (Kind.CHAR, Kind.BLOCK)


class TooMany(Unavailable):
    """More reads wait than there are tasks for."""


class ImageOperations(pyfuse3.Operations):
    """Answers the kernel's requests from *image*."""

    supports_dot_lookup = True  # the mount can be exported over NFS: any nid can be looked up
    enable_writeback_cache = False
    enable_acl = True  # ACLs of the image decide, as they do on the kernel's own mount of it

    def __init__(self, image: MountedImage, *, keeps_pages: bool = True) -> None:
        super().__init__()
        self._keeps_pages = keeps_pages
        self._index = image.index
        self._contents = image.contents
        self._root = image.index.root_nid
        self._xattrs = ExtendedAttributes(image)
        self._faults = FaultLog(image)
        self._extents: dict[int, tuple[int, int, int]] = {}
        self._waiting: dict[object, Page] = {}
        self._absent = pyfuse3.EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = FOREVER
        self.initialised = trio.Event()

    def init(self) -> None:
        """Note that the kernel has greeted us: from now on requests are answered."""
        self.initialised.set()

    def stacktrace(self) -> None:
        """Do nothing: SIGUSR1 writes the stacks."""

    # What is there

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            parent = self._root if parent_inode == ROOT else parent_inode
            nid = parent if name == b"." else self._index.lookup(parent, name)
            return self._absent if nid is None else self._entry(nid)
        except Exception as error:
            raise self._failure("lookup", parent_inode, error) from error

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        try:
            return self._entry(self._root if inode == ROOT else inode)
        except Exception as error:
            raise self._failure("getattr", inode, error) from error

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        try:
            return self._index.readlink(inode)
        except Exception as error:
            raise self._failure("readlink", inode, error) from error

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        try:
            reply = pyfuse3.readdir_reply
            for entry in self._index.entries(self._root if fh == ROOT else fh, start_id):
                if not reply(token, entry.name, self._entry(entry.nid), entry.next_offset):
                    break
        except Exception as error:
            raise self._failure("readdir", fh, error) from error

    async def releasedir(self, fh: int) -> None:
        pass

    async def forget(self, inode_list: object) -> None:
        pass

    # Contents

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & WRITE_FLAGS:
            raise pyfuse3.FUSEError(errno.EROFS)
        if self._keeps_pages:
            return pyfuse3.FileInfo(inode)  # keep_cache is pyfuse3's default; contents never change
        return pyfuse3.FileInfo(inode, direct_io=True, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        try:
            extent = self._extents.get(fh)
            if extent is None:
                extent = self._extent(fh)
            device, start, length = extent
            if off + size > length:
                size = length - off
                if size <= 0:
                    return b""
            data = self._contents.read_nowait(device, start + off, size)
            if data is None:
                data = await self._wait(device, start, (fh, off, size))
            if len(data) != size:
                raise AssertionError(f"contents: got {len(data)} bytes, expected {size}")
            return data
        except Exception as error:
            await trio.to_thread.run_sync(self._faults.of_read, fh, off, size, error)
            raise pyfuse3.FUSEError(errno_of(error)) from error

    async def _wait(self, device: int, start: int, pages: Page) -> bytes:
        if len(self._waiting) >= MAX_WAITING:
            raise TooMany(f"contents: {MAX_WAITING} reads wait for them already")
        _, offset, size = pages
        key = object()
        self._waiting[key] = pages
        try:
            return await self._contents.read(device, start + offset, size)
        finally:
            del self._waiting[key]

    def parked(self) -> list[Page]:
        """Return what reads wait for; any thread may ask."""
        return list(self._waiting.values())

    async def release(self, fh: int) -> None:
        pass

    # flush: not implemented, so that the kernel stops asking (ENOSYS is pyfuse3's default)

    # What it says about itself

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        try:
            value = self._xattrs.get(self._root if inode == ROOT else inode, name)
        except Exception as error:
            raise self._failure("getxattr", inode, error) from error
        if value is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        try:
            return self._xattrs.names(self._root if inode == ROOT else inode)
        except Exception as error:
            raise self._failure("listxattr", inode, error) from error

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Say how large the image is, and that it is full: nothing can be written."""
        try:
            stats = pyfuse3.StatvfsData()
            size = sum(device.size for device in self._index.devices)
            stats.f_bsize = stats.f_frsize = BLOCK_SIZE
            stats.f_blocks = max(1, -(-size // BLOCK_SIZE))
            stats.f_files = self._index.inode_count
            stats.f_namemax = MAX_NAME
            return stats
        except Exception as error:
            raise self._failure("statfs", ROOT, error) from error

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # never asked: default_permissions makes the kernel decide

    # What cannot be done.  The mount is read-only and the kernel refuses most of these itself;
    # a remount would not make them possible.

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def write(self, fh: int, off: int, buf: bytes) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    # Common parts

    def _entry(self, nid: int) -> pyfuse3.EntryAttributes:
        inode = self._index.inode(nid)
        entry = pyfuse3.EntryAttributes()
        if nid == self._root:
            entry.st_ino = ROOT
        elif nid > ROOT:
            entry.st_ino = nid
        else:  # 0 would say "absent", 1 is the root's
            raise IndexCorrupt(f"inode: got nid {nid} for a file, expected more than {ROOT}")
        entry.entry_timeout = FOREVER
        entry.attr_timeout = FOREVER
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        size = inode.size
        entry.st_size = size
        entry.st_blocks = blocks_of(size)
        if inode.kind in DEVICE_KINDS:
            entry.st_rdev = os.makedev(inode.rdev_major, inode.rdev_minor)
        when = inode.mtime_seconds * NANOSECONDS + inode.mtime_nanoseconds
        entry.st_mtime_ns = when
        entry.st_atime_ns = when
        entry.st_ctime_ns = when
        return entry

    def _extent(self, nid: int) -> tuple[int, int, int]:
        """Return device, offset there, and size of the contents of *nid*."""
        found = self._index.extent(nid)
        extent = (0, 0, 0) if found is None else (found.device, found.offset, found.size)
        if len(self._extents) >= MAX_EXTENTS:
            self._extents.clear()
        self._extents[nid] = extent
        return extent

    def _failure(self, request: str, inode: int, error: Exception) -> pyfuse3.FUSEError:
        self._faults.of_request(request, inode, error)
        return pyfuse3.FUSEError(errno_of(error))
