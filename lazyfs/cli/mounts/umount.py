"""``lazyfs umount``: unmount, and wait until the server has ended."""

import click

from lazyfs.cli.options import default_runtime_dir
from lazyfs.cli.output import print_line
from lazyfs.mount.point import State, real_path, state_of, unmount
from lazyfs.service.identity import NotOurs, end_stuck, is_ours
from lazyfs.service.record import find_record, remove_stale, wait_server_end

WAIT_SECONDS = 30.0
LAZY_WAIT_SECONDS = 0.5


@click.command()
@click.argument("directory", type=click.Path())
@click.option(
    "-l",
    "--lazy",
    is_flag=True,
    help="Detach a mount even if it is in use; open files stay usable.",
)
def umount(directory: str, lazy: bool) -> None:
    """Unmount the lazyfs mount on DIRECTORY, and wait for its server to end."""
    mountpoint = real_path(directory)
    runtime_dir = default_runtime_dir()
    was_stuck = end_stuck(runtime_dir, mountpoint)
    state, entry = state_of(mountpoint)
    if entry is None and was_stuck:  # detached before, which was not enough
        remove_stale(runtime_dir, mountpoint)
        return
    if entry is None or not is_ours(runtime_dir, entry):
        what = "" if entry is None else f", but a mount of type {entry.filesystem_type}"
        raise NotOurs(
            f"{directory} is not a lazyfs mount{what}",
            hint="`lazyfs status` lists the lazyfs mounts",
        )
    record = find_record(runtime_dir, mountpoint)
    unmount(mountpoint, lazy=lazy or state is State.DEAD)
    remove_stale(runtime_dir, mountpoint)
    if record is None:
        return
    if not wait_server_end(record, LAZY_WAIT_SECONDS if lazy else WAIT_SECONDS):
        print_line(
            f"lazyfs: {directory} is unmounted here; its server, pid {record.pid}, keeps running "
            "while something still uses it",
            err=True,
        )
