"""What a mount says of itself, whatever serves it: the ``user.lazyfs.*`` names with their values.

A FUSE mount has all of them as attributes of its root.  A mount by the kernel shows those that hold
for every mount of the image, which are in its index; those of one mount are in its record, and its
server says how it fares.  Contract: docs/reference/xattrs.md.  No network code is imported.
"""

import os
import time
from pathlib import Path

from lazyfs.errors import MountFailed
from lazyfs.mount.abort import CONNECTIONS, abort_connection
from lazyfs.mount.options import EROFS, FILESYSTEM_TYPE
from lazyfs.mount.point import MountEntry, State, load_mountinfo, state_of, topmost, unmount
from lazyfs.service.processes.control import ServerSilent, ask
from lazyfs.service.record import (
    DEVICES_SUFFIX,
    MountRecord,
    is_alive,
    is_stuck,
    load_records,
    remove_record,
    socket_path,
)

PREFIX = "user.lazyfs."
HEALTH = PREFIX + "health"
NO_SERVER = "unknown: the server has ended"


STUCK_SECONDS = 3.0
"""How long a server that was killed may take to end, and its successor to be there."""
LOOK_SECONDS = 0.05


class StuckServer(MountFailed):
    """A server was killed, cannot end, and keeps its connection."""


class NotOurs(MountFailed):
    """What is there is no mount of lazyfs."""

    code = "E_NOT_MOUNTED"


def record_of(runtime: Path, entry: MountEntry) -> MountRecord | None:
    """Return the record of the mount that *entry* of the table is, of a dead server too."""
    mountpoint = os.fsdecode(entry.mountpoint)
    for record in load_records(runtime):
        if record.mountpoint == mountpoint and record.device == entry.device:
            return record
    return None


def is_ours(runtime: Path, entry: MountEntry) -> bool:
    """Say whether lazyfs made the mount: by its type, or for the kernel's by our record of it."""
    if entry.filesystem_type == EROFS:
        record = record_of(runtime, entry)
        return record is not None and record.driver == EROFS
    return entry.filesystem_type == FILESYSTEM_TYPE


def read_identity(runtime: Path, mountpoint: str) -> dict[str, str]:
    """Return the ``user.lazyfs.*`` names of the mount on *mountpoint*, an absolute real path.

    *runtime* is the directory of the records.  Raises NotOurs; OSError where the mount is dead.
    """
    entry = topmost(load_mountinfo(), os.fsencode(mountpoint))
    if entry is None or not is_ours(runtime, entry):
        got = (
            "nothing is mounted there" if entry is None else f"its type is {entry.filesystem_type}"
        )
        raise NotOurs(f"{mountpoint} is not a lazyfs mount: {got}")
    found = {
        name: os.getxattr(mountpoint, name).decode("utf-8", "surrogateescape")
        for name in os.listxattr(mountpoint)
        if name.startswith(PREFIX)
    }
    if entry.filesystem_type == EROFS:
        record = record_of(runtime, entry)
        assert record is not None, "seen a moment ago"
        found |= record.attributes
        found[HEALTH] = _health(runtime, record)
    return dict(sorted(found.items()))


def _health(runtime: Path, record: MountRecord) -> str:
    if not is_alive(record):
        return NO_SERVER
    try:
        answer = ask(socket_path(runtime, record.mount_id), {"type": "status"})
    except ServerSilent as error:
        return f"unknown: {error.message}"
    return str(answer.get("health", "unknown"))


def remove_abandoned(runtime: Path, mountpoint: str) -> bool:
    """Remove a mount by the kernel from *mountpoint* whose server was killed; say whether.

    Such a mount looks alive: what the kernel has in memory can still be read.  Private mounts are
    removed too whose server was killed in the moment for which they are in the tree.
    """
    _remove_private(runtime)
    entry = topmost(load_mountinfo(), os.fsencode(mountpoint))
    if entry is None or entry.filesystem_type != EROFS or not is_ours(runtime, entry):
        return False
    record = record_of(runtime, entry)
    if record is None or is_alive(record):
        return False
    unmount(mountpoint, lazy=True)
    remove_record(runtime, record.mount_id)
    return True


def end_stuck(runtime: Path, mountpoint: str) -> bool:
    """End the connection of a killed server of *mountpoint* that cannot end; say if there was one.

    It waits in the kernel for a read that only it could answer.  Until the connection is ended,
    unmounting would wait, too, and so would whoever calls sync(2).  Raises StuckServer.
    """
    deadline = time.monotonic() + STUCK_SECONDS
    while True:
        stuck = [
            record
            for record in load_records(runtime)
            if record.mountpoint == mountpoint and is_stuck(record)
        ]
        if not stuck:
            return False
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_SECONDS)
    for record in stuck:
        if not _is_its_device(runtime, record):
            continue
        if not abort_connection(record.device):
            minor = record.device.rpartition(":")[2]
            raise StuckServer(
                f"the server of {mountpoint}, pid {record.pid}, was killed and cannot end",
                hint=f"as root: mount -t fusectl none {CONNECTIONS}; "
                f"echo 1 > {CONNECTIONS}/{minor}/abort",
            )
    return True


def _is_its_device(runtime: Path, record: MountRecord) -> bool:
    """Say whether the device of a stuck server is not another mount's by now."""
    mountpoint = os.fsencode(record.mountpoint)
    others = (
        entry
        for entry in load_mountinfo()
        if entry.device == record.device and entry.mountpoint != mountpoint
    )
    successors = (
        each for each in load_records(runtime) if each.device == record.device and is_alive(each)
    )
    return next(others, None) is None and next(successors, None) is None


def _remove_private(runtime: Path) -> None:
    folder = os.fsencode(runtime)
    for entry in load_mountinfo():
        path = os.fsdecode(entry.mountpoint)
        if os.path.dirname(entry.mountpoint) != folder or not path.endswith(DEVICES_SUFFIX):
            continue
        if state_of(path)[0] is State.DEAD:
            unmount(path, lazy=True)
            os.rmdir(path)
