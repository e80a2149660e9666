"""Progress on standard error."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from lazyfs.cli.options import Decorated
from lazyfs.cli.output import print_line

MODES = ("auto", "plain", "none")
PLAIN_SECONDS = 10.0

Advance = Callable[[int], None]


def progress_option(function: Decorated) -> Decorated:
    """Add ``--progress``: parameter ``progress``."""
    decorated: Decorated = click.option(
        "--progress",
        type=click.Choice(MODES),
        default="auto",
        show_default=True,
        help="auto: a bar if standard error is a terminal, else plain. plain: a line every ten "
        "seconds. none: nothing.",
    )(function)
    return decorated


@contextmanager
def show_progress(mode: str, what: str, total: int) -> Iterator[Advance]:
    """Show how many of *total* bytes have passed; the function that is given counts them."""
    if mode == "none":
        yield lambda size: None
    elif mode == "plain" or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines(what, total).advance
    else:
        with _bar(what, total) as advance:
            yield advance


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._next = time.monotonic() + PLAIN_SECONDS

    def advance(self, size: int) -> None:
        """Count; say so when it is time."""
        self._done += size
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_SECONDS
            print_line(f"{self._what}: {self._done} of {self._total} bytes", err=True)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda size: shown.advance(task, size)
