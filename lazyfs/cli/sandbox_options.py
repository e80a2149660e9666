"""Options that commands for sandboxes share."""

from collections.abc import Callable
from pathlib import Path

import click

from lazyfs.cli.options import Decorated


def wait_option(function: Decorated) -> Decorated:
    """Add ``--wait``: parameter ``wait``, seconds."""
    return click.option(
        "--wait",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="How long to wait for another command that works on the sandbox.",
    )(function)


def locked_option(function: Decorated) -> Decorated:
    """Add ``--locked``: parameter ``locked``, a path or None."""
    return click.option(
        "--locked",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Take what a lock file says that tags mean (lazyfs resolve --lockfile).",
    )(function)


def require_pinned_option(function: Decorated) -> Decorated:
    """Add ``--require-pinned``: parameter ``require_pinned``."""
    return click.option(
        "--require-pinned",
        is_flag=True,
        envvar="LAZYFS_REQUIRE_PINNED",
        show_envvar=True,
        help="Refuse references without a digest, and ask for nothing then.",
    )(function)


def program_option(text: str) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds ``--runsc`` with the help *text*: parameter ``program``."""
    return click.option(
        "--runsc", "program", type=click.Path(path_type=Path), metavar="PATH", help=text
    )


def secrets_option(text: str) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds ``--secrets`` with the help *text*: ``secret_file``."""
    return click.option(
        "--secrets",
        "--secret-env-file",
        "secret_file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help=text,
    )
