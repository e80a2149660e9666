"""``lazyfs snapshot verify``: read and check a whole snapshot."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.options import (
    cache_dir_option,
    default_runtime_dir,
    json_option,
    s3_endpoint_option,
)
from lazyfs.cli.output import print_line
from lazyfs.cli.sandbox_options import manifest_digest_option
from lazyfs.cli.snapshots.snapshot_views import load

if TYPE_CHECKING:
    from lazyfs.errors import LazyfsError
    from lazyfs.registry.config.access import AccessOptions
    from lazyfs.snapshot.stores.snapshots import Loaded, Snapshots


@click.command("verify")
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option(
    "--deep",
    is_flag=True,
    help="Also decompress the files, and check that all layers of the images can be fetched.",
)
@manifest_digest_option
@cache_dir_option
@access_options
@s3_endpoint_option
@json_option
def verify(
    snapshot: str,
    deep: bool,
    manifest_digest: str | None,
    cache_dir: Path,
    access: "AccessOptions",
    s3_endpoint: str | None,
    as_json: bool,
) -> int:
    """Read all files of SNAPSHOT, STORE/ID or STORE@POINTER, and check sizes and digests.

    The exit code is that of the first error: 40 for a missing file, 41 for a damaged one; with
    --deep, 20 for a missing image and 21 for a damaged one.
    """
    from lazyfs.cli.main import exit_code_of

    snapshots, loaded = load(snapshot, s3_endpoint, manifest_digest)
    wrong: list[LazyfsError] = list(snapshots.verify(loaded, deep=deep))
    if deep:
        wrong += _bases(snapshots, loaded, cache_dir, access)
    if as_json:
        document = {
            "store": snapshots.objects.url,
            "id": loaded.id,
            "manifestDigest": loaded.digest,
            "deep": deep,
            "verified": not wrong,
            "files": len(loaded.manifest.files),
            "storedSize": sum(file.stored_size for file in loaded.manifest.files),
            "errors": [_error(error) for error in wrong],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        _say(loaded, wrong)
    return exit_code_of(wrong[0]) if wrong else 0


def _say(loaded: "Loaded", wrong: "list[LazyfsError]") -> None:
    from lazyfs.cli.quantities import size_text

    for error in wrong:
        print_line(error.message)
    if not wrong:
        size = sum(file.stored_size for file in loaded.manifest.files)
        files = len(loaded.manifest.files)
        print_line(f"lazyfs: {loaded.id}: {files} files, {size_text(size)}, verified", err=True)


def _bases(
    snapshots: "Snapshots", loaded: "Loaded", cache_dir: Path, access: "AccessOptions"
) -> "list[LazyfsError]":
    """Return which images, embedded or in their registries, are damaged or cannot be had."""
    from lazyfs.errors import LazyfsError
    from lazyfs.service.bases import ImageBases
    from lazyfs.service.processes.mount_command import MountCommand
    from lazyfs.snapshot.stores import embedding

    wrong: list[LazyfsError] = list(embedding.verify(snapshots.objects, loaded.manifest))
    mount = MountCommand(cache_dir, access)
    bases = ImageBases(cache_dir, default_runtime_dir(), access, mount)
    with tempfile.TemporaryDirectory(prefix="lazyfs-") as scratch:
        layout = snapshots.embedded(loaded, Path(scratch))
        for image in loaded.manifest.images:
            try:
                bases.obtain([image], embedded=layout, allow_partial=False)
            except LazyfsError as error:
                wrong.append(error)
    return wrong


def _error(error: "LazyfsError") -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "details": getattr(error, "details", None) or {},
    }
