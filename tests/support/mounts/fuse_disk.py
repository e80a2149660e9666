"""A disk that fails on command: a FUSE filesystem over a directory, for stores in tests.

    python -m tests.support.mounts.fuse_disk SOURCE MOUNTPOINT CONTROL

SOURCE's files, passed through.  The file CONTROL says what fails now, one word a line:

    write    EIO from whatever would change something        full    the same, ENOSPC
    read     EIO from reading bytes of files
"""

import errno
import os
import stat as modes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import trio

from tests.support.mounts.mounting import ROOT, SECONDS, force_unmount, is_mounted, wait_until

CHANGES = {"write": errno.EIO, "full": errno.ENOSPC}


class FailingDisk(pyfuse3.Operations):
    """Inodes are those of the source, by path; nothing is cached."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, source: str, control: str) -> None:
        super().__init__()
        self._paths: dict[int, str] = {pyfuse3.ROOT_INODE: source}
        self._root = os.lstat(source).st_ino
        self._control = control

    def _words(self) -> set[str]:
        try:
            return set(Path(self._control).read_text().split())
        except OSError:
            return set()

    def _may_change(self) -> None:
        for word, number in CHANGES.items():
            if word in self._words():
                raise pyfuse3.FUSEError(number)

    def _path(self, inode: int, name: bytes = b"") -> str:
        path = self._paths[inode]
        return os.path.join(path, os.fsdecode(name)) if name else path

    def _entry(self, path: str) -> pyfuse3.EntryAttributes:
        with _errors():
            found = os.lstat(path)
        entry = pyfuse3.EntryAttributes()
        for field in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size"):
            setattr(entry, field, getattr(found, field))
        # Always the same: the kernel lets go of the pages of a file whose time has changed, also of
        # those that are mapped, as it would of no local disk's.
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = 1_700_000_000_000_000_000
        entry.st_blocks = found.st_blocks
        entry.st_blksize = 4096
        inode = pyfuse3.ROOT_INODE if found.st_ino == self._root else found.st_ino
        entry.st_ino = inode
        entry.entry_timeout = entry.attr_timeout = 0
        self._paths[inode] = path
        return entry

    async def lookup(self, parent_inode, name, ctx=None):
        return self._entry(self._path(parent_inode, name))

    async def getattr(self, inode, ctx=None):
        return self._entry(self._path(inode))

    async def setattr(self, inode, attr, fields, fh, ctx):
        self._may_change()
        path = self._path(inode)
        with _errors():
            if fields.update_size:
                os.truncate(path, attr.st_size)
            if fields.update_mode:
                os.chmod(path, modes.S_IMODE(attr.st_mode))
            if fields.update_atime or fields.update_mtime:
                os.utime(path)
        return self._entry(path)

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start_id, token):
        with _errors():
            names = sorted(os.listdir(self._path(fh)))
        for number, name in enumerate(names[start_id:], start=start_id + 1):
            entry = self._entry(os.path.join(self._path(fh), name))
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, number):
                break

    async def mkdir(self, parent_inode, name, mode, ctx):
        self._may_change()
        path = self._path(parent_inode, name)
        with _errors():
            os.mkdir(path, mode)
        return self._entry(path)

    async def unlink(self, parent_inode, name, ctx):
        self._may_change()
        with _errors():
            os.unlink(self._path(parent_inode, name))

    async def rmdir(self, parent_inode, name, ctx):
        self._may_change()
        with _errors():
            os.rmdir(self._path(parent_inode, name))

    async def rename(self, parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx):
        self._may_change()
        old, new = self._path(parent_inode_old, name_old), self._path(parent_inode_new, name_new)
        with _errors():
            os.rename(old, new)
        for inode, path in list(self._paths.items()):
            if path == old or path.startswith(f"{old}/"):
                self._paths[inode] = new + path[len(old) :]

    async def create(self, parent_inode, name, mode, flags, ctx):
        self._may_change()
        path = self._path(parent_inode, name)
        with _errors():
            fd = os.open(path, flags | os.O_CREAT, mode)
        return pyfuse3.FileInfo(fd, keep_cache=True), self._entry(path)

    async def open(self, inode, flags, ctx):
        with _errors():
            return pyfuse3.FileInfo(os.open(self._path(inode), flags), keep_cache=True)

    async def read(self, fh, off, size):
        if "read" in self._words():
            raise pyfuse3.FUSEError(errno.EIO)
        with _errors():
            return os.pread(fh, size, off)

    async def write(self, fh, off, buf):
        self._may_change()
        with _errors():
            return os.pwrite(fh, buf, off)

    async def fsync(self, fh, datasync):
        self._may_change()

    async def flush(self, fh):
        pass

    async def release(self, fh):
        os.close(fh)

    async def statfs(self, ctx):
        found = os.statvfs(self._path(pyfuse3.ROOT_INODE))
        stats = pyfuse3.StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files"):
            setattr(stats, field, getattr(found, field))
        stats.f_namemax = 255
        return stats


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise pyfuse3.FUSEError(error.errno) from error


class Disk:
    """A failing disk on *mountpoint*."""

    def __init__(self, mountpoint: Path, control: Path) -> None:
        self.path = mountpoint
        self._control = control

    def fail(self, *words: str) -> None:
        """Have these fail from now on, and nothing else."""
        self._control.write_text("\n".join(words))
        # What the kernel keeps of files would hide it
        Path("/proc/sys/vm/drop_caches").write_text("1")


@contextmanager
def failing_disk(folder: Path) -> Iterator[Disk]:
    """Mount a failing disk for the time of the block.  Root."""
    source, mountpoint, control = folder / "source", folder / "disk", folder / "control"
    source.mkdir(mode=0o700)
    mountpoint.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.mounts.fuse_disk", source, mountpoint, control],
        cwd=ROOT,
    )
    try:
        wait_until(lambda: process.poll() is not None or is_mounted(mountpoint))
        assert process.poll() is None
        yield Disk(mountpoint, control)
    finally:
        force_unmount(mountpoint)
        process.terminate()
        process.wait(SECONDS)


def main(source: str, mountpoint: str, control: str) -> None:
    pyfuse3.init(
        FailingDisk(source, control), mountpoint, {"fsname=failing", "default_permissions"}
    )
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
