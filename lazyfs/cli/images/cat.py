"""``lazyfs cat``: print a file of an image without mounting it."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.images.reading import run_with_image
from lazyfs.cli.options import cache_dir_option, platform_option
from lazyfs.cli.trust_options import trust_options
from lazyfs.errors import NotFound
from lazyfs.printable import printable

if TYPE_CHECKING:
    from lazyfs.image.open import OpenImage
    from lazyfs.registry.source import AccessOptions

STEP_SIZE = 4 << 20


class NotAFile(NotFound):
    """What a path leads to has no content."""

    code = "E_NOT_A_FILE"


@click.command()
@click.argument("image")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@cache_dir_option
@platform_option
@access_options
@trust_options
def cat(
    image: str,
    paths: tuple[str, ...],
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
) -> None:
    """Print the files at PATH of IMAGE, one after the other.

    Symlinks are followed inside the image.  Every byte is verified before it is printed; where
    verification fails, printing stops and the command fails.
    """
    import trio

    async def use(opened: "OpenImage") -> None:
        for path in paths:
            async for data in contents_of(opened, os.fsencode(path)):
                # A thread: a reader of our output that is slow must not stall what is fetched.
                await trio.to_thread.run_sync(sys.stdout.buffer.write, data)
        sys.stdout.buffer.flush()

    run_with_image(image, platform, cache_dir, access, use)


async def contents_of(image: "OpenImage", path: bytes) -> AsyncIterator[bytes]:
    """Yield a file's verified bytes, from the start, in steps."""
    from lazyfs.formats.tocs.toc import Kind
    from lazyfs.rootfs.walk import walk_path

    nid = walk_path(image.index, path)
    kind = image.index.inode(nid).kind
    if kind is not Kind.REGULAR:
        raise NotAFile(f"{printable(path)} is not a regular file: it is a {kind.name.lower()}")
    extent = image.index.extent(nid)
    if extent is None:
        return
    end = extent.offset + extent.size
    for offset in range(extent.offset, end, STEP_SIZE):
        size = min(STEP_SIZE, end - offset)
        data = image.contents.read_nowait(extent.device, offset, size)
        if data is None:
            data = await image.contents.read(extent.device, offset, size)
        yield data
