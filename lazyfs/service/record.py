"""The records of mounts: one small file per mount, so that others can find its server.

A record is JSON in the runtime directory, ``<mount id>.json``, beside the server's control socket
``<mount id>.sock``.  The server writes it when its mount is live and removes it when it ends.  One
that was killed leaves its record behind: a process number alone proves nothing, since the kernel
gives it out again, so a record also holds when its process started.
"""

import json
import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from lazyfs.errors import StoreError

SUFFIX = ".json"
SOCKET_SUFFIX = ".sock"
DEVICES_SUFFIX = ".devices"
MAX_RECORD_SIZE = 1 << 16
START_TIME = 19  # of the fields after the name in /proc/pid/stat


class BadRuntimeDirectory(StoreError):
    """The directory for records and sockets cannot be made, or is open to others."""


class MountRecord(msgspec.Struct, frozen=True):
    """What there is to know about a mount without asking its server.

    ``started`` is RFC 3339, UTC; ``start_ticks`` is the kernel's start time of the process.
    ``device`` is "major:minor" of the mount.  ``attributes`` are the ``user.lazyfs.*`` names of
    this mount that do not change: a mount by the kernel shows only those of the image.
    """

    mount_id: str
    pid: int
    start_ticks: int
    mountpoint: str
    requested: str
    resolved: str
    manifest_digest: str
    platform: str
    cache_dir: str
    log_path: str
    driver: str
    started: str
    device: str = ""
    attributes: dict[str, str] = msgspec.field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the JSON form."""
        return json.dumps(msgspec.structs.asdict(self), indent=1).encode() + b"\n"


def decode_record(data: bytes) -> MountRecord | None:
    """Return the record that *data* holds, or None if it is none of ours."""
    try:
        document = json.loads(data)
        values = {name: document[name] for name in MountRecord.__struct_fields__}
        record = msgspec.convert(values, MountRecord)
    except (ValueError, KeyError, TypeError, RecursionError, msgspec.ValidationError):
        return None
    return record if record.mount_id.isalnum() and record.pid > 0 else None


def start_ticks_of(pid: int) -> int | None:
    """Return when process *pid* started, in the kernel's ticks, or None if there is none."""
    try:
        state, start_ticks = _state_of(f"/proc/{pid}/stat")
    except OSError:
        return None
    return None if state in (b"Z", b"X") else start_ticks


def is_alive(record: MountRecord) -> bool:
    """Say whether the server that wrote *record* still runs."""
    return start_ticks_of(record.pid) == record.start_ticks


def is_stuck(record: MountRecord) -> bool:
    """Say whether the server that wrote *record* was killed, and has threads that cannot end.

    Such a process is a zombie; the kernel keeps what its threads have open.
    """
    folder = f"/proc/{record.pid}/task"
    try:
        threads = [_state_of(f"{folder}/{thread}/stat") for thread in os.listdir(folder)]
        state, start_ticks = _state_of(f"/proc/{record.pid}/stat")
    except OSError:
        return False  # it, or one of them, has just ended
    is_dead = state == b"Z" and start_ticks == record.start_ticks
    return is_dead and any(each not in (b"Z", b"X") for each, _ in threads)


def _state_of(path: str) -> tuple[bytes, int]:
    """Return state and start of the process or thread whose ``stat`` is *path*; raises OSError."""
    with open(path, "rb") as file:
        fields_ = file.read().rpartition(b")")[2].split()
    if len(fields_) <= START_TIME:
        return b"X", 0
    return fields_[0], int(fields_[START_TIME])


def wait_server_end(record: MountRecord, seconds: float) -> bool:
    """Wait until the server that wrote *record* has ended; say whether it has."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except OSError:
        return True
    try:
        if not is_alive(record):  # asked after opening: the number cannot change its owner now
            return True
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def make_runtime_directory(path: Path) -> None:
    """Make the directory if it is missing; refuse one that others could write to."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise BadRuntimeDirectory(f"runtime directory {path}: {error.strerror}") from error
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.geteuid()
        or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise BadRuntimeDirectory(
            f"runtime directory {path} has mode {found.st_mode:o} and owner {found.st_uid}; it "
            f"must be a directory that only user {os.geteuid()} can write to"
        )


def record_path(runtime: Path, mount_id: str) -> Path:
    """Return where the record of a mount is."""
    return runtime / (mount_id + SUFFIX)


def socket_path(runtime: Path, mount_id: str) -> Path:
    """Return where the control socket of a mount is."""
    return runtime / (mount_id + SOCKET_SUFFIX)


def devices_path(runtime: Path, mount_id: str) -> Path:
    """Return where the files of a mount by the kernel are, for a moment."""
    return runtime / (mount_id + DEVICES_SUFFIX)


def save_record(runtime: Path, record: MountRecord) -> None:
    """Write *record*, at once or not at all."""
    path = record_path(runtime, record.mount_id)
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(record.encode())
        temporary.replace(path)
    except OSError as error:
        raise BadRuntimeDirectory(f"record {path}: {error.strerror}") from error


def remove_record(runtime: Path, mount_id: str) -> None:
    """Remove a mount's record and socket, as far as they are there."""
    for path in (record_path(runtime, mount_id), socket_path(runtime, mount_id)):
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # the directory has become unwritable: the record is recognised as stale


def load_records(runtime: Path) -> Iterator[MountRecord]:
    """Yield all records, of dead servers too, in the order of their ids; skip what is broken."""
    try:
        names = sorted(os.listdir(runtime))
    except OSError:
        return
    for name in names:
        if not name.endswith(SUFFIX):
            continue
        try:
            with open(runtime / name, "rb") as file:
                record = decode_record(file.read(MAX_RECORD_SIZE))
        except OSError:
            continue
        if record is not None and record.mount_id + SUFFIX == name:
            yield record


def find_record(runtime: Path, mountpoint: str) -> MountRecord | None:
    """Return the record of the living server of *mountpoint*, an absolute path, or None."""
    found = [record for record in load_records(runtime) if record.mountpoint == mountpoint]
    alive = [record for record in found if is_alive(record)]
    return max(alive, key=lambda record: record.started, default=None)


def remove_stale(runtime: Path, mountpoint: str) -> None:
    """Remove the records that dead servers left for *mountpoint*."""
    for record in load_records(runtime):
        if record.mountpoint == mountpoint and not is_alive(record):
            remove_record(runtime, record.mount_id)
