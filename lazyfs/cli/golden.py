"""``lazyfs golden``: snapshots that many sandboxes start from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.options import (
    cache_dir_option,
    default_state_dir,
    json_option,
    s3_endpoint_option,
)

if TYPE_CHECKING:
    from lazyfs.registry.access import AccessOptions
    from lazyfs.snapshot.golden import Generation
    from lazyfs.snapshot.restore import Restored

CLONES_LIMIT = 1000
FOLDER = "goldens"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def golden() -> None:
    """Build snapshots to start sandboxes from, list their generations, clone them.

    NAME is a template's.  STORE@golden-NAME is its newest generation: `lazyfs restore` takes it as
    any other snapshot.
    """


@golden.command("status")
@click.argument("name")
@json_option
def status(name: str, as_json: bool) -> None:
    """Show how the newest build of NAME on this machine fares."""
    import msgspec

    from lazyfs.snapshot.golden import load_status

    found = load_status(default_state_dir() / FOLDER, name)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    click.echo(f"{found.name}: {found.state}, attempt {found.attempts}, {found.updated_at}")
    if found.snapshot is not None:
        click.echo(f"snapshot: {found.store}/{found.snapshot}")
    if found.error is not None:
        click.echo(f"error: {found.error.code}: {found.error.message}")


@golden.command("list")
@click.argument("store")
@click.argument("name", required=False)
@s3_endpoint_option
@json_option
def list_(store: str, name: str | None, s3_endpoint: str | None, as_json: bool) -> None:
    """List the generations of all golden snapshots in STORE, or of NAME."""
    from lazyfs.snapshot.golden import generations
    from lazyfs.snapshot.snapshots import Snapshots
    from lazyfs.snapshot.stores import open_objects

    objects = open_objects(store, s3_endpoint=s3_endpoint, must_exist=True)
    found = generations(Snapshots(objects), name)
    if as_json:
        document = {"store": objects.url, "generations": [_document(each) for each in found]}
        click.echo(json.dumps(document, indent=2))
        return
    for each in found:
        click.echo(f"{each.name}  {each.number}  {each.id}  {each.created_at}")
        for image in each.images:
            click.echo(f"    {image.name}: {image.original_ref} → {image.manifest_digest}")


@golden.command("clone")
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option(
    "--count",
    type=click.IntRange(1, CLONES_LIMIT),
    default=1,
    show_default=True,
    help="How many sandboxes to start.",
)
@click.option(
    "--id",
    "prefix",
    metavar="PREFIX",
    help="They are called PREFIX-1, PREFIX-2, …  [default: the pointer's or snapshot's name]",
)
@s3_endpoint_option
@cache_dir_option
@access_options
@json_option
def clone(
    snapshot: str,
    count: int,
    prefix: str | None,
    s3_endpoint: str | None,
    cache_dir: Path,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """Start many sandboxes from SNAPSHOT: STORE@golden-NAME, STORE@POINTER or STORE/ID.

    Its files are downloaded once.  What the sandboxes have in memory is the same in all of them,
    random numbers, ids and secrets included: they must renew what has to differ.
    """
    from lazyfs.cli.restore import document_of_restored, tools_for_restores
    from lazyfs.snapshot.clone import clone as start
    from lazyfs.snapshot.restore import Order
    from lazyfs.snapshot.review import Wanted
    from lazyfs.snapshot.stores import parse_snapshot_name

    name = parse_snapshot_name(snapshot)
    stem = prefix or name.name.lstrip("@").lower().replace(".", "-").replace("_", "-")
    restored: list[Restored] = []

    def done(each: "Restored") -> None:
        restored.append(each)
        if not as_json:
            click.echo(each.sandbox.id)

    tools = tools_for_restores(name.store, s3_endpoint, cache_dir, access)
    order = Order(
        Wanted(name.name), stem, name.store, s3_endpoint=s3_endpoint, cache_dir=str(cache_dir)
    )
    failed = start(order, [f"{stem}-{number}" for number in range(1, count + 1)], tools, done)
    if as_json:
        restored.sort(key=lambda each: each.sandbox.id)
        document = {
            "sandboxes": [document_of_restored(each) for each in restored],
            "failed": [
                {"sandbox": sandbox, "code": error.code, "message": error.message}
                for sandbox, error in failed
            ],
        }
        click.echo(json.dumps(document, indent=2))
    for sandbox, error in failed:
        click.echo(f"lazyfs: {sandbox}: {error.message}", err=True)
    if failed:
        raise failed[0][1]


def _document(generation: "Generation") -> dict[str, Any]:
    return {
        "id": generation.id,
        "name": generation.name,
        "number": generation.number,
        "createdAt": generation.created_at,
        "previous": generation.previous,
        "images": [
            {
                "name": image.name,
                "originalRef": image.original_ref,
                "resolvedRef": image.resolved_ref,
                "resolvedAt": image.resolved_at,
                "source": image.source,
            }
            for image in generation.images
        ],
    }
