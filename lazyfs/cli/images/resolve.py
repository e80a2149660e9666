"""``lazyfs resolve``: which digests references point to; for templates and lock files too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lazyfs.cli.access import access_options
from lazyfs.cli.options import cache_dir_option, json_option, platform_option
from lazyfs.cli.output import print_line
from lazyfs.cli.sandbox_options import require_pinned_option
from lazyfs.errors import UsageError
from lazyfs.interrupts import run_trio

if TYPE_CHECKING:
    from lazyfs.documents.lockfile import LockedImage
    from lazyfs.documents.template import Template
    from lazyfs.image.prepare import Request

TEMPLATE_SUFFIXES = (".yaml", ".yml", ".json")
PATH_PREFIXES = ("/", "./", "../")


class ResolvedImage(msgspec.Struct, frozen=True):
    """What a reference means: on one platform, and on all that it has."""

    reference: str
    containers: tuple[str, ...]
    platform: str
    manifest_digest: str
    locked: "LockedImage"


def is_template(text: str) -> bool:
    """Say whether *text* is the path of a template, by its spelling alone; no file is looked up.

    No image's name begins like a path.  An image whose name ends like a template needs its tag.
    """
    return text.endswith(TEMPLATE_SUFFIXES) or text.startswith(PATH_PREFIXES)


@click.command()
@click.argument("source", metavar="REF|TEMPLATE")
@cache_dir_option
@platform_option
@click.option("--all-platforms", is_flag=True, help="Show the digest for every platform.")
@access_options
@click.option("--write", "is_writing", is_flag=True, help="Write the digests into the template.")
@click.option(
    "--lockfile",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the digests to a lock file, for run --locked and golden build --locked.",
)
@require_pinned_option
@json_option
def resolve(
    source: str,
    cache_dir: Path,
    platform: str | None,
    all_platforms: bool,
    access: Any,
    is_writing: bool,
    lockfile: Path | None,
    require_pinned: bool,
    as_json: bool,
) -> None:
    """Show which digest a reference, or each reference in a template, points to now.

    Each reference is looked up once.  If it has both a tag and a digest, the digest counts.
    """
    from lazyfs.documents import template_reading as templates

    if is_template(source):
        template, what = templates.load_template(Path(source)), source
    else:
        template, what = templates.template_of_image(source), "IMAGE"
    if is_writing and what != source:
        raise UsageError(f"--write: {source!r} is a reference, not a template to write to")
    if all_platforms and platform is not None:
        raise UsageError("--platform and --all-platforms cannot be combined")
    if require_pinned and not is_writing:
        templates.require_pinned(template, what)

    from lazyfs.documents import lockfile as locks
    from lazyfs.image.prepare import Request

    request = Request("", platform or template.platform, cache_dir, access)
    images = run_trio(resolve_images, template, request)
    is_changed = is_writing and locks.rewrite_file(
        Path(source),
        {each.reference: locks.pin(each.reference, each.locked.digest) for each in images},
    )
    if lockfile is not None:
        locks.save_lock(lockfile, locks.lock_of({each.reference: each.locked for each in images}))
    if as_json:
        document = {
            "images": [document_of(image, with_names=what == source) for image in images],
            "written": source if is_changed else None,
            "lockfile": None if lockfile is None else str(lockfile),
        }
        click.echo(json.dumps(document, indent=2))
        return
    for image in images:
        for line in lines_of(image, with_names=what == source, all_platforms=all_platforms):
            print_line(line)
    for note in templates.notes_of(template):
        print_line(f"note: {note}", err=True)
    if is_writing:
        print_line(f"{source}: {'written' if is_changed else 'unchanged'}", err=True)
    if lockfile is not None:
        print_line(f"{lockfile}: written", err=True)


async def resolve_images(template: "Template", request: "Request") -> list[ResolvedImage]:
    """Return what each reference of *template* means, asked for once and side by side."""
    import trio

    from lazyfs.documents.lockfile import names_of
    from lazyfs.errors import LazyfsError

    found: dict[str, ResolvedImage] = {}
    failed: dict[str, LazyfsError] = {}

    async def find(reference: str, names: tuple[str, ...]) -> None:
        try:
            found[reference] = await _resolve(reference, names, request)
        except LazyfsError as exc:
            failed[reference] = exc

    references = {text: tuple(names) for text, names in names_of(template).items()}
    async with trio.open_nursery() as nursery:
        for reference, names in references.items():
            nursery.start_soon(find, reference, names)
    for reference in references:  # the first of them, whichever failed first
        if reference in failed:
            raise failed[reference]
    return [found[reference] for reference in references]


async def _resolve(text: str, names: tuple[str, ...], request: "Request") -> ResolvedImage:
    from lazyfs.documents.lockfile import LockedImage
    from lazyfs.fetch.origins.origin import Origin
    from lazyfs.image.prepare import wanted_platform
    from lazyfs.image.resolve import Resolver, platforms_of
    from lazyfs.oci.reference import parse_reference
    from lazyfs.store.paths import Store

    reference = parse_reference(text)
    origin = Origin(reference, request.access)
    try:
        resolver = Resolver(Store(request.cache_dir), origin)
        resolved = await resolver.resolve(reference.identifier, wanted_platform(request.platform))
        platform = str((await resolver.config(resolved.manifest)).platform)
        digest, index_digest = str(resolved.document.digest), resolved.index_digest
        manifests = {platform: digest}
        if index_digest is not None:
            document = await resolver.document(index_digest)
            listed = await platforms_of(resolver.document, document)
            manifests |= {spelled: str(found) for spelled, found in listed.items()}
        locked = LockedImage(
            repository=reference.name,
            index_digest=None if index_digest is None else str(index_digest),
            manifests=manifests,
        )
        return ResolvedImage(text, names, platform, digest, locked)
    finally:
        await origin.aclose()


def lines_of(image: ResolvedImage, *, with_names: bool, all_platforms: bool) -> Iterator[str]:
    """Yield what a person reads: a line, or one for each platform."""
    names = f"{', '.join(image.containers)}: " if with_names else ""
    found = image.locked.manifests if all_platforms else {image.platform: image.manifest_digest}
    for platform, digest in sorted(found.items()):
        yield f"{names}{image.reference} -> {image.locked.repository}@{digest} ({platform})"


def document_of(image: ResolvedImage, *, with_names: bool) -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "reference": image.reference,
        "containers": list(image.containers) if with_names else [],
        "resolved": f"{image.locked.repository}@{image.manifest_digest}",
        "platform": image.platform,
        "indexDigest": image.locked.index_digest,
        "manifestDigest": image.manifest_digest,
        "platforms": [
            {"platform": platform, "manifestDigest": digest}
            for platform, digest in sorted(image.locked.manifests.items())
        ],
    }
