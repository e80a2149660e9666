"""What the commands that convert images have in common: options, the work, what is printed."""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lazyfs.cli.options import Decorated
from lazyfs.cli.output import print_line
from lazyfs.errors import UsageError
from lazyfs.interrupts import run_trio

if TYPE_CHECKING:
    from lazyfs.convert.convert import Conversion
    from lazyfs.convert.rebuild import ConvertedLayer
    from lazyfs.digest import Digest
    from lazyfs.formats.writer import WriterOptions
    from lazyfs.registry.source import AccessOptions

SIZE_RE = re.compile(r"([0-9]{1,12})(?:([KMG])i?B?|B)?", re.IGNORECASE)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MAX_SIZE = 256 << 20  # what a mount accepts: a chunk sits in memory to be verified
TARGETS = ("estargz", "zstd-chunked")


class Wanted(msgspec.Struct, frozen=True):
    """What to make, as the command line says it; sizes in bytes, ``level`` None is the target's."""

    target: str
    chunk_size: int
    min_chunk_size: int
    level: int | None
    is_toc_external: bool


def conversion_options(function: Decorated) -> Decorated:
    """Add what says how layers are written: parameter ``wanted``, a ``Wanted``."""

    def collect(
        *arguments: Any,
        target: str,
        chunk_size: int,
        min_chunk_size: int,
        level: int | None,
        is_toc_external: bool,
        **others: Any,
    ) -> Any:
        wanted = Wanted(target, chunk_size, min_chunk_size, level, is_toc_external)
        return function(*arguments, wanted=wanted, **others)

    collect.__doc__, collect.__name__ = function.__doc__, function.__name__
    # What has been decorated before keeps its options.
    collect.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: Any = collect
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def _size_option(
    name: str, default: str, minimum: int, text: str
) -> Callable[[Decorated], Decorated]:
    """Return an option for a size, ``4MiB`` or ``4194304``; units are powers of 1024."""

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> int:
        match = SIZE_RE.fullmatch(value)
        size = int(match[1]) * UNITS[(match[2] or "").lower()] if match else -1
        if not minimum <= size <= MAX_SIZE:
            raise click.BadParameter(f"{value!r} is not a size from {minimum} to {MAX_SIZE} bytes")
        return size

    return click.option(
        name, callback=parse, default=default, show_default=True, metavar="SIZE", help=text
    )


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--to",
        "target",
        type=click.Choice(TARGETS),
        default="estargz",
        show_default=True,
        help="The format of the layers.",
    ),
    _size_option(
        "--chunk-size", "4MiB", 4096, "Cut files into chunks of this size, each fetched separately."
    ),
    _size_option(
        "--min-chunk-size",
        "0",
        0,
        "Compress small files together into streams of at least this size (estargz).",
    ),
    click.option(
        "--level",
        type=click.IntRange(0, 19),
        help="Compression level.  [default: 9 of 0 to 9 for estargz, 6 of 1 to 19 for "
        "zstd-chunked]",
    ),
    click.option(
        "--external-toc",
        "is_toc_external",
        is_flag=True,
        help="Put the tables of contents into a second image, named like DST with -esgztoc after "
        "the tag (estargz).",
    ),
)


def writer_options(wanted: Wanted) -> "WriterOptions":
    """Return the writer's options; UsageError for what does not go together."""
    from lazyfs.formats.writer import Target, WriterOptions

    target = next(each for each in Target if each.word == wanted.target)
    levels, level = target.levels, wanted.level
    if level is not None and level not in levels:
        raise UsageError(
            f"--level: got {level}, expected {levels[0]} to {levels[-1]} for {target.word}"
        )
    if target is not Target.ESTARGZ:
        for option, value, why in (
            ("--min-chunk-size", wanted.min_chunk_size, "each of its chunks is a frame of its own"),
            ("--external-toc", wanted.is_toc_external, "its TOC is not part of the tar anyway"),
        ):
            if value:
                raise UsageError(
                    f"{option} works with --to estargz only: with {target.word}, {why}"
                )
    return WriterOptions(
        wanted.chunk_size, wanted.min_chunk_size, level, target, wanted.is_toc_external
    )


