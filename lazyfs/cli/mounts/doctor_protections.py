"""What ``lazyfs doctor`` prints about the protections of sandboxes, by runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyfs.cli.output import print_line

if TYPE_CHECKING:
    from lazyfs.sandbox.runtimes.runtimes import Chooser

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
    """Return the JSON form: runtime → its protections, or ``error``; and what can be limited."""
    from lazyfs.documents.errors import SnapshotError
    from lazyfs.sandbox.privileges import rootless
    from lazyfs.sandbox.runtimes.protections import look_at_limits, look_at_protections

    found: dict[str, Any] = {}
    for name in names:
        try:
            runtime = choose(name, path=paths.get(name))
            runtime.probe()
            found[name] = look_at_protections(runtime, name, rootless())
        except SnapshotError as error:
            found[name] = {"error": error.message}
    return {"runtimes": found, "limits": look_at_limits()}


def show(document: Mapping[str, Any]) -> None:
    """Print the table: a line for each protection, a column for each runtime that runs."""
    runtimes = document["runtimes"]
    if not runtimes:
        return
    names = [name for name, protections in runtimes.items() if "error" not in protections]
    if names:
        print_line("")
        print_line(f"{'protection':18}" + "".join(f"{name:{WIDTH}}" for name in names))
        for protection, words in WORDS.items():
            cells = "".join(f"{runtimes[name][protection]:{WIDTH}}" for name in names)
            print_line(f"{words:18}{cells}".rstrip())
    for name, protections in runtimes.items():
        if "error" in protections:
            print_line(f"{name}: not tried: {protections['error']}")
    limits = ", ".join(f"{name} {word}" for name, word in document["limits"].items())
    print_line(f"sandbox limits: {limits}")
