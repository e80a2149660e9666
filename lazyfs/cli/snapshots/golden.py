"""``lazyfs golden``: snapshots that many sandboxes start from."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.options import (
    cache_dir_option,
    default_state_dir,
    json_option,
    patience_option,
    s3_endpoint_option,
)
from lazyfs.cli.output import print_line
from lazyfs.cli.sandbox_options import (
    locked_option,
    manifest_digest_option,
    permission_options,
    program_option,
    secrets_option,
    template_option,
)
from lazyfs.cli.trust_options import trust_options
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.documents.template import SecretKey, Template
    from lazyfs.registry.config.access import AccessOptions
    from lazyfs.sandbox.sandbox import Sandbox
    from lazyfs.snapshot.golden import Generation, State, Tools
    from lazyfs.snapshot.grants import Grant
    from lazyfs.snapshot.restore import Restored

CLONES_LIMIT = 1000
FOLDER = "goldens"
WARM_SECONDS = 20.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def golden() -> None:
    """Build snapshots to start sandboxes from, list their generations, clone them.

    NAME is the name in a template.  STORE@golden-NAME is its newest generation; `lazyfs restore`
    takes it like any other snapshot.
    """


@golden.command("build")
@click.argument("template", type=click.Path(path_type=Path, dir_okay=False), metavar="TEMPLATE")
@click.option(
    "--to", "store", metavar="STORE", help="The store to save it in.  [default: the template's]"
)
@locked_option
@click.option(
    "--pull",
    type=click.Choice(["always", "missing", "never"]),
    default="always",
    show_default=True,
    help="When to ask the registry which digest a tag points to.",
)
@click.option(
    "--warm",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to let it run before it is saved.  "
    f"[default: {WARM_SECONDS:.0f}, or 0 if all containers have readyz]",
)
@click.option(
    "--attempts",
    type=click.IntRange(1, 5),
    default=5,
    show_default=True,
    help="How often to try.",
)
@program_option("The runsc program to use.")
@secrets_option(
    "Values for the template's secretKeyRef entries; they end up in the snapshot's memory."
)
@patience_option
@s3_endpoint_option
@cache_dir_option
@access_options
@trust_options
@json_option
def build(
    template: Path,
    store: str | None,
    locked: Path | None,
    pull: str,
    warm: float | None,
    attempts: int,
    program: Path | None,
    secret_file: Path | None,
    patience: str,
    s3_endpoint: str | None,
    cache_dir: Path,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """Build a new generation from TEMPLATE.

    Runs TEMPLATE from scratch, saves it in STORE, and moves STORE@golden-NAME to the snapshot.
    Tags are resolved again unless they are locked, and the result is printed.  Earlier generations
    stay, and so does everything that was started from them.
    """
    from lazyfs.cli.snapshots.checkpoint import check_writable, say_made
    from lazyfs.documents.lockfile import apply_lock, load_lock
    from lazyfs.documents.template_reading import load_template
    from lazyfs.sandbox.specs.environment import load_secrets
    from lazyfs.snapshot.golden import Order
    from lazyfs.snapshot.golden import build as make

    wanted = load_template(template)
    if locked is not None:
        wanted = apply_lock(wanted, load_lock(locked))
    to = store or wanted.snapshots_config.location
    if to is None:
        raise UsageError(
            "no store to save it in: the template has no snapshotsConfig.location",
            hint="--to STORE",
        )
    check_writable(to)
    if warm is None:
        is_told = all(container.readyz is not None for container in wanted.containers)
        warm = 0.0 if is_told else WARM_SECONDS
    secrets = load_secrets(secret_file, os.environ)
    order = Order(wanted, to, s3_endpoint=s3_endpoint, warm_seconds=warm, attempts=attempts)
    tools = _tools_for_builds(cache_dir, access, program, pull, secrets, patience)
    say_made(make(order, tools), as_json=as_json)


def _tools_for_builds(
    cache_dir: Path,
    access: "AccessOptions",
    program: Path | None,
    pull: str,
    secrets: "Mapping[SecretKey, str]",
    patience: str,
) -> "Tools":
    """Return what a build works with; it starts sandboxes as ``lazyfs run`` does."""
    from lazyfs.cli.sandboxes.run import tools_for_runs
    from lazyfs.cli.sandboxes.sandbox_tools import tools_for_checkpoints
    from lazyfs.sandbox.run import Order, run
    from lazyfs.sandbox.sandbox import SandboxMissing
    from lazyfs.snapshot.golden import State, Tools
    from lazyfs.snapshot.recover import delete

    runs = tools_for_runs(cache_dir, access, (), patience)
    checkpoints = tools_for_checkpoints(cache_dir)

    def start(
        template: "Template", sandbox_id: str, entered: "Callable[[State], None]"
    ) -> "Sandbox":
        entered(State.BOOTING)
        order = Order(
            template,
            sandbox_id,
            runtime="runsc",
            program=program,
            pull=pull,
            secrets=secrets,
            cache_dir=str(cache_dir),
        )
        return run(order, runs).sandbox

    def remove(sandbox_id: str) -> None:
        try:
            sandbox = runs.sandboxes.open(sandbox_id)
            with sandbox.lock():
                delete(sandbox, checkpoints, force=True)
        except SandboxMissing:
            pass  # a run that fails leaves nothing

    return Tools(
        start=start,
        remove=remove,
        checkpoint=checkpoints,
        folder=default_state_dir() / FOLDER,
        say=lambda line: print_line(f"lazyfs: {line}", err=True),
        sleep=time.sleep,
    )


@golden.command("status")
@click.argument("name")
@json_option
def status(name: str, as_json: bool) -> None:
    """Show the state of the newest build of NAME on this machine."""
    import msgspec

    from lazyfs.snapshot.golden import load_status

    found = load_status(default_state_dir() / FOLDER, name)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    print_line(f"{found.name}: {found.state}, attempt {found.attempts}, {found.updated_at}")
    if found.snapshot is not None:
        print_line(f"snapshot: {found.store}/{found.snapshot}")
    if found.error is not None:
        print_line(f"error: {found.error.code}: {found.error.message}")


@golden.command("list")
@click.argument("store")
@click.argument("name", required=False)
@s3_endpoint_option
@json_option
def list_(store: str, name: str | None, s3_endpoint: str | None, as_json: bool) -> None:
    """List the generations of all golden snapshots in STORE, or of NAME."""
    from lazyfs.snapshot.golden import generations
    from lazyfs.snapshot.stores.snapshots import Snapshots
    from lazyfs.snapshot.stores.stores import open_objects

    objects = open_objects(store, s3_endpoint=s3_endpoint, must_exist=True)
    found = generations(Snapshots(objects), name)
    if as_json:
        document = {"store": objects.url, "generations": [_document(each) for each in found]}
        click.echo(json.dumps(document, indent=2))
        return
    for each in found:
        print_line(f"{each.name}  {each.number}  {each.id}  {each.created_at}")
        for image in each.images:
            line = f"    {image.name}: {image.original_ref} → {image.manifest_digest}"
            print_line(line)


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
    help="Name them PREFIX-1, PREFIX-2, …  [default: the pointer's or snapshot's name]",
)
@template_option
@permission_options
@manifest_digest_option
@program_option("The runtime's program.  [default: the one that made the snapshot]")
@patience_option
@s3_endpoint_option
@cache_dir_option
@access_options
@trust_options
@json_option
def clone(
    snapshot: str,
    count: int,
    prefix: str | None,
    template: Path | None,
    grants: "list[Grant]",
    policy_file: Path | None,
    manifest_digest: str | None,
    program: Path | None,
    patience: str,
    s3_endpoint: str | None,
    cache_dir: Path,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """Start many sandboxes from SNAPSHOT.

    SNAPSHOT is STORE@golden-NAME, STORE@POINTER or STORE/ID.  Its files are downloaded once.  All
    the sandboxes have the same memory, including random numbers, ids and secrets: their programs
    must renew what has to differ.  What SNAPSHOT may use of this machine is decided as by
    `lazyfs restore`.
    """
    from lazyfs.cli.sandboxes.mounter import bases_for_sandboxes

    bases = bases_for_sandboxes(cache_dir, access, patience=patience)
    # The child that makes mounts has what was imported, and imports the rest beside us.
    click.get_current_context().with_resource(bases.ready())
    from lazyfs.cli.snapshots.restore import document_of_restored, tools_for_restores
    from lazyfs.documents.template_reading import load_template
    from lazyfs.snapshot.clone import clone as start
    from lazyfs.snapshot.restore import Order
    from lazyfs.snapshot.restore_policy import load_policy
    from lazyfs.snapshot.review import Wanted
    from lazyfs.snapshot.stores.stores import parse_snapshot_name

    name = parse_snapshot_name(snapshot)
    stem = prefix or name.name.lstrip("@").lower().replace(".", "-").replace("_", "-")
    restored: list[Restored] = []

    def done(each: "Restored") -> None:
        restored.append(each)
        if not as_json:
            print_line(each.sandbox.id)

    tools = tools_for_restores(name.store, s3_endpoint, bases)
    order = Order(
        Wanted(
            name.name,
            template=None if template is None else load_template(template),
            runtime_path=program,
            grants=tuple(grants),
            policy=load_policy(policy_file, os.environ),
            manifest_digest=manifest_digest,
        ),
        stem,
        s3_endpoint=s3_endpoint,
        cache_dir=str(cache_dir),
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
        print_line(f"lazyfs: {sandbox}: {error.message}", err=True)
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
