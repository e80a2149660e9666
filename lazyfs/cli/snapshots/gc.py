"""``lazyfs gc``: remove what crashed commands and lost machines left in a store of snapshots."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.options import default_state_dir, json_option, s3_endpoint_option
from lazyfs.cli.output import print_line

if TYPE_CHECKING:
    from lazyfs.snapshot.stores.collect import Collected


@click.command()
@click.argument("store")
@click.option(
    "--grace",
    metavar="TIME",
    default="24h",
    show_default=True,
    help="Remove only what has not been written to for this time: 90s, 30m, 24h, 7d.",
)
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Only print what would be removed.")
@s3_endpoint_option
@json_option
def gc(
    store: str,
    grace: str,
    is_dry_run: bool,
    s3_endpoint: str | None,
    as_json: bool,
) -> None:
    """Remove unfinished snapshots of STORE, their embedded images, and interrupted uploads.

    Finished snapshots stay, and so do those that a sandbox of this machine has yet to finish.  For
    other machines, age is the only sign that nobody is working on a snapshot: choose --grace longer
    than any checkpoint takes.
    """
    from lazyfs.cli.quantities import parse_duration, size_text
    from lazyfs.snapshot.stores.collect import collect
    from lazyfs.snapshot.stores.stores import open_objects

    seconds = parse_duration(grace)
    objects = open_objects(store, s3_endpoint=s3_endpoint, must_exist=True)
    done = collect(
        objects,
        now=time.time(),
        grace=seconds,
        claimed=claimed_ids(default_state_dir()),
        is_dry_run=is_dry_run,
    )
    if as_json:
        click.echo(json.dumps(_document(objects.url, done, is_dry_run), indent=2))
        return
    for state in done.partials:
        print_line(state.id)
    verb = "would be removed" if is_dry_run else "removed"
    uploads = "" if done.uploads is None else f", {done.uploads} uploads given up"
    print_line(
        f"lazyfs: {len(done.partials)} unfinished snapshots, {len(done.blobs)} blobs, "
        f"{size_text(done.size)} {verb}{uploads}",
        err=True,
    )
    for state, reason in done.spared:
        print_line(f"lazyfs: {state.id} is unfinished and stays: {reason}", err=True)


def claimed_ids(state_dir: Path) -> set[str]:
    """Return the ids of the snapshots that sandboxes of this machine are still to finish."""
    from lazyfs.documents.journal import State
    from lazyfs.sandbox.sandbox import Sandboxes

    over = {State.STOPPED, State.FAILED}
    claimed = set()
    for sandbox in Sandboxes(state_dir / "sandboxes").all():
        journal = sandbox.journal()
        if journal is not None and journal.snapshot_id is not None and journal.state not in over:
            claimed.add(journal.snapshot_id)
    return claimed


def _document(store: str, done: "Collected", is_dry_run: bool) -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "store": store,
        "dryRun": is_dry_run,
        "snapshots": [{"id": each.id, "size": each.size} for each in done.partials],
        "blobs": [{"key": each.key, "size": each.size} for each in done.blobs],
        "uploads": done.uploads,
        "spared": [{"id": state.id, "reason": reason} for state, reason in done.spared],
        "freedSize": done.size,
    }
