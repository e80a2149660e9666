"""``lazyfs checkpoint``: a running sandbox becomes a snapshot."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lazyfs.cli.access import OPTIONS, access_options
from lazyfs.cli.options import (
    cache_dir_option,
    default_state_dir,
    json_option,
    s3_endpoint_option,
)
from lazyfs.cli.output import print_line
from lazyfs.cli.sandboxes.sandbox_tools import tools_for_checkpoints
from lazyfs.errors import UsageError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

if TYPE_CHECKING:
    from lazyfs.registry.config.access import AccessOptions
    from lazyfs.sandbox.sandbox import Sandbox
    from lazyfs.snapshot.checkpoint import Order, Tools
    from lazyfs.snapshot.publish import Made


def embed_options(function: Decorated) -> Decorated:
    """Add the options for reaching registries: parameters of the names that they have.

    They are interpreted for --embed-base only: without it a checkpoint contacts no registry.
    """
    decorated: Any = function
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


@click.command()
@click.argument("sandbox_id", metavar="ID")
@click.option(
    "--to", "store", metavar="STORE", help="The store to save it in.  [default: the template's]"
)
@click.option("--name", "pointer", metavar="POINTER", help="Move STORE@POINTER to the snapshot.")
@click.option("--leave-running", is_flag=True, help="Resume the sandbox after it was saved.")
@click.option(
    "--compress",
    type=click.Choice(["zstd", "auto", "none"]),
    default="zstd",
    show_default=True,
    help="How files are stored; auto compresses a file if that makes it smaller.",
)
@click.option(
    "--embed-base", is_flag=True, help="Store the images in STORE too. This contacts registries."
)
@click.option(
    "--allow-dead-mount", is_flag=True, help="Trust the record for a mount whose server died."
)
@click.option("--adopt", is_flag=True, help="Trust the mounts if the sandbox's record is gone.")
@click.option(
    "--continue", "goes_on", is_flag=True, help="Finish a checkpoint that was interrupted."
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="How long to wait for another command that is using the sandbox.",
)
@s3_endpoint_option
@cache_dir_option
@embed_options
@json_option
def checkpoint(
    sandbox_id: str,
    store: str | None,
    pointer: str | None,
    leave_running: bool,
    compress: str,
    embed_base: bool,
    allow_dead_mount: bool,
    adopt: bool,
    goes_on: bool,
    wait: float,
    s3_endpoint: str | None,
    cache_dir: Path,
    as_json: bool,
    **access: Any,
) -> None:
    """Save the running sandbox ID as a snapshot in STORE, and end it.

    STORE is /path, file:///path or s3://bucket/prefix.  The snapshot records the digests that the
    sandbox's live mounts state; no registry is contacted.  Prints the name to restore it by.
    """
    from lazyfs.sandbox.sandbox import Sandboxes
    from lazyfs.snapshot.checkpoint import INTERRUPTED, Order, resume
    from lazyfs.snapshot.checkpoint import checkpoint as save

    sandbox = Sandboxes(default_state_dir() / "sandboxes").open(sandbox_id)
    tools = tools_for_checkpoints(cache_dir)
    made: Made | None = None
    journal = sandbox.journal()
    if goes_on or (journal is not None and journal.state in INTERRUPTED):
        with sandbox.lock(wait):
            made = resume(sandbox, tools, store=store, pointer=pointer)
        if made is not None and embed_base and not _is_embedded(made):
            tools.say(f"{sandbox_id}: finished as it was started, without --embed-base")
        if made is None and goes_on:
            raise UsageError(
                f"sandbox {sandbox_id} is running: there is no interrupted checkpoint to finish",
                hint=f"lazyfs checkpoint {sandbox_id} --to STORE",
            )
    if made is None:
        order = Order(
            store=store or _location_of(sandbox),
            s3_endpoint=s3_endpoint,
            pointer=pointer,
            compress=compress,
            leave_running=leave_running,
            allow_dead_mount=allow_dead_mount,
            adopt=adopt,
        )
        check_writable(order.store)
        if embed_base:
            order = _embed(sandbox, order, tools, cache_dir, access_options(_same)(**access))
        made = save(sandbox, order, tools, wait=wait)
    say_made(made, as_json=as_json)


def check_writable(store: str) -> None:
    """Raise StoreFailed for a directory that cannot be written, before the sandbox ends."""
    from lazyfs.documents.errors import StoreFailed
    from lazyfs.snapshot.stores.directory_store import DirectoryStore
    from lazyfs.snapshot.stores.stores import open_objects

    objects = open_objects(store)
    if not isinstance(objects, DirectoryStore):
        return
    path = next(path for path in (objects.path, *objects.path.parents) if os.path.lexists(path))
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise StoreFailed(
            f"store {objects.path}: {path} is not a directory that this user can write to"
        )


def _location_of(sandbox: "Sandbox") -> str:
    """Return where the sandbox's template wants its snapshots."""
    from lazyfs.documents.own import read_own
    from lazyfs.snapshot.evidence import TEMPLATE_FILE_LIMIT

    try:
        document = json.loads(read_own(sandbox.template_path, TEMPLATE_FILE_LIMIT))
    except (OSError, ValueError, RecursionError):
        document = None
    config = document.get("snapshotsConfig") if isinstance(document, dict) else None
    location = config.get("location") if isinstance(config, dict) else None
    if not isinstance(location, str):
        raise UsageError(
            "no store to save it in: the template has no snapshotsConfig.location",
            hint="--to STORE",
        )
    return location


