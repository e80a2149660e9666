"""The state of a mountpoint, and undoing a mount.

The kernel's own table, ``/proc/self/mountinfo``, is the only witness: asking the directory itself
would wait for a server that may be stuck.
"""

import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

import msgspec

from lazyfs.errors import FormatError, MountFailed
from lazyfs.mount.options import FILESYSTEM_TYPE

MOUNTINFO = "/proc/self/mountinfo"
FUSE_DEVICE = "/dev/fuse"
FUSERMOUNT = "fusermount3"
FALLBACK_PATH = "/bin:/usr/bin"  # a mount unit of systemd has no PATH
UNMOUNT_SECONDS = 30.0
PROBE_SECONDS = 5.0
DEAD_ERRNOS = (errno.ENOTCONN, errno.ECONNABORTED)  # its server was killed, or its connection
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
ESCAPE_RE = re.compile(rb"\\([0-7]{3})")


class BadMountinfo(FormatError):
    """A line that is not one of the kernel's mount table."""


class BusyMountpoint(MountFailed):
    """Something is mounted there, or something uses what is mounted there."""

    code = "E_BUSY"


class BadMountpoint(MountFailed):
    """Nothing can be mounted there."""

    code = "E_MOUNTPOINT"


class MountEntry(msgspec.Struct, frozen=True):
    """A line of the mount table; ``device`` is "major:minor" of the filesystem."""

    mount_id: int
    device: str
    mountpoint: bytes
    filesystem_type: str
    source: bytes


def _unescape(field: bytes) -> bytes:
    return ESCAPE_RE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def parse_mountinfo(data: bytes) -> list[MountEntry]:
    """Return the mounts that *data* lists, in its order: a later one covers an earlier one.

    Format: proc(5), ``/proc/pid/mountinfo``; raises BadMountinfo.
    """
    entries = []
    for line in data.split(b"\n"):
        if not line:
            continue
        front, dash, back = line.partition(b" - ")
        fields, rest = front.split(b" "), back.split(b" ")
        if not dash or len(fields) < 6 or len(rest) < 2:
            raise BadMountinfo(f"mount table: line {line[:200]!r} is not as in proc(5)")
        try:
            entries.append(
                MountEntry(
                    mount_id=int(fields[0]),
                    device=fields[2].decode("ascii"),
                    mountpoint=_unescape(fields[4]),
                    filesystem_type=rest[0].decode("ascii"),
                    source=_unescape(rest[1]),
                )
            )
        except ValueError as error:
            raise BadMountinfo(f"mount table: line {line[:200]!r} is not as in proc(5)") from error
    return entries


def load_mountinfo() -> list[MountEntry]:
    """Return the mounts of this process's namespace."""
    with open(MOUNTINFO, "rb") as table:
        return parse_mountinfo(table.read())


def topmost(entries: Sequence[MountEntry], mountpoint: bytes) -> MountEntry | None:
    """Return the mount that is seen at *mountpoint*, an absolute path without links, or None."""
    found = [entry for entry in entries if entry.mountpoint == mountpoint]
    return found[-1] if found else None


def real_path(path: str) -> str:
    """Return *path* absolute and without links; works where a dead mount answers nothing.

    A mountpoint that is spelled as the kernel spells it is not looked at: its server may be busy,
    or be us.
    """
    is_clean = os.path.isabs(path) and os.path.normpath(path) == path
    if is_clean and topmost(load_mountinfo(), os.fsencode(path)) is not None:
        return path
    return os.path.realpath(path)


def check_covers_none(mountpoint: str, folders: Mapping[str, Path]) -> None:
    """Raise BadMountpoint where a mount on *mountpoint*, a real path, would hide one of *folders*.

    Its server would look for them in the mount, and wait for itself.
    """
    target = Path(mountpoint)
    for what, folder in folders.items():
        path = Path(os.path.realpath(folder))
        if target == path or target in path.parents:
            raise BadMountpoint(
                f"mountpoint {mountpoint} contains the {what} of lazyfs, {folder}, which the mount "
                "would hide",
                hint="mount elsewhere, or choose another --cache-dir",
            )


class State(Enum):
    """What a directory is for somebody who wants to mount on it."""

    FREE = "free"
    MISSING = "missing"
    NOT_DIRECTORY = "not a directory"
    FORBIDDEN = "not accessible"
    MOUNTED = "mounted"
    DEAD = "dead"