def advice_of(cache_dir: Path) -> "Callable[[Digest], Sequence[str]]":
    """Return what says which files of an image mounts have read, by the cache in *cache_dir*."""

    def advise(manifest_digest: "Digest") -> Sequence[str]:
        from lazyfs.image.profiled import NoProfile, recorded_files
        from lazyfs.store.paths import open_store

        store = open_store(cache_dir)
        if store is None:
            raise NoProfile(
                f"{manifest_digest} has no profile: there is no cache in {cache_dir}",
                hint="a profile is recorded when the image is mounted and read",
            )
        return recorded_files(store, manifest_digest)

    return advise


def convert_and_print(
    source: str,
    destination: str,
    wanted: Wanted,
    access: "AccessOptions",
    platform: str | None,
    *,
    cache_dir: Path,
    as_json: bool,
    prioritized: tuple[str, ...] = (),
    keeps_diff_ids: bool = False,
    advise: "Callable[[Digest], Sequence[str]] | None" = None,
    all_platforms: bool = False,
) -> None:
    """Convert an image, or all of an index, and print what came out."""
    from lazyfs.convert.convert import ConvertOptions, convert_image, convert_reference
    from lazyfs.image.prepare import wanted_platform

    options = ConvertOptions(
        platform=wanted_platform(platform),
        is_platform_asked_for=platform is not None,
        prioritized=prioritized,
        writer=writer_options(wanted),
        keeps_diff_ids=keeps_diff_ids,
        advise=advise,
        created=_epoch(os.environ.get("SOURCE_DATE_EPOCH", "")),
    )

    def report(layer: "ConvertedLayer") -> None:
        if not as_json:
            print_line(_line(layer), err=True)

    async def one() -> dict[str, Any]:
        name, made = await convert_reference(
            source,
            destination,
            access,
            options,
            convert_image,
            cache_dir=cache_dir,
            report=report,
        )
        return _document(f"{name}@{made.manifest_digest}", made)

    async def all_of_them() -> dict[str, Any]:
        from lazyfs.convert.convert_index import convert_index

        name, made = await convert_reference(
            source,
            destination,
            access,
            options,
            convert_index,
            cache_dir=cache_dir,
            report=report,
        )
        images = [_document(f"{name}@{each.manifest_digest}", each) for each in made.images]
        return {
            "resolved": f"{name}@{made.manifest_digest}",
            "manifestDigest": str(made.manifest_digest),
            "images": images,
        }

    document = run_trio(all_of_them if all_platforms else one)
    if as_json:
        click.echo(json.dumps(document))
    else:
        print_line(str(document["resolved"]))


def _epoch(text: str) -> int | None:
    if not text:
        return None
    if re.fullmatch(r"[0-9]{1,11}", text) is None:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text!r}, which is not a number of seconds since 1970"
        )
    return int(text)


def _line(layer: "ConvertedLayer") -> str:
    before, after = layer.source, layer.result
    if layer.is_copied:
        return f"layer {before.digest}: kept as it is"
    return f"layer {before.digest} ({before.size} bytes): {after.digest} ({after.size} bytes)"


def _document(resolved: str, conversion: "Conversion") -> dict[str, Any]:
    return {
        "resolved": resolved,
        "sourceDigest": str(conversion.source_digest),
        "manifestDigest": str(conversion.manifest_digest),
        "configDigest": str(conversion.config_digest),
        "platform": str(conversion.platform),
        "layers": [
            {
                "sourceDigest": str(layer.source.digest),
                "digest": str(layer.result.digest),
                "size": layer.result.size,
                "mediaType": layer.result.media_type,
                "diffId": str(layer.diff_id),
                "tocDigest": str(layer.toc_digest),
                "copied": layer.is_copied,
            }
            for layer in conversion.layers
        ],
    }
