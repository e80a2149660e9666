"""``lazyfs ls``: list a directory of an image without mounting it."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lazyfs.cli.access import access_options
from lazyfs.cli.images.reading import name_fields, run_with_image
from lazyfs.cli.options import cache_dir_option, json_option, platform_option
from lazyfs.cli.trust_options import trust_options
from lazyfs.printable import printable

if TYPE_CHECKING:
    from lazyfs.image.open import OpenImage
    from lazyfs.registry.source import AccessOptions
    from lazyfs.rootfs.erofs_reader import Inode

KINDS = {
    "REGULAR": "file",
    "DIRECTORY": "directory",
    "CHAR": "char",
    "BLOCK": "block",
    "FIFO": "fifo",
    "SYMLINK": "symlink",
}


class Listed(msgspec.Struct, frozen=True):
    """One line: a name and what it is.  ``digest`` is of a file's whole content, if known."""

    name: bytes
    inode: "Inode"
    link: bytes
    layer: str | None
    digest: str | None


@click.command()
@click.argument("image")
@click.argument("path", default="/")
@click.option("-l", "--long", "is_long", is_flag=True, help="Show modes, owners, sizes and times.")
@cache_dir_option
@platform_option
@access_options
@trust_options
@json_option
def ls(
    image: str,
    path: str,
    is_long: bool,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    as_json: bool,
) -> None:
    """List the directory PATH of IMAGE, or the file of that name.

    Names are sorted by their bytes; owners are shown as numbers, times in UTC.
    """

    async def use(opened: "OpenImage") -> list[Listed]:
        return list(list_path(opened, os.fsencode(path), follow=not is_long))

    found = run_with_image(image, platform, cache_dir, access, use)
    if as_json:
        click.echo(json.dumps({"path": path, "entries": [_document(each) for each in found]}))
        return
    lines = _columns(found) if is_long else [b""] * len(found)
    for each, attributes in zip(found, lines, strict=True):
        name = each.name + (b" -> " + each.link if is_long and each.link else b"")
        # Programs get the bytes as they are; a terminal gets no control characters.
        shown = printable(name).encode() if sys.stdout.isatty() else name
        click.echo(attributes + shown)


def list_path(image: "OpenImage", path: bytes, *, follow: bool) -> Iterator[Listed]:
    """Yield what is in the directory that *path* leads to, or the one thing that it names.

    With *follow* a symlink to a directory stands for the directory, as with ``ls``.
    """
    from lazyfs.formats.tocs.toc import Kind
    from lazyfs.rootfs.walk import PathNotFound, walk_path

    nid = walk_path(image.index, path, follow=False)
    if follow and image.index.inode(nid).kind is Kind.SYMLINK:
        try:
            nid = walk_path(image.index, path + b"/")
        except PathNotFound:
            pass  # it leads to a file or nowhere: show the symlink
    if image.index.inode(nid).kind is Kind.DIRECTORY:
        names = [entry for entry in image.index.entries(nid) if entry.name not in (b".", b"..")]
        for entry in sorted(names, key=lambda entry: entry.name):
            yield _listed(image, entry.name, entry.nid)
        return
    yield _listed(image, path, nid)


def _listed(image: "OpenImage", name: bytes, nid: int) -> Listed:
    from lazyfs.formats.tocs.toc import Kind

    inode = image.index.inode(nid)
    link = image.index.readlink(nid) if inode.kind is Kind.SYMLINK else b""
    origin = image.provenance.of(nid)
    if origin is None:
        return Listed(name, inode, link, None, None)
    digest = None if origin.digest is None else f"sha256:{origin.digest.hex()}"
    return Listed(name, inode, link, image.layers[origin.layer].digest, digest)


def _columns(found: list[Listed]) -> list[bytes]:
    """Return the attributes of each line, aligned, as ``ls -ln`` shows them."""
    rows = [
        (
            stat.filemode(each.inode.mode),
            str(each.inode.nlink),
            str(each.inode.uid),
            str(each.inode.gid),
            _size(each.inode),
            time_text(each.inode.mtime_seconds),
        )
        for each in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join(
            cell.ljust(width) if number in (0, 5) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).encode()
        + b" "
        for row in rows
    ]


def _size(inode: "Inode") -> str:
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        return f"{inode.rdev_major},{inode.rdev_minor}"
    return str(inode.size)


def time_text(seconds: int) -> str:
    """Return a time as RFC 3339, or as a number where the year has no four digits."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"@{seconds}"


def _document(each: Listed) -> dict[str, Any]:
    """Return the JSON form of a line.  Fields: docs/reference/json.md."""
    inode = each.inode
    document = {
        **name_fields("name", each.name),
        "kind": KINDS[inode.kind.name],
        "mode": stat.S_IMODE(inode.mode),
        "uid": inode.uid,
        "gid": inode.gid,
        "nlink": inode.nlink,
        "size": inode.size,
        "mtime": inode.mtime_seconds,
        "mtimeNanoseconds": inode.mtime_nanoseconds,
        "layer": each.layer,
        "digest": each.digest,
    }
    if each.link:
        document |= name_fields("link", each.link)
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        document |= {"devMajor": inode.rdev_major, "devMinor": inode.rdev_minor}
    return document
