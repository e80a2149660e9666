"""Options that several commands share, and their defaults."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lazyfs.cli.directories import cache_directory, runtime_directory, state_directory
from lazyfs.cli.request import DEFAULT_PATIENCE

if TYPE_CHECKING:
    from lazyfs.store.upkeep.budget import Budget

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class OptionalValue(click.Option):
    """An option that has a value only as ``--name=value``; alone it means *bare*.

    As pflag has it, by which podman and skopeo read their words: the word after the option is
    never its value.
    """

    def __init__(self, *args: Any, bare: str, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._bare = bare

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Give the option the value that it has without one; click asks for the next word."""
        super().add_to_parser(parser, ctx)
        match = parser._match_long_opt

        def match_here(opt: str, value: str | None, state: Any) -> None:
            if opt in self.opts:
                if value == "":  # of a variable that is not set; click takes it for false
                    raise click.BadOptionUsage(opt, f"Option {opt!r} has no value after '='.", ctx)
                value = self._bare if value is None else value
            match(opt, value, state)

        parser._match_long_opt = match_here


def _path_option(name: str, default: Callable[[], Path] | None, text: str) -> Any:
    def absolute(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        if value is None:
            return None if default is None else default()
        return value.absolute()

    return click.option(
        name, type=click.Path(path_type=Path), callback=absolute, metavar="PATH", help=text
    )


def default_cache_dir() -> Path:
    """Return the cache directory of this user."""
    return Path(cache_directory(os.environ, os.geteuid()))


def default_state_dir() -> Path:
    """Return the state directory of this user."""
    return Path(state_directory(os.environ, os.geteuid()))


def default_runtime_dir() -> Path:
    """Return the runtime directory of this user."""
    return Path(runtime_directory(os.environ, os.geteuid()))


def cache_dir_option(function: Decorated) -> Decorated:
    """Add ``--cache-dir``: parameter ``cache_dir``, an absolute path."""
    text = (
        "The cache directory.  [default: $LAZYFS_CACHE_DIR, else ~/.cache/lazyfs, or for root "
        "/var/cache/lazyfs]"
    )
    decorated: Decorated = _path_option("--cache-dir", default_cache_dir, text)(function)
    return decorated


def cache_size_option(*names: str) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds ``--cache-size``: parameter ``cache_size``, a ``Budget``.

    *names* are others for it.
    """

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> "Budget":
        from lazyfs.cli.quantities import parse_budget

        return parse_budget(value)

    return click.option(
        "--cache-size",
        *names,
        "cache_size",
        envvar="LAZYFS_CACHE_SIZE",
        show_envvar=True,
        default="20%",
        show_default=True,
        callback=parse,
        metavar="SIZE",
        help="Size limit of the cache: 512MiB, 10GB, or a share of its filesystem.",
    )


def s3_endpoint_option(function: Decorated) -> Decorated:
    """Add ``--s3-endpoint``: parameter ``s3_endpoint``, None for Amazon's."""
    return click.option(
        "--s3-endpoint",
        metavar="URL",
        help="The S3 service of s3://… stores.  [default: $AWS_ENDPOINT_URL, else Amazon's]",
    )(function)


def platform_option(function: Decorated) -> Decorated:
    """Add ``--platform``: parameter ``platform``, None for this machine's."""
    return click.option(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="The platform.  [default: this machine's]"
    )(function)


VERIFY_MODES = ("toc", "blob")


def verify_option(function: Decorated) -> Decorated:
    """Add ``--verify``: parameter ``verify_mode``, one of VERIFY_MODES."""
    return click.option(
        "--verify",
        "verify_mode",
        type=click.Choice(VERIFY_MODES),
        default="toc",
        show_default=True,
        help="How to verify a layer's table of contents (TOC). toc: the manifest states the TOC's "
        "digest. blob: download and hash the whole layer first if it does not.",
    )(function)


def index_option(function: Decorated) -> Decorated:
    """Add ``--index``: parameter ``pinned``, the text of a digest or None."""
    return click.option(
        "--index",
        "pinned",
        metavar="DIGEST",
        help="Use this index for plain layers, a digest that `lazyfs index push` printed.  "
        "[default: download them whole, once]",
    )(function)


def patience_option(function: Decorated) -> Decorated:
    """Add ``--patience``: parameter ``patience``, the text of a duration, which is checked."""

    def check(ctx: click.Context, param: click.Parameter, value: str) -> str:
        from lazyfs.cli.quantities import parse_duration

        parse_duration(value)
        return value

    return click.option(
        "--patience",
        envvar="LAZYFS_PATIENCE",
        show_envvar=True,
        default=DEFAULT_PATIENCE,
        show_default=True,
        callback=check,
        metavar="DURATION",
        help="How long reads wait for a registry that is away, throttles or stalls, before they "
        "fail: 90s, 10m, 24h; 0 fails them at once.  Preparing the image gives up after 5 tries, "
        "none begun more than 60 s after the first failure.",
    )(function)


def json_option(function: Decorated) -> Decorated:
    """Add ``--json``: parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
