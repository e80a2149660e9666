"""The shell blocks of the documentation's pages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\S*)\s*$")
NOT_RUN = re.compile(r"^<!-- not run: (\S.*\S) -->$")
INDENTED = re.compile(r"^ {4}(?:\$ )?(?:sudo )?lazyfs ")


@dataclass(frozen=True)
class Block:
    """A fenced block; *reason* is why it is not run, where the page gives one."""

    line: int
    language: str
    text: str
    reason: str | None


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page; raises ValueError for one that does not end."""
    lines = text.splitlines()
    number = 0
    before = ""
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            before = lines[number] or before
            number += 1
            continue
        start = number + 1
        end = next((n for n in range(start, len(lines)) if lines[n] == "```"), None)
        if end is None:
            raise ValueError(f"line {start}: this block does not end")
        said = NOT_RUN.match(before)
        yield Block(start, opening[1], "\n".join(lines[start:end]), said[1] if said else None)
        before, number = "", end + 1


def indented_commands(text: str) -> list[int]:
    """Return the numbers of lines that are commands in a block without a fence."""
    return [n for n, line in enumerate(text.splitlines(), 1) if INDENTED.match(line)]


def script_of(path: Path) -> str:
    """Return the blocks of a page that are run, one after another, as one script."""
    parts = ["set -eu"]
    for block in blocks_of(path.read_text()):
        if block.language == "sh" and block.reason is None:
            parts += [f"echo '== {path.name}, line {block.line}' >&2", block.text]
    return "\n".join(parts) + "\n"
