"""``lazyfs profile``: which files of an image are read first, as its mounts recorded it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.images.reading import name_fields
from lazyfs.cli.options import cache_dir_option, json_option, platform_option
from lazyfs.errors import StoreError, UsageError
from lazyfs.interrupts import run_trio
from lazyfs.printable import printable

if TYPE_CHECKING:
    from lazyfs.digest import Digest
    from lazyfs.image.profiled import ProfiledFile
    from lazyfs.registry.config.access import AccessOptions
    from lazyfs.store.paths import Store
    from lazyfs.store.profiles import Profile

Command = TypeVar("Command", bound=Callable[..., Any])
STANDARD = "-"
ELSEWHERE = "(in no file of the image)"


def _image_options(function: Command) -> Command:
    """Add the options that name an image."""
    for option in (cache_dir_option, platform_option, access_options):
        function = option(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def profile() -> None:
    """Show, export, import or remove the profile of an image: which files are read first.

    Each mount records a profile; the next mount fetches those files at once.  IMAGE is a reference
    or a manifest's digest.  A registry is contacted only for a tag that was never mounted here.
    """


@profile.command("show")
@click.argument("image")
@_image_options
@json_option
def show(
    image: str, cache_dir: Path, platform: str | None, access: "AccessOptions", as_json: bool
) -> None:
    """List the files that were read, in the order of their first read.

    Each line has the bytes read, the file's size and its path.
    """
    from lazyfs.image.profiled import load_profiled

    store, _, found = _load(image, cache_dir, platform, access)
    record, files = load_profiled(store, found)
    layers = [layer.digest for layer in record.layers]
    if as_json:
        document = {
            "reference": image,
            "manifestDigest": found.manifest_digest,
            "platform": record.platform,
            "readSize": sum(file.read_size for file in files),
            "chunks": len(found.accesses),
            "files": [_document(file, layers) for file in files],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for file in files:
        _say(file)


@profile.command("export")
@click.argument("image")
@click.argument("file", default=STANDARD, metavar="[FILE]")
@_image_options
def export(
    image: str, file: str, cache_dir: Path, platform: str | None, access: "AccessOptions"
) -> None:
    """Write the profile of IMAGE to FILE, or to standard output."""
    from lazyfs.store.profiles import encode_profile

    _, _, found = _load(image, cache_dir, platform, access)
    data = encode_profile(found)
    if file == STANDARD:
        click.echo(data, nl=False)
        return
    try:
        Path(file).write_bytes(data)
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}") from error


@profile.command("import")
@click.argument("image")
@click.argument("file", metavar="FILE")
@_image_options
def import_(
    image: str, file: str, cache_dir: Path, platform: str | None, access: "AccessOptions"
) -> None:
    """Use the profile in FILE (- for standard input) for IMAGE.

    It replaces the profile that IMAGE has.  A profile of another image or platform is refused.
    """
    from lazyfs.image.profiled import check_profile
    from lazyfs.store.paths import Store
    from lazyfs.store.profiles import decode_profile, save_profile

    given = decode_profile(_read(file))
    store = Store(cache_dir)
    digest = _find(store, image, platform, access)
    check_profile(store, given, digest)
    save_profile(store, digest, given)


@profile.command("rm")
@click.argument("image")
@_image_options
def remove(image: str, cache_dir: Path, platform: str | None, access: "AccessOptions") -> None:
    """Remove the profile of IMAGE; the next mount records a new one."""
    from lazyfs.store.profiles import remove_profile

    store, digest, _ = _load(image, cache_dir, platform, access)
    remove_profile(store, digest)


def _load(
    image: str, cache_dir: Path, platform: str | None, access: "AccessOptions"
) -> "tuple[Store, Digest, Profile]":
    """Return the profile of an image, or raise NoProfile."""
    from lazyfs.image.profiled import NoProfile
    from lazyfs.store.paths import open_store
    from lazyfs.store.profiles import load_profile

    store = open_store(cache_dir)
    if store is not None:
        digest = _find(store, image, platform, access)
        found = load_profile(store, digest)
        if found is not None:
            return store, digest, found
    raise NoProfile(
        f"{image} has no profile",
        hint="a profile is recorded when the image is mounted and read",
    )


def _find(store: "Store", image: str, platform: str | None, access: "AccessOptions") -> "Digest":
    from lazyfs.image.profiled import find_manifest

    return run_trio(find_manifest, store, image, platform, access)


def _read(file: str) -> bytes:
    from lazyfs.store.profiles import FILE_LIMIT

    try:
        if file == STANDARD:
            return sys.stdin.buffer.read(FILE_LIMIT + 1)
        with open(file, "rb") as stream:
            return stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error


def _document(file: "ProfiledFile", layers: list[str]) -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    path = {"path": None} if file.path is None else name_fields("path", file.path)
    return {
        **path,
        "layer": layers[file.layer],
        "size": file.size,
        "readSize": file.read_size,
        "chunks": file.chunks,
    }


def _say(file: "ProfiledFile") -> None:
    from lazyfs.cli.quantities import size_text

    size = "-" if file.path is None else size_text(file.size)
    sizes = f"{size_text(file.read_size):>10} {size:>10}  ".encode()
    if file.path is None:
        name = ELSEWHERE.encode()
    else:
        name = printable(file.path).encode() if sys.stdout.isatty() else file.path
    click.echo(sizes + name)
