"""``lazyfs convert``: make an image that can be mounted lazily."""

import json
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.options import Decorated, json_option, platform_option
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.formats.writer import WriterOptions
    from lazyfs.image.convert import Conversion
    from lazyfs.image.rebuild import ConvertedLayer
    from lazyfs.registry.source import AccessOptions

SIZE_RE = re.compile(r"([0-9]{1,12})(?:([KMG])i?B?|B)?", re.IGNORECASE)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MAX_SIZE = 256 << 20  # what a mount accepts: a chunk sits in memory to be verified


def _size_option(
    name: str, default: str, minimum: int, text: str
) -> Callable[[Decorated], Decorated]:
    """Return an option for a size, ``4MiB`` or ``4194304``; units are powers of 1024."""

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> int:
        match = SIZE_RE.fullmatch(value)
        size = int(match[1]) * UNITS[(match[2] or "").lower()] if match else -1
        if not minimum <= size <= MAX_SIZE:
            raise click.BadParameter(f"got {value!r}, expected {minimum} to {MAX_SIZE} bytes")
        return size

    return click.option(
        name, callback=parse, default=default, show_default=True, metavar="SIZE", help=text
    )


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--to",
    "target",
    type=click.Choice(["estargz", "zstd-chunked"]),
    default="estargz",
    show_default=True,
    help="The format of the layers.",
)
@click.option(
    "--prioritize",
    "prioritized",
    multiple=True,
    metavar="FILE",
    help="A file that mounts should fetch ahead; give it again for more, in order of need.",
)
@_size_option(
    "--chunk-size", "4MiB", 4096, "Cut files into pieces of this size, each fetched alone."
)
@_size_option(
    "--min-chunk-size", "0", 0, "Let small files share a compressed stream of at least this size."
)
@click.option(
    "--level",
    type=click.IntRange(0, 19),
    help="Compression level.  [default: 9 of 0 to 9 for estargz, 6 of 1 to 19 for zstd-chunked]",
)
@click.option(
    "--keep-diff-id",
    "keeps_diff_ids",
    is_flag=True,
    help="Leave each layer's tar as it is, bit for bit, or fail.",
)
@platform_option
@access_options
@json_option
def convert(
    source: str,
    destination: str,
    target: str,
    prioritized: tuple[str, ...],
    chunk_size: int,
    min_chunk_size: int,
    level: int | None,
    keeps_diff_ids: bool,
    platform: str | None,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """Make DST from SRC: the same image with layers that can be mounted lazily.

    SRC and DST are references to a registry, or oci:DIR[:TAG] for a layout on disk.  Layers may
    be tar, gzip or zstd; those in the wanted format already are kept.  DST is an ordinary OCI image
    for every other tool.  The same SRC gives the same DST, byte for byte.

    Prints DST with its digest.  SOURCE_DATE_EPOCH, if set, becomes the image's time of creation.
    """
    import trio

    from lazyfs.image.convert import ConvertOptions, convert_reference
    from lazyfs.image.prepare import wanted_platform

    options = ConvertOptions(
        platform=wanted_platform(platform),
        prioritized=prioritized,
        writer=_writer_options(target, chunk_size, min_chunk_size, level),
        keeps_diff_ids=keeps_diff_ids,
        created=_epoch(os.environ.get("SOURCE_DATE_EPOCH", "")),
    )

    async def run() -> tuple[str, "Conversion"]:
        return await convert_reference(source, destination, access, options, report=report)

    def report(layer: "ConvertedLayer") -> None:
        if not as_json:
            click.echo(_line(layer), err=True)

    name, conversion = trio.run(run)
    resolved = f"{name}@{conversion.manifest_digest}"
    click.echo(json.dumps(_document(resolved, conversion)) if as_json else resolved)


def _writer_options(
    word: str, chunk_size: int, min_chunk_size: int, level: int | None
) -> "WriterOptions":
    from lazyfs.formats.writer import Target, WriterOptions

    target = next(each for each in Target if each.word == word)
    levels = target.levels
    if level is not None and level not in levels:
        raise UsageError(f"--level: got {level}, expected {levels[0]} to {levels[-1]} for {word}")
    if target is Target.ZSTD_CHUNKED and min_chunk_size:
        raise UsageError(
            f"--min-chunk-size: got {min_chunk_size} for {word}, expected it for estargz only",
            hint="every chunk of zstd:chunked is a frame of its own",
        )
    return WriterOptions(chunk_size, min_chunk_size, level, target)


def _epoch(text: str) -> int | None:
    if not text:
        return None
    if re.fullmatch(r"[0-9]{1,11}", text) is None:
        raise UsageError(f"SOURCE_DATE_EPOCH: got {text!r}, expected seconds since 1970")
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
