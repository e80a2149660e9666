"""``lazyfs attrs``: the attributes of a mount."""

import json

import click

from lazyfs.cli.options import default_runtime_dir, json_option
from lazyfs.cli.output import print_line
from lazyfs.mount.point import real_path
from lazyfs.service.identity import PREFIX, read_identity


@click.command()
@click.argument("directory", type=click.Path())
@json_option
def attrs(directory: str, as_json: bool) -> None:
    """Show the attributes of the mount on DIRECTORY: digests, platform, layers, health.

    These are the user.lazyfs.* extended attributes of the mount's root. For a mount with --driver
    erofs, whose root shows only those of the image, the server and its record supply the rest.
    """
    found = read_identity(default_runtime_dir(), real_path(directory))
    if as_json:
        click.echo(json.dumps({"type": "attributes", "attributes": found}, indent=2))
        return
    for name, value in found.items():
        print_line(f"{name.removeprefix(PREFIX)}={value}")
