"""``lazyfs convert``: make an image that can be mounted lazily."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.images.conversion import Wanted, advice_of, conversion_options, convert_and_print
from lazyfs.cli.options import cache_dir_option, json_option, platform_option
from lazyfs.cli.trust_options import trust_options
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.registry.source import AccessOptions


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@conversion_options
@click.option(
    "--prioritize",
    "prioritized",
    multiple=True,
    metavar="FILE",
    help="A file for mounts to prefetch; repeat it for more, the first needed first.",
)
@click.option(
    "--profile",
    "by_profile",
    is_flag=True,
    help="Put the files first that mounts of SRC on this machine read (`lazyfs profile`).",
)
@click.option(
    "--keep-diff-id",
    "keeps_diff_ids",
    is_flag=True,
    help="Keep each layer's tar bit for bit, or fail.",
)
@click.option("--all-platforms", is_flag=True, help="Convert all images of an index into an index.")
@cache_dir_option
@platform_option
@access_options
@trust_options
@json_option
def convert(
    source: str,
    destination: str,
    wanted: Wanted,
    prioritized: tuple[str, ...],
    by_profile: bool,
    keeps_diff_ids: bool,
    all_platforms: bool,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """Make DST from SRC: the same image with layers that can be mounted lazily.

    SRC and DST are references to a registry, or oci:DIR[:TAG] for a layout on disk.  Layers may
    be tar, gzip or zstd; those already in the wanted format are kept.  DST is an ordinary OCI image
    for every other tool.  The same SRC always gives the same DST, byte for byte.

    Prints DST with its digest.  SOURCE_DATE_EPOCH, if set, becomes the image's creation time.
    """
    if all_platforms and platform is not None:
        raise UsageError(f"--all-platforms cannot be combined with --platform {platform}")
    convert_and_print(
        source,
        destination,
        wanted,
        access,
        platform,
        cache_dir=cache_dir,
        as_json=as_json,
        prioritized=prioritized,
        keeps_diff_ids=keeps_diff_ids,
        advise=advice_of(cache_dir) if by_profile else None,
        all_platforms=all_platforms,
    )
