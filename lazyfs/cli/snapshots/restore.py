"""``lazyfs restore``: resume a snapshot as a new sandbox."""

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
    template_option,
    wait_option,
)
from lazyfs.cli.trust_options import trust_options
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.registry.config.access import AccessOptions
    from lazyfs.sandbox.bases import Bases
    from lazyfs.snapshot.grants import Grant
    from lazyfs.snapshot.restore import Restored, Tools
    from lazyfs.snapshot.review import Review


@click.command()
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option("--id", "sandbox_id", metavar="ID", help="Name of the new sandbox.")
@click.option("--check-drift", is_flag=True, help="Report tags that point to other images by now.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only check whether it can be restored, and print what would be fetched.",
)
@template_option
@click.option(
    "--assume-image",
    "assumed",
    multiple=True,
    metavar="NAME=REF@sha256:…",
    help="The image of a container, for a snapshot that has no manifest.",
)
@click.option(
    "--legacy-from-template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The same for all containers, from a template that names images by digest.",
)
@permission_options
@manifest_digest_option
@program_option("The runsc program to use.  [default: the one that made the snapshot]")
@click.option("--allow-partial-base", is_flag=True, help="Start even if layers cannot be fetched.")
@click.option(
    "--allow-spec-drift", is_flag=True, help="Start even if containers would be set up differently."
)
@click.option("--ignore-cpu", is_flag=True, help="Try it even if the processor lacks features.")
@click.option(
    "--ignore-runtime", is_flag=True, help="Try it even with another version of the runtime."
)
@click.option("--keep-failed", is_flag=True, help="Keep the sandbox if it does not become ready.")
@click.option(
    "--verify", "rehash", is_flag=True, help="Hash all cached content of the images again first."
)
@click.option("--rebase", metavar="REF", help="Resume on another image; for data snapshots only.")
@click.option("--pull", metavar="POLICY", hidden=True)
@secrets_option("Values that a --template names by secretKeyRef.")
@patience_option
@wait_option
@s3_endpoint_option
@cache_dir_option
@access_options
@trust_options
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
    """Resume SNAPSHOT as a new sandbox, on exactly the images that it was made on.

    SNAPSHOT is STORE/ID or STORE@POINTER.  Images are mounted by the recorded digests, whatever
    their tags point to by now.  Anything that the snapshot asks of this machine beyond images,
    files and memory is refused unless --allow, a restore policy or your own template allows it.
    """
    if pull is not None:
        raise UsageError(
            f"option --pull {pull} is not possible: a restore never resolves a tag",
            hint="for a fresh start: lazyfs run --pull",
        )
    if sandbox_id is None and not dry_run:
        raise UsageError("option --id is missing: the new sandbox needs a name")
    if template is not None and legacy_from_template is not None:
        raise UsageError("--template and --legacy-from-template cannot be combined")
    from lazyfs.cli.sandboxes.mounter import bases_for_sandboxes

    bases = bases_for_sandboxes(cache_dir, access, patience=patience, rehash=rehash)
    # The child that makes mounts has what was imported, and imports the rest beside us.
    click.get_current_context().with_resource(bases.ready())
    from lazyfs.documents.template_reading import load_template
    from lazyfs.sandbox.specs.environment import load_secrets
    from lazyfs.snapshot.gates import Allowed
    from lazyfs.snapshot.restore import Order
    from lazyfs.snapshot.restore import restore as start
    from lazyfs.snapshot.restore_policy import load_policy
    from lazyfs.snapshot.review import Wanted, review
    from lazyfs.snapshot.stores.stores import parse_snapshot_name

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
    from lazyfs.sandbox.privileges import rootless
    from lazyfs.sandbox.runtimes.runtimes import Chooser
    from lazyfs.sandbox.sandbox import Sandboxes
    from lazyfs.snapshot.restore import Tools
    from lazyfs.snapshot.stores.snapshots import Snapshots
    from lazyfs.snapshot.stores.stores import open_objects

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
    """Recover the sandbox of that id, if its command was killed."""
    from lazyfs.cli.sandboxes.recover import recover_one
    from lazyfs.sandbox.sandbox import Sandboxes, SandboxMissing

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
                f"option --assume-image: {word!r} is not NAME=REPOSITORY@sha256:…, or NAME was "
                "given twice"
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
