"""``lazyfs attrs``: what a mount says of itself."""

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
    """Show what the mount on DIRECTORY says of itself: digests, platform, layers, health.

    The user.lazyfs attributes of its root; those of one mount, where the kernel serves it, from its
    server and its record.
    """
    found = read_identity(default_runtime_dir(), real_path(directory))
    if as_json:
        click.echo(json.dumps({"type": "attributes", "attributes": found}, indent=2))
        return
    for name, value in found.items():
        print_line(f"{name.removeprefix(PREFIX)}={value}")