def _same(access: "AccessOptions") -> "AccessOptions":
    return access


def _embed(
    sandbox: "Sandbox", order: "Order", tools: "Tools", cache_dir: Path, access: "AccessOptions"
) -> "Order":
    """Keep the images that the record names beside the snapshot that is to be."""
    from msgspec.structs import replace

    from lazyfs.documents.errors import RecordMissing
    from lazyfs.documents.record import load_record
    from lazyfs.service.embed import embed_images
    from lazyfs.snapshot.stores.snapshots import Snapshots, new_id

    record = load_record(sandbox.record_path)
    if record is None:
        raise RecordMissing(f"sandbox {sandbox.id} has no base record, so its images are not known")
    snapshot_id = new_id()
    embedded = embed_images(
        [each.image for each in record.images],
        Snapshots(tools.objects(order.store, order.s3_endpoint)),
        snapshot_id,
        cache_dir=cache_dir,
        access=access,
    )
    return replace(order, snapshot_id=snapshot_id, embedded=embedded)


def _is_embedded(made: "Made") -> bool:
    return all(image.embedded is True for image in made.manifest.images)


def say_made(made: "Made", *, as_json: bool) -> None:
    """Print a snapshot that was made.  Fields: docs/reference/json.md."""
    if as_json:
        click.echo(json.dumps(document_of_made(made), indent=2))
        return
    for image in made.manifest.images:
        line = f"lazyfs: {image.name}: {image.original_ref} → {image.resolved_ref}"
        print_line(line, err=True)
    print_line(f"lazyfs: manifest {made.manifest_digest}", err=True)
    print_line(made.location)


def document_of_made(made: "Made") -> dict[str, Any]:
    """Return the JSON form of a snapshot that was made."""
    files = made.manifest.files
    return {
        "id": made.id,
        "store": made.store,
        "pointer": made.pointer,
        "manifestDigest": made.manifest_digest,
        "generation": made.manifest.snapshot.generation,
        "rawSize": sum(file.raw_size for file in files),
        "storedSize": sum(file.stored_size for file in files),
        "state": str(made.state),
        "images": [
            {
                "name": image.name,
                "originalRef": image.original_ref,
                "resolvedRef": image.resolved_ref,
                "source": image.source,
            }
            for image in made.manifest.images
        ],
    }
