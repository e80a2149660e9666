"""Mounting the kernel's own EROFS, by the system calls fsopen, fsconfig, fsmount and move_mount.

mount(2) takes a page of options, which holds some 35 devices; fsconfig takes them one by one.
mount(8) would put loop devices under the files.  Numbers of system calls: the same on every
architecture since Linux 5.2 (but Alpha).  Sources: fsopen(2), Documentation/filesystems/erofs.rst.
"""

import ctypes
import errno
import os
import re
from collections.abc import Iterable, Sequence

from lazyfs.errors import MountFailed

MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 429, 430, 431, 432
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
SET_FLAG, SET_STRING, CREATE = 0, 1, 6
MOVE_MOUNT_F_EMPTY_PATH = 4
AT_FDCWD = -100
MAX_COMPLAINT = 4096
MAX_STRING = 255  # of fsconfig
OLDEST = (6, 12)
RELEASE_RE = re.compile(r"(\d{1,4})\.(\d{1,4})")
HINT = "lazyfs mount --driver auto works here"

# Words of mount(8) → flags of fsmount(2).  What is not given is not forbidden, but see below.
ATTRIBUTES = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 0x10}
RDONLY = 1

REASONS = {
    errno.ENODEV: "this kernel has no EROFS (CONFIG_EROFS_FS)",
    errno.ENOSYS: "this kernel has no fsopen(2)",
    errno.EPERM: "only root can mount EROFS, outside of user namespaces",
    errno.ENOTBLK: "this kernel cannot mount EROFS from this file: it needs "
    "CONFIG_EROFS_FS_BACKED_BY_FILE, and a cache that is not on tmpfs",
}


class NoErofs(MountFailed):
    """The kernel cannot mount EROFS here."""

    code = "E_NO_EROFS"


def attributes_of(flags: Iterable[str]) -> int:
    """Return what fsmount(2) is told for *flags*, words of mount(8).

    Like FUSE mounts these are nosuid and nodev unless told otherwise.
    """
    given = set(flags)
    result = RDONLY
    for word, flag in ATTRIBUTES.items():
        if word in given or (word in ("nosuid", "nodev") and word[2:] not in given):
            result |= flag
    return result


def check_erofs(release: str) -> None:
    """Raise NoErofs where the kernel, of *release*, will not do it; nothing is mounted."""
    if os.geteuid() != 0:
        raise _refusal("not root", errno.EPERM)
    version = RELEASE_RE.match(release)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        raise NoErofs(f"driver erofs: got Linux {release[:40]}, expected 6.12 or newer", hint=HINT)
    os.close(_open())


def mount_erofs(index: str, devices: Sequence[str], target: str, attributes: int) -> None:
    """Mount the EROFS image *index* with its *devices*, paths all, on *target*.

    Waits for the devices to be opened: whoever serves them must be another thread.  Raises
    MountFailed.
    """
    filesystem = _open()
    try:
        _set(filesystem, b"source", _short(index))
        for device in devices:
            _set(filesystem, b"device", _short(device))
        _call(FSCONFIG, filesystem, SET_FLAG, b"ro", None, 0)
        try:
            _call(FSCONFIG, filesystem, CREATE, None, None, 0)
        except OSError as error:
            raise _refusal(_complaint(filesystem) or str(error), error.errno) from error
        mount = _call(FSMOUNT, filesystem, FSMOUNT_CLOEXEC, attributes)
        try:
            path = os.fsencode(target)
            _call(MOVE_MOUNT, mount, b"", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(mount)
    except OSError as error:
        raise MountFailed(f"cannot mount EROFS on {target}: {error}") from error
    finally:
        os.close(filesystem)


def _open() -> int:
    try:
        return _call(FSOPEN, b"erofs", FSOPEN_CLOEXEC)
    except OSError as error:
        raise _refusal(str(error.strerror), error.errno) from error


def _set(filesystem: int, key: bytes, value: bytes) -> None:
    _call(FSCONFIG, filesystem, SET_STRING, key, value, 0)


def _short(path: str) -> bytes:
    encoded = os.fsencode(path)
    if len(encoded) > MAX_STRING:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return encoded


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [
        ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each)
        for each in arguments
    ]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _complaint(filesystem: int) -> str:
    """Return what the kernel wrote into the context's log."""
    lines: list[str] = []
    try:
        while len(lines) < 10:
            line = os.read(filesystem, MAX_COMPLAINT).decode("utf-8", "backslashreplace").strip()
            lines.append(line.removeprefix("e ").removeprefix("w "))
    except OSError:
        pass  # ENODATA: that was all
    return "; ".join(lines)


def _refusal(got: str, number: int | None) -> MountFailed:
    reason = REASONS.get(number or 0)
    if reason is None:
        return MountFailed(f"driver erofs: the kernel refused the mount: {got!r}", hint=HINT)
    return NoErofs(f"driver erofs is not available: {reason} ({got!r})", hint=HINT)
