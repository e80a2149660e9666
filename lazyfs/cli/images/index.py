"""``lazyfs index``: make plain layers lazy for others without changing the image."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.options import cache_dir_option, json_option, platform_option
from lazyfs.cli.output import print_line
from lazyfs.cli.progress import progress_option, show_progress
from lazyfs.cli.trust_options import trust_options
from lazyfs.interrupts import run_trio

if TYPE_CHECKING:
    from lazyfs.convert.indexing import BuiltIndex
    from lazyfs.registry.source import AccessOptions


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def index() -> None:
    """Make the plain layers of an image lazy: build, publish and list indexes of them.

    A mount uses an index that was built on this machine, or one whose digest you pin:
    lazyfs mount --index DIGEST.
    """


@index.command("build")
@click.argument("image")
@cache_dir_option
@platform_option
@access_options
@trust_options
@click.option("--again", is_flag=True, help="Build it again even if there is one.")
@progress_option
@json_option
def build(
    image: str,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    again: bool,
    progress: str,
    as_json: bool,
) -> None:
    """Download the plain layers of IMAGE once, verify them, and keep an index of each.

    With --again, an index from elsewhere that was used before is compared with the new one.
    """
    built = _build(image, cache_dir, platform, access, again, progress)
    _show(built, as_json)


@index.command("push")
@click.argument("image")
@cache_dir_option
@platform_option
@access_options
@trust_options
@progress_option
@json_option
def push(
    image: str,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    progress: str,
    as_json: bool,
) -> None:
    """Publish the index of IMAGE beside it, and print the digest to pin.

    Builds it first if necessary.  IMAGE itself is not changed.
    """
    from lazyfs.convert.indexing import push_index
    from lazyfs.image.prepare import Request

    built = _build(image, cache_dir, platform, access, False, progress)
    request = Request(image, platform, cache_dir, access)
    digest = run_trio(push_index, request, built)
    if as_json:
        click.echo(json.dumps(_document(built) | {"pushed": str(digest)}, indent=2))
        return
    _show(built, as_json=False)
    print_line(f"to mount it lazily elsewhere: lazyfs mount --index {digest} {built.resolved} DIR")


@index.command("show")
@click.argument("image")
@cache_dir_option
@platform_option
@access_options
@json_option
def show(
    image: str,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """List the indexes of IMAGE in its registry.

    Anybody who can push there can add one: pin only a digest that its builder gave you.
    """
    from lazyfs.convert.indexing import published_indexes
    from lazyfs.image.prepare import Request

    resolved, found = run_trio(published_indexes, Request(image, platform, cache_dir, access))
    if as_json:
        document = {
            "resolved": resolved,
            "indexes": [
                {"digest": str(each.digest), "size": each.size, "artifactType": each.artifact_type}
                for each in found
            ],
        }
        click.echo(json.dumps(document, indent=2))
        return
    print_line(f"resolved  {resolved}")
    for each in found:
        print_line(f"index     {each.digest}")
    if not found:
        print_line("no index has been published")


def _build(
    image: str,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    again: bool,
    progress: str,
) -> "BuiltIndex":
    from contextlib import ExitStack

    from lazyfs.convert.indexing import build_index_of
    from lazyfs.image.prepare import Request

    async def run() -> "BuiltIndex":
        with ExitStack() as stack:
            advance: list[Any] = []

            def begin(total: int) -> None:
                advance.append(stack.enter_context(show_progress(progress, image, total)))

            return await build_index_of(
                Request(image, platform, cache_dir, access),
                again=again,
                progress=lambda size: advance[0](size),
                on_total=begin,
            )

    return run_trio(run)


def _show(built: "BuiltIndex", as_json: bool) -> None:
    from lazyfs.cli.quantities import size_text

    if as_json:
        click.echo(json.dumps(_document(built), indent=2))
        return
    print_line(f"resolved  {built.resolved}")
    print_line(f"index     {built.artifact.digest}")
    for layer in built.layers:
        of, size = size_text(layer.descriptor.size), size_text(len(layer.data))
        print_line(f"  {layer.descriptor.digest}  {of:>10}  index of {size}")
    for plain in built.lazy:
        print_line(f"  {plain.digest}  {size_text(plain.size):>10}  already lazy")


def _document(built: "BuiltIndex") -> dict[str, Any]:
    return {
        "resolved": built.resolved,
        "index": str(built.artifact.digest),
        "layers": [
            {
                "digest": str(layer.descriptor.digest),
                "size": layer.descriptor.size,
                "indexSize": len(layer.data),
            }
            for layer in built.layers
        ],
        "lazy": [str(layer.digest) for layer in built.lazy],
    }
