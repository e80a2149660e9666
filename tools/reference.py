"""Write the reference pages of the commands from their own ``--help``.

    python -m tools.reference           write docs/reference/commands/
    python -m tools.reference --check   say which pages differ, and exit 1 if any does

A page per command, its subcommands below it.  What stands there cannot contradict the program.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lazyfs.cli.main import COMMANDS, cli

FOLDER = Path(__file__).parent.parent / "docs/reference/commands"
WIDTH = 100

FURTHER = {
    "cache": "../cache.md",
    "checkpoint": "../../howto/snapshots.md",
    "convert": "../convert.md",
    "gc": "../../howto/snapshot-stores.md",
    "golden": "../../howto/snapshots.md",
    "index": "../../howto/plain-images.md",
    "inspect": "../formats.md",
    "mount": "../mount.md",
    "optimize": "../convert.md",
    "restore": "../../howto/snapshots.md",
    "run": "../../howto/sandboxes.md",
    "serve": "../serve.md",
    "snapshot": "../../howto/snapshot-stores.md",
}
"""Command → the page that says more than its options."""


def sections(command: click.Command, name: str, above: click.Context) -> Iterator[str]:
    """Yield the section of *command*, then those of its subcommands."""
    context = click.Context(
        command, info_name=name, parent=above, terminal_width=WIDTH, max_content_width=WIDTH
    )
    context.help_option_names = ["-h", "--help"]
    depth = len(context.command_path.split()) - 1
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"{'#' * depth} {context.command_path}\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from sections(found, child, context)


def pages() -> dict[str, str]:
    """Return file name → content, for every command and the list of them."""
    top = click.Context(cli, info_name="lazyfs", terminal_width=WIDTH, max_content_width=WIDTH)
    made = {}
    rows = []
    for name, (_, text) in COMMANDS.items():
        command = cli.get_command(top, name)
        assert command is not None
        page = "\n".join(sections(command, name, top))
        if name in FURTHER:
            page += f"\nMore: [{FURTHER[name].rsplit('/', 1)[-1]}]({FURTHER[name]}).\n"
        made[f"{name}.md"] = page
        rows.append(f"| [`{name}`]({name}.md) | {text} |")
    made["index.md"] = (
        "# Commands\n\nThese pages are what `lazyfs COMMAND --help` prints. `make reference` "
        "writes them.\n\n"
        "| command | does |\n|---|---|\n" + "\n".join(rows) + "\n"
    )
    return made


def stale(folder: Path = FOLDER) -> list[str]:
    """Return the names of pages in *folder* that are not what the program says now."""
    wanted = pages()
    found = {path.name: path.read_text() for path in folder.glob("*.md")}
    return sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )


def write(folder: Path = FOLDER) -> None:
    """Make *folder* hold the pages, and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, content in wanted.items():
        (folder / name).write_text(content)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the commands' reference pages.")
    parser.add_argument("--check", action="store_true", help="only say which pages differ")
    if not parser.parse_args().check:
        write()
        return 0
    names = stale()
    for name in names:
        print(f"docs/reference/commands/{name} is not what --help says; run `make reference`")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
