"""``lazyfs restart``: replace a mount's server process without unmounting."""

import time

import click

from lazyfs.cli.options import default_runtime_dir
from lazyfs.errors import MountFailed
from lazyfs.mount.point import real_path
from lazyfs.service.identity import end_stuck
from lazyfs.service.processes.control import ServerSilent, ask
from lazyfs.service.record import find_record, socket_path

RESTART_SECONDS = 30.0
LOOK_SECONDS = 0.02


class CannotRestart(MountFailed):
    """There is nothing to restart, or nobody to do it."""

    code = "E_CANNOT_RESTART"


@click.command()
@click.argument("directory", type=click.Path())
def restart(directory: str) -> None:
    """Replace the server process of the mount on DIRECTORY, for example after an upgrade.

    Programs that use the mount notice only a pause of a fraction of a second.
    """
    runtime_dir = default_runtime_dir()
    mountpoint = real_path(directory)
    record = find_record(runtime_dir, mountpoint)
    if record is None:
        end_stuck(runtime_dir, mountpoint)
        raise CannotRestart(f"{directory} is not a lazyfs mount with a running server")
    answer = ask(socket_path(runtime_dir, record.mount_id), {"type": "restart"})
    if answer["type"] != "restarting":
        raise CannotRestart(
            f"restart {directory}: {answer.get('message')}",
            hint="`lazyfs status` says why; instead, unmount it and mount it again",
        )
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline:
        found = find_record(runtime_dir, mountpoint)
        if found is not None and found.pid != record.pid:
            try:
                ask(socket_path(runtime_dir, found.mount_id), {"type": "ping"})
                return
            except ServerSilent:
                pass  # it is about to listen
        time.sleep(LOOK_SECONDS)
    raise CannotRestart(
        f"restart {directory}: no new server has started within {RESTART_SECONDS:.0f} s"
    )
