"""What ``lazyfs doctor`` says of the walls around sandboxes: a table of runtime and protection."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.output import print_line

if TYPE_CHECKING:
    from lazyfs.snapshot.runtimes import Chooser

WORDS = {
    "systemCalls": "system calls",
    "newPrivileges": "new privileges",
    "keys": "keys",
    "capabilities": "capabilities",
    "namespaces": "namespaces",
    "devices": "devices",
    "hiddenPaths": "hidden paths",
    "readOnlyPaths": "read-only paths",
}
WIDTH = 12


def look(
    names: tuple[str, ...], choose: "Chooser", paths: Mapping[str, Path | None]
) -> dict[str, Any]:
    """Return the JSON form: runtime → its walls, or ``error``; and which limits can be set."""
    from lazyfs.snapshot.errors import SnapshotError
    from lazyfs.snapshot.privileges import rootless
    from lazyfs.snapshot.walls import look_at_limits, look_at_walls

    found: dict[str, Any] = {}
    for name in names:
        try:
            runtime = choose(name, path=paths.get(name))
            runtime.probe()
            found[name] = look_at_walls(runtime, name, rootless())
        except SnapshotError as error:
            found[name] = {"error": error.message}
    return {"runtimes": found, "limits": look_at_limits()}


def show(document: Mapping[str, Any]) -> None:
    """Print the table: a line for each protection, a column for each runtime that runs."""
    runtimes = document["runtimes"]
    if not runtimes:
        return
    names = [name for name, walls in runtimes.items() if "error" not in walls]
    if names:
        click.echo()
        click.echo(f"{'walls, as tried':18}" + "".join(f"{name:{WIDTH}}" for name in names))
        for wall, words in WORDS.items():
            cells = "".join(f"{runtimes[name][wall]:{WIDTH}}" for name in names)
            print_line(f"{words:18}{cells}".rstrip())
    for name, walls in runtimes.items():
        if "error" in walls:
            print_line(f"{name}: not tried: {walls['error']}")
    limits = ", ".join(f"{name} {word}" for name, word in document["limits"].items())
    print_line(f"limits of sandboxes: {limits}")
