"""``lazyfs snapshot``: list, check, compare, copy and remove the snapshots of a store."""

import json
from typing import Any

import click

from lazyfs.cli.options import json_option, s3_endpoint_option
from lazyfs.cli.output import print_line
from lazyfs.cli.sandbox_options import manifest_digest_option
from lazyfs.cli.snapshots.snapshot_verify import verify
from lazyfs.cli.snapshots.snapshot_views import asked, list_snapshots, load, request_line, show


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def snapshot() -> None:
    """List, show, check, compare, copy or remove snapshots.

    STORE is /path, file:///path or s3://bucket/prefix; SNAPSHOT is STORE/ID or STORE@POINTER.
    """


snapshot.add_command(list_snapshots)
snapshot.add_command(show)
snapshot.add_command(verify)


@snapshot.command("diff")
@click.argument("was", metavar="SNAPSHOT")
@click.argument("now", metavar="SNAPSHOT")
@s3_endpoint_option
@json_option
def diff(was: str, now: str, s3_endpoint: str | None, as_json: bool) -> None:
    """Show what differs between the manifests of two snapshots: images, files, runtime.

    Images and files are matched by name.
    """
    from lazyfs.documents.manifest_json import diff_manifests

    _, before = load(was, s3_endpoint)
    _, after = load(now, s3_endpoint)
    differences = diff_manifests(before.manifest, after.manifest)
    if as_json:
        document = {
            "was": {"id": before.id, "manifestDigest": before.digest},
            "now": {"id": after.id, "manifestDigest": after.digest},
            "differences": [
                {"path": each.path, "was": each.was, "now": each.now} for each in differences
            ],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for each in differences:
        print_line(str(each))


@snapshot.command("rm")
@click.argument("names", metavar="SNAPSHOT...", nargs=-1, required=True)
@s3_endpoint_option
@json_option
def remove(names: tuple[str, ...], s3_endpoint: str | None, as_json: bool) -> None:
    """Remove snapshots, finished or not; for STORE@POINTER, only the pointer.

    A snapshot that a pointer names cannot be removed: move or remove the pointer first.  The next
    `lazyfs gc` removes images that were embedded for it.
    """
    from lazyfs.documents.errors import ManifestMissing
    from lazyfs.snapshot.stores.snapshots import Snapshots
    from lazyfs.snapshot.stores.stores import open_objects, parse_snapshot_name

    snapshots, pointers = [], []
    for name in [parse_snapshot_name(text) for text in names]:
        kept = Snapshots(open_objects(name.store, s3_endpoint=s3_endpoint, must_exist=True))
        if name.name.startswith("@"):
            if kept.pointer(name.name[1:]) is None:
                raise ManifestMissing(f"store {name.store} has no pointer {name.name[1:]}")
            kept.remove_pointer(name.name[1:])
            pointers.append(str(name))
        elif kept.remove(name.name):
            snapshots.append(str(name))
        else:
            raise ManifestMissing(f"store {name.store} has no snapshot {name.name}")
    if as_json:
        click.echo(json.dumps({"snapshots": snapshots, "pointers": pointers}, indent=2))


@snapshot.command("copy")
@click.argument("source", metavar="SNAPSHOT")
@click.argument("target", metavar="STORE")
@click.option("--name", "pointer", metavar="POINTER", help="Move this pointer of STORE to it.")
@manifest_digest_option
@s3_endpoint_option
@json_option
def copy(
    source: str,
    target: str,
    pointer: str | None,
    manifest_digest: str | None,
    s3_endpoint: str | None,
    as_json: bool,
) -> None:
    """Copy a snapshot to another store, verified, with the images that were embedded for it.

    The manifest stays the same byte for byte, and is written last: an interrupted copy is not a
    snapshot, and copying again resumes it.  Prints what the snapshot would ask of a machine that
    restores it; copying does none of that.
    """
    from lazyfs.snapshot.stores.pointers import Pointer
    from lazyfs.snapshot.stores.snapshots import Snapshots
    from lazyfs.snapshot.stores.stores import open_objects
    from lazyfs.snapshot.stores.transfer import copy_snapshot

    kept, loaded = load(source, s3_endpoint, manifest_digest)
    requests = asked(loaded.manifest)
    for each in requests if not as_json else ():
        line = f"lazyfs: {loaded.id}: a restore would ask for {request_line(each)}"
        print_line(line, err=True)
    other = Snapshots(open_objects(target, s3_endpoint=s3_endpoint))
    before = other.pointer(pointer) if pointer is not None else None
    is_new = copy_snapshot(loaded, kept, other)
    if pointer is not None:
        other.move_pointer(pointer, Pointer(loaded.id, loaded.digest), before)
    if as_json:
        document: dict[str, Any] = {
            "id": loaded.id,
            "manifestDigest": loaded.digest,
            "store": other.objects.url,
            "pointer": pointer,
            "copied": is_new,
            "requests": requests,
        }
        click.echo(json.dumps(document, indent=2))
        return
    print_line(f"{other.objects.url}/{loaded.id}")
