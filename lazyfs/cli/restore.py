"""``lazyfs restore``: a snapshot goes on as a sandbox."""

import json
import os
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
    manifest_digest_option,
    permission_options,
    program_option,
    secrets_option,
    wait_option,
)
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.registry.access import AccessOptions
    from lazyfs.snapshot.bases import Bases
    from lazyfs.snapshot.grants import Grant
    from lazyfs.snapshot.restore import Restored, Tools
    from lazyfs.snapshot.review import Review


@click.command()
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option("--id", "sandbox_id", metavar="ID", help="What to call the sandbox.")
@click.option("--check-drift", is_flag=True, help="Say which tags name other images by now.")
@click.option("--dry-run", is_flag=True, help="Go as far as the gates, and say what is fetched.")
@click.option(
    "--template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What is to run now; images are the snapshot's all the same.",
)
@click.option(
    "--assume-image",
    "assumed",
    multiple=True,
    metavar="NAME=REF@sha256:…",
    help="The image of a container, for a snapshot without a manifest.",
)
@click.option(
    "--legacy-from-template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The same, all of them from a template that names them by digest.",
)
@permission_options
@manifest_digest_option
@program_option("The runtime's program.  [default: the one that made the snapshot]")
@click.option("--allow-partial-base", is_flag=True, help="Start although layers cannot be had.")
@click.option("--allow-spec-drift", is_flag=True, help="Start containers otherwise than before.")
@click.option("--ignore-cpu", is_flag=True, help="Try it although the processor lacks features.")
@click.option("--ignore-runtime", is_flag=True, help="Try it with another version of the runtime.")
@click.option("--keep-failed", is_flag=True, help="Keep a sandbox that does not become ready.")
@click.option("--verify", "rehash", is_flag=True, help="Hash again all that is here of the images.")
@click.option("--rebase", metavar="REF", help="Go on with another image: data snapshots only.")
@click.option("--pull", metavar="POLICY", hidden=True)
@secrets_option("Values that a --template names by secretKeyRef.")
@patience_option
@wait_option
@s3_endpoint_option
@cache_dir_option
@access_options
@json_option
def restore(
    snapshot: str,
    sandbox_id: str | None,
    check_drift: bool,
    dry_run: bool,
    template: Path | None,
    assumed: tuple[str, ...],
    legacy_from_template: Path | None,
    grants: "list[Grant]",
    policy_file: Path | None,
    manifest_digest: str | None,
    program: Path | None,
    allow_partial_base: bool,
    allow_spec_drift: bool,
    ignore_cpu: bool,
    ignore_runtime: bool,
    keep_failed: bool,
    rehash: bool,
    rebase: str | None,
    pull: str | None,
    secret_file: Path | None,
    patience: str,
    wait: float,
    s3_endpoint: str | None,
    cache_dir: Path,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """Have SNAPSHOT go on as the sandbox ID, on exactly the images that it was made on.

    SNAPSHOT is STORE/ID or STORE@POINTER.  Images are mounted by the recorded digests; what a tag
    means by now plays no part.  What the snapshot asks of this machine beyond images, files and
    memory is refused unless --allow, a restore policy or a template of your own allows it.
    """
    if pull is not None:
        raise UsageError(
            f"option --pull: got {pull}, expected none: a restore never resolves a tag",
            hint="lazyfs run --pull, for a fresh start",
        )
    if sandbox_id is None and not dry_run:
        raise UsageError("option --id: got nothing, expected what to call the sandbox")
    if template is not None and legacy_from_template is not None:
        raise UsageError("options --template, --legacy-from-template: got both, expected one")
    from lazyfs.cli.mounter import bases_for_sandboxes

    bases = bases_for_sandboxes(cache_dir, access, patience=patience, rehash=rehash)
    # The child that makes mounts has what was imported, and imports the rest beside us.
    click.get_current_context().with_resource(bases.ready())
    from lazyfs.snapshot.environment import load_secrets
    from lazyfs.snapshot.gates import Allowed
    from lazyfs.snapshot.restore import Order
    from lazyfs.snapshot.restore import restore as start
    from lazyfs.snapshot.restore_policy import load_policy
    from lazyfs.snapshot.review import Wanted, review
    from lazyfs.snapshot.stores import parse_snapshot_name
    from lazyfs.snapshot.template_reading import load_template

    file = legacy_from_template or template
    name = parse_snapshot_name(snapshot)
    wanted = Wanted(
        name.name,
        template=None if file is None else load_template(file),
        assumed=_parse_assumed(assumed),
        trusts_template=legacy_from_template is not None,
        runtime_path=program,
        allowed=Allowed(allow_spec_drift, ignore_cpu, ignore_runtime),
        rebase=rebase,
        grants=tuple(grants),
        policy=load_policy(policy_file, os.environ),
        manifest_digest=manifest_digest,
        sandbox_id=sandbox_id or "",
    )
    tools = tools_for_restores(name.store, s3_endpoint, bases)
    if dry_run:
        found = review(wanted, tools.snapshots, tools.bases, tools.choose, tools.host)
        _say_review(found, as_json=as_json)
        return
    assert sandbox_id is not None, "checked above"
    order = Order(
        wanted,
        sandbox_id,
        s3_endpoint=s3_endpoint,
        check_drift=check_drift,
        allow_partial=allow_partial_base,
        keep_failed=keep_failed,
        cache_dir=str(cache_dir),
        secrets=load_secrets(secret_file, os.environ),
        wait=wait,
    )
    _recover_first(sandbox_id, cache_dir, wait)
    say_restored(start(order, tools), as_json=as_json)


def tools_for_restores(store: str, s3_endpoint: str | None, bases: "Bases") -> "Tools":
    """Return what a restore works with."""
    from lazyfs.oci.platforms import platform_of_machine
    from lazyfs.snapshot.privileges import rootless
    from lazyfs.snapshot.restore import Tools
    from lazyfs.snapshot.runtimes import Chooser
    from lazyfs.snapshot.sandbox import Sandboxes
    from lazyfs.snapshot.snapshots import Snapshots
    from lazyfs.snapshot.stores import open_objects

    system = os.uname()
    return Tools(
        sandboxes=Sandboxes(default_state_dir() / "sandboxes"),
        snapshots=Snapshots(open_objects(store, s3_endpoint=s3_endpoint, must_exist=True)),
        bases=bases,
        choose=Chooser(default_state_dir()),
        host=platform_of_machine(system.sysname, system.machine),
        say=lambda line: print_line(f"lazyfs: {line}", err=True),
        rootless=rootless(),
    )


def _recover_first(sandbox_id: str, cache_dir: Path, wait: float) -> None:
    """Bring a sandbox of that id, whose command was killed, to its end."""
    from lazyfs.cli.recover import recover_one
    from lazyfs.snapshot.sandbox import Sandboxes, SandboxMissing

    try:
        sandbox = Sandboxes(default_state_dir() / "sandboxes").open(sandbox_id)
    except SandboxMissing:
        return
    recover_one(sandbox, cache_dir, wait=wait)


def _parse_assumed(words: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, reference = word.partition("=")
        if not equals or not name or not reference or name in found:
            raise UsageError(
                f"option --assume-image: got {word!r}, expected NAME=REPOSITORY@sha256:…, each "
                "name once"
            )
        found[name] = reference
    return found


def _say_review(found: "Review", *, as_json: bool) -> None:
    """Print what a restore would do.  Fields: docs/reference/json.md."""
    from lazyfs.cli.quantities import size_text

    if as_json:
        click.echo(json.dumps(_document_of_review(found), indent=2))
        return
    for notice in found.notices:
        print_line(f"lazyfs: {notice}", err=True)
    for image in found.manifest.images:
        print_line(f"{image.name}: {image.original_ref} → {image.resolved_ref}")
    print_line(f"files: {size_text(found.file_size)} would be downloaded")
    print_line(f"images: at most {size_text(found.image_size)}, as they are read")


def _document_of_review(found: "Review") -> dict[str, Any]:
    return {
        "id": found.loaded.id,
        "manifestDigest": found.loaded.digest or None,
        "fileSize": found.file_size,
        "imageSize": found.image_size,
        "runtime": str(found.facts.path),
        "notices": list(found.notices),
        "granted": granted_documents(found),
        "images": _images(found.manifest.images, {}),
    }


def granted_documents(found: "Review") -> list[dict[str, Any]]:
    """Return what a snapshot asked for and was allowed, and on whose word, as JSON's types."""
    from lazyfs.snapshot.grants import document_of_request

    return [document_of_request(each.request) | {"by": each.by} for each in found.granted]


def _images(images: Any, drift: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": image.name,
            "originalRef": image.original_ref,
            "resolvedRef": image.resolved_ref,
            "manifestDigest": image.manifest_digest,
            "source": image.source,
            "tagNow": drift.get(image.name),
        }
        for image in images
    ]


def say_restored(restored: "Restored", *, as_json: bool) -> None:
    """Print a sandbox that was restored.  Fields: docs/reference/json.md."""
    if as_json:
        click.echo(json.dumps(document_of_restored(restored), indent=2))
        return
    for image in restored.images:
        print_line(
            f"lazyfs: {image.name}: {image.original_ref} → {image.resolved_ref}, as recorded",
            err=True,
        )
    print_line(restored.sandbox.id)


def document_of_restored(restored: "Restored") -> dict[str, Any]:
    """Return the JSON form of a sandbox that was restored."""
    snapshot = restored.review.manifest.snapshot
    return {
        "sandbox": restored.sandbox.id,
        "snapshot": restored.review.loaded.id,
        "generation": snapshot.generation,
        "notices": list(restored.notices),
        "granted": granted_documents(restored.review),
        "images": _images(restored.images, restored.drift),
    }
