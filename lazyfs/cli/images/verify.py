"""``lazyfs verify``: check every byte of an image."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.images.reading import run_with_image
from lazyfs.cli.options import (
    cache_dir_option,
    default_runtime_dir,
    json_option,
    platform_option,
    verify_option,
)
from lazyfs.cli.output import print_line
from lazyfs.cli.progress import progress_option, show_progress
from lazyfs.cli.trust_options import trust_options
from lazyfs.errors import LazyfsError, VerificationFailed

if TYPE_CHECKING:
    from lazyfs.fetch.device import Device
    from lazyfs.image.open import OpenImage
    from lazyfs.registry.source import AccessOptions

SHOWN_ERRORS = 20


@click.command()
@click.argument("image")
@cache_dir_option
@platform_option
@access_options
@trust_options
@verify_option
@progress_option
@json_option
def verify(
    image: str,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    verify_mode: str,
    progress: str,
    as_json: bool,
) -> int:
    """Check every byte of IMAGE.  What is not cached is downloaded.

    What is in the cache is hashed again, and fetched again if it is damaged.  Each layer is read
    whole once, and its tar compared with its table of contents: both must have the same files.
    After an error the check continues, so that all errors are found.  Afterwards the whole image
    is cached.
    """
    from lazyfs.image.verify import Verification, verify_image
    from lazyfs.service.dropped import tell_mounts

    dropped: dict[str, list[int]] = {}

    def note(device: "Device", chunks: list[int]) -> None:
        dropped.setdefault(device.content.folder.name, []).extend(chunks)

    async def use(opened: "OpenImage") -> tuple[str, int, int, Verification]:
        opened.contents.doubts.dropped = note
        size = sum(device.table.payload_size for device in opened.devices)
        with show_progress("none" if as_json else progress, "verify", size) as advance:
            found = await verify_image(opened, advance)
        return opened.prepared.resolved, len(opened.devices), size, found

    try:
        resolved, layers, size, found = run_with_image(
            image, platform, cache_dir, access, use, verify=verify_mode
        )
    finally:  # also where it is broken off: what was dropped will not be found again
        if dropped:
            tell_mounts(default_runtime_dir(), cache_dir, dropped)
    if as_json:
        click.echo(json.dumps(_document(image, resolved, size, found), indent=2))
    else:
        _say(resolved, layers, size, found)
    return _exit_code(found.errors)


def _document(reference: str, resolved: str, size: int, found: Any) -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "reference": reference,
        "resolved": resolved,
        "verified": not found.errors,
        "contentSize": size,
        "storedSize": found.stored_size,
        "residentSize": found.resident_size,
        "repairedChunks": found.repaired,
        "diffIds": [str(diff_id) for diff_id in found.diff_ids],
        "comparedLayers": [str(digest) for digest in found.compared],
        "errors": [{"code": each.code, "message": each.message} for each in found.errors],
    }


def _say(resolved: str, layers: int, size: int, found: Any) -> None:
    from lazyfs.cli.quantities import size_text

    if found.repaired:
        print_line(f"lazyfs: {found.repaired} chunks were damaged in the cache", err=True)
    for digest, why in found.not_compared:
        print_line(f"lazyfs: layer {digest}: not compared with its tar: {why}", err=True)
    for error in found.errors[:SHOWN_ERRORS]:
        print_line(f"lazyfs: {error.message}", err=True)
    if len(found.errors) > SHOWN_ERRORS:
        print_line(f"lazyfs: and {len(found.errors) - SHOWN_ERRORS} more", err=True)
    if found.errors:
        print_line(f"lazyfs: {resolved}: not verified, {len(found.errors)} errors", err=True)
        return
    more = f" ({len(found.diff_ids)} also by diffID)" if found.diff_ids else ""
    print_line(f"{resolved}: verified, {layers} layers{more}, {size_text(size)}")


def _exit_code(errors: list[LazyfsError]) -> int:
    """Return the code of the worst error: wrong bytes before bytes that did not come."""
    from lazyfs.cli.main import exit_code_of

    for error in errors:
        if isinstance(error, VerificationFailed):
            return exit_code_of(error)
    return exit_code_of(errors[0]) if errors else 0
