"""``lazyfs pull``: download and verify a whole image before it is needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.images.reading import run_with_image
from lazyfs.cli.options import cache_dir_option, json_option, platform_option
from lazyfs.cli.output import print_line
from lazyfs.cli.progress import progress_option, show_progress
from lazyfs.cli.trust_options import trust_options
from lazyfs.interrupts import run_trio

if TYPE_CHECKING:
    from lazyfs.errors import LazyfsError
    from lazyfs.image.open import OpenImage
    from lazyfs.image.verify import Verification
    from lazyfs.registry.config.access import AccessOptions


@click.command()
@click.argument("image")
@click.option("--force", is_flag=True, help="Ask the registry even if the whole image is cached.")
@cache_dir_option
@platform_option
@access_options
@trust_options
@progress_option
@json_option
def pull(
    image: str,
    force: bool,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    progress: str,
    as_json: bool,
) -> int:
    """Download and verify all of IMAGE, so that it can be used without its registry.

    Prints whether the name points to another image than before.  What is cached already is hashed
    again, and fetched again if it is damaged.  Nothing is removed.
    """
    from lazyfs.cli.main import exit_code_of
    from lazyfs.image.offline import last_known
    from lazyfs.image.prepare import wanted_platform
    from lazyfs.image.verify import verify_image
    from lazyfs.oci.reference import parse_reference
    from lazyfs.store.paths import open_store

    reference = parse_reference(image)
    store = open_store(cache_dir)
    old = None
    if store is not None and reference.digest is None:
        old = last_known(store, reference, wanted_platform(platform))
    asked = image
    if (
        old is not None
        and not force
        and is_complete(f"{reference.name}@{old}", platform, cache_dir)
    ):
        asked = f"{reference.name}@{old}"

    async def use(opened: "OpenImage") -> "tuple[Any, Verification]":
        size = sum(device.table.payload_size for device in opened.devices)
        with show_progress("none" if as_json else progress, "pull", size) as advance:
            found = await verify_image(opened, advance, compares=False)
        if not found.errors and found.resident_size < size:
            found.errors.append(_not_kept(cache_dir, found.resident_size, size))
        return opened.prepared, found

    prepared, found = run_with_image(asked, platform, cache_dir, access, use)
    known = None if old is None else str(old)
    digests = (prepared.image.manifest_digest, prepared.index_digest)
    moved = known is not None and known not in digests
    document = {
        "reference": image,
        "resolved": prepared.resolved,
        "indexDigest": prepared.index_digest,
        "manifestDigest": prepared.image.manifest_digest,
        "platform": prepared.image.platform,
        "previous": known,
        "moved": moved,
        "asked": asked == image,
        "complete": not found.errors,
        "storedSize": found.stored_size,
        "residentSize": found.resident_size,
        "repairedChunks": found.repaired,
        "errors": [{"code": each.code, "message": each.message} for each in found.errors],
    }
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        _say(document)
    return exit_code_of(found.errors[0]) if found.errors else 0


def _not_kept(cache_dir: Path, resident_size: int, size: int) -> "LazyfsError":
    from lazyfs.cli.quantities import size_text
    from lazyfs.errors import StoreError

    return StoreError(
        f"store {cache_dir}: only {size_text(resident_size)} of the image's {size_text(size)} "
        "could be stored; the disk may be full"
    )


def is_complete(image: str, platform: str | None, cache_dir: Path) -> bool:
    """Say whether all of an image, named by digest, is here; nothing is asked or hashed."""
    from lazyfs.digest import parse_digest
    from lazyfs.errors import LazyfsError
    from lazyfs.image.prepare import Request, prepare
    from lazyfs.registry.config.access import AccessOptions
    from lazyfs.store.paths import Store
    from lazyfs.store.usage import resident_size

    request = Request(image, platform, cache_dir, AccessOptions(is_offline=True))
    try:
        prepared = run_trio(prepare, request)
        store = Store(cache_dir)
        sizes = [
            resident_size(store, parse_digest(layer.toc_digest)) for layer in prepared.image.layers
        ]
    except LazyfsError:
        return False
    return all(resident == content for resident, content in sizes)


def _say(document: dict[str, Any]) -> None:
    from lazyfs.cli.quantities import size_text

    for error in document["errors"][:20]:
        print_line(f"lazyfs: {error['message']}", err=True)
    if document["repairedChunks"]:
        print_line(
            f"lazyfs: {document['repairedChunks']} chunks were damaged in the cache", err=True
        )
    new = document["indexDigest"] or document["manifestDigest"]
    if document["moved"]:
        what = f"moved {document['previous']} -> {new}"
    else:
        what = "new" if document["previous"] is None else "unchanged"
    size = size_text(document["residentSize"])
    print_line(f"{document['resolved']}: {what}, {size} cached and verified")
