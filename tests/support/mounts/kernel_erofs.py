"""The kernel's own EROFS, and the programs of erofs-utils, as judges of an index."""

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyfs.formats.tocs.toc import Toc
from lazyfs.rootfs.layout import device_offsets, device_size
from tests.support.formats.rootfs import Facts

MS_RDONLY = 1
MNT_DETACH = 2
UNSUPPORTED = {
    errno.ENODEV: "this kernel has no EROFS",
    errno.ENOTBLK: "this kernel has no file-backed EROFS (Linux 6.12)",
    errno.EPERM: "no permission to mount here",
}


def write_device(path: Path, toc: Toc, payloads: Mapping[bytes, bytes]) -> Path:
    """Write the device of *toc* to a sparse file; *payloads* are the files' bytes by path."""
    with path.open("wb") as file:
        file.truncate(device_size(toc))
        for entry, offset in zip(toc.entries, device_offsets(toc), strict=True):
            if offset >= 0:
                data = payloads[entry.path]
                # An entry that a later one of the same name replaces has other bytes; it is unused.
                file.seek(offset)
                file.write(data[: entry.size])
    return path


@contextmanager
def kernel_mount(image: Path, devices: Sequence[Path], target: Path) -> Iterator[Path]:
    """Mount an EROFS image by mount(2): mount(8) would put a loop device under the index."""
    if os.geteuid() != 0:
        pytest.skip("mounting EROFS needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    target.mkdir(exist_ok=True)
    options = ",".join(f"device={device}" for device in devices)
    failed = libc.mount(
        os.fsencode(image), os.fsencode(target), b"erofs", MS_RDONLY, options.encode()
    )
    if failed:
        number = ctypes.get_errno()
        if number in UNSUPPORTED:
            pytest.skip(UNSUPPORTED[number])
        raise OSError(number, os.strerror(number), str(image))
    try:
        yield target
    finally:
        if libc.umount2(os.fsencode(target), MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount2", str(target))


def facts_on_disk(root: Path) -> tuple[dict[bytes, Facts], dict[bytes, int]]:
    """Return what lstat, readlink and the xattr calls say of a tree, and the inode numbers."""
    top = os.fsencode(root)
    found: dict[bytes, os.stat_result] = {b"": os.lstat(top)}
    for folder, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(folder, name)
            found[path[len(top) + 1 :]] = os.lstat(path)
    names: dict[int, set[bytes]] = {}
    for path, status in found.items():
        names.setdefault(status.st_ino, set()).add(path)
    facts = {}
    for path, status in found.items():
        full = os.path.join(top, path) if path else top
        facts[path] = Facts(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            nlink=status.st_nlink,
            size=0 if stat.S_ISDIR(status.st_mode) else status.st_size,
            mtime=divmod(status.st_mtime_ns, 10**9),
            rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)),
            link=os.readlink(full) if stat.S_ISLNK(status.st_mode) else b"",
            names=frozenset(names[status.st_ino]),
            xattrs=_xattrs_on_disk(full, status.st_mode),
        )
    return facts, {path: status.st_ino for path, status in found.items()}


def _xattrs_on_disk(path: bytes, mode: int) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        # Listed, but not to be had: see xattr(7), "Extended user attributes".
        names = [name for name in names if not name.startswith("user.")]
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def run_tool(name: str, image: Path, devices: Sequence[Path], *arguments: str) -> str:
    """Run fsck.erofs or dump.erofs over an image; return what it says, fail if it complains."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed (package erofs-utils)")
    done = subprocess.run(
        [program, *(f"--device={device}" for device in devices), *arguments, str(image)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "<E>" not in output, output
    return output
