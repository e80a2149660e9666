"""``lazyfs delete``: remove a sandbox and everything that belongs to it."""

from pathlib import Path

import click

from lazyfs.cli.options import cache_dir_option, default_state_dir
from lazyfs.cli.sandbox_options import wait_option


@click.command()
@click.argument("sandbox_ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--force", is_flag=True, help="Kill it if it runs; abandon an unfinished snapshot of it."
)
@wait_option
@cache_dir_option
def delete(sandbox_ids: tuple[str, ...], force: bool, wait: float, cache_dir: Path) -> None:
    """Remove the sandbox ID: its processes, mounts, volumes and records.

    Without --force a running sandbox is refused, and so is one whose snapshot is unfinished.
    Finished snapshots of it stay where they are.
    """
    from lazyfs.cli.sandboxes.sandbox_tools import tools_for_checkpoints
    from lazyfs.sandbox.sandbox import Sandboxes
    from lazyfs.snapshot.recover import delete as work

    sandboxes = Sandboxes(default_state_dir() / "sandboxes")
    tools = tools_for_checkpoints(cache_dir)
    for sandbox in [sandboxes.open(each) for each in sandbox_ids]:
        with sandbox.lock(wait):
            work(sandbox, tools, force=force)
