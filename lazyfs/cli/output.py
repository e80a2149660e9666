"""What commands print for people.

Most of it contains foreign text: names, digests, messages, annotations.  So every line is passed
through ``printable`` as a whole, and no view has to remember which part is foreign.
"""

import json
from collections.abc import Iterable
from typing import Any

import click

from lazyfs.printable import printable


def print_line(line: str, *, err: bool = False) -> None:
    """Print one line; a line break in it is shown as an escape."""
    click.echo(printable(line), err=err)


def print_found(document: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print what was found: the *document*, or *lines* that say the same to people."""
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    for line in lines:
        print_line(line)