def state_of(path: str) -> tuple[State, MountEntry | None]:
    """Return the state of *path*, and what is mounted exactly there."""
    path = real_path(path)
    entry = topmost(load_mountinfo(), os.fsencode(path))
    if entry is not None and entry.filesystem_type == "autofs":
        entry = None  # it is there to be mounted over
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno in DEAD_ERRNOS and entry is not None:
            return State.DEAD, entry
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return State.MISSING, None
        if entry is not None:  # another user's FUSE mount lets nobody look
            return State.MOUNTED, entry
        return State.FORBIDDEN, None
    if entry is not None:
        is_dead = entry.filesystem_type.startswith("fuse") and _is_dead(path)
        return (State.DEAD if is_dead else State.MOUNTED), entry
    return (State.FREE if stat.S_ISDIR(mode) else State.NOT_DIRECTORY), None


def _is_dead(path: str) -> bool:
    """Ask the FUSE server of *path* for something that the kernel never remembers.

    The attributes of the root, which stat returns, outlive our servers.  A server that is alive
    and stuck keeps its askers waiting, so that a thread asks.
    """
    answers: list[int | None] = []

    def ask() -> None:
        try:
            os.statvfs(path)
            answers.append(None)
        except OSError as error:
            answers.append(error.errno)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(PROBE_SECONDS)
    return bool(answers) and answers[0] in DEAD_ERRNOS


def prepare_mountpoint(path: str) -> bool:
    """Make sure that *path* can be mounted on; say whether a dead mount of ours was removed.

    What is in the directory is hidden while the mount lasts, as with any mount; it need not be
    empty.  Raises MountFailed.
    """
    state, entry = state_of(path)
    if state is State.FREE:
        return False
    if state is State.MISSING:
        raise BadMountpoint(f"mountpoint {path} does not exist", hint=f"mkdir -p {path}")
    if state is State.NOT_DIRECTORY:
        raise BadMountpoint(f"mountpoint {path} is not a directory")
    if entry is None:
        raise BadMountpoint(f"mountpoint {path} is not accessible: permission denied")
    source = entry.source.decode("utf-8", "backslashreplace")
    kind = entry.filesystem_type
    if state is State.MOUNTED:
        raise BusyMountpoint(
            f"mountpoint {path} is already used: {kind} of {source} is mounted there",
            hint=f"lazyfs umount {path}" if kind == FILESYSTEM_TYPE else f"umount {path}",
        )
    if kind != FILESYSTEM_TYPE:
        raise BusyMountpoint(
            f"mountpoint {path} is already used: a dead {kind} of {source} is there",
            hint=f"lazyfs did not make it; try fusermount3 -u -z {path}, or umount -l {path}",
        )
    unmount(path, lazy=True)
    return True


def check_fuse_device(path: str = FUSE_DEVICE) -> None:
    """Raise MountFailed when this machine, or this container, has no FUSE."""
    try:
        is_device = stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        is_device = False
    if not is_device:
        raise MountFailed(
            f"{path}, the kernel's FUSE device, does not exist",
            hint="modprobe fuse; in a container, pass --device /dev/fuse",
        )


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount what is mounted on *path*; with *lazy*, detach it now and let users finish.

    As root by umount2(2), otherwise through fusermount3.  Raises BusyMountpoint or MountFailed.
    The last part of *path* is not looked at, and so no link: its server may be stuck, or be us.
    """
    parent, name = os.path.split(os.path.abspath(path))
    path = os.path.join(real_path(parent), name)
    if os.geteuid() == 0:
        _unmount_directly(path, lazy)
    else:
        _unmount_with_helper(path, lazy)


def _unmount_directly(path: str, lazy: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    if libc.umount2(os.fsencode(path), flags) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise _busy(path)
    raise MountFailed(f"cannot unmount {path}: {os.strerror(number)}")


def _unmount_with_helper(path: str, lazy: bool) -> None:
    helper = find_helper()
    command = [helper, "-u", *(["-z"] if lazy else []), "--", path]
    environment = {"LC_ALL": "C", "PATH": FALLBACK_PATH}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=UNMOUNT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MountFailed(f"cannot unmount {path}: {FUSERMOUNT} failed: {error}") from error
    if done.returncode == 0:
        return
    said = done.stderr.decode("utf-8", "backslashreplace").strip()[:500]
    if "busy" in said.lower():
        raise _busy(path)
    raise MountFailed(f"cannot unmount {path}: {said or f'exit status {done.returncode}'}")


def find_helper() -> str:
    """Return the path of fusermount3, or raise MountFailed."""
    helper = shutil.which(FUSERMOUNT) or shutil.which(FUSERMOUNT, path=FALLBACK_PATH)
    if helper is None:
        raise MountFailed(
            f"{FUSERMOUNT} is not in PATH",
            hint="install the package fuse3; only root can mount without it",
        )
    return helper


def _busy(path: str) -> BusyMountpoint:
    return BusyMountpoint(
        f"cannot unmount {path}: it is in use",
        hint=f"`lazyfs umount --lazy {path}` detaches it now; `fuser -vm {path}` shows who uses it",
    )
