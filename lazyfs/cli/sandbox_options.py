"""Options that commands for sandboxes and snapshots share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyfs.cli.options import Decorated
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.snapshot.grants import Grant


def wait_option(function: Decorated) -> Decorated:
    """Add ``--wait``: parameter ``wait``, seconds."""
    return click.option(
        "--wait",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="How long to wait for another command that is using the sandbox.",
    )(function)


def locked_option(function: Decorated) -> Decorated:
    """Add ``--locked``: parameter ``locked``, a path or None."""
    return click.option(
        "--locked",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Use the digests in this lock file (see `lazyfs resolve --lockfile`).",
    )(function)


def require_pinned_option(function: Decorated) -> Decorated:
    """Add ``--require-pinned``: parameter ``require_pinned``."""
    return click.option(
        "--require-pinned",
        is_flag=True,
        envvar="LAZYFS_REQUIRE_PINNED",
        show_envvar=True,
        help="Refuse references without a digest, before contacting any registry.",
    )(function)


def template_option(function: Decorated) -> Decorated:
    """Add ``--template``: parameter ``template``, a path or None."""
    return click.option(
        "--template",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Start from this template; the images are still the snapshot's.",
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


def _grants(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> "list[Grant]":
    if not words:
        return []
    from lazyfs.snapshot.grants import parse_grant

    return [parse_grant(word, "--allow") for word in words]


def permission_options(function: Decorated) -> Decorated:
    """Add ``--allow`` and ``--restore-policy``: ``grants``, a list, and ``policy_file``."""
    allow = click.option(
        "--allow",
        "grants",
        multiple=True,
        callback=_grants,
        metavar="KIND=VALUE",
        help="Allow what the snapshot asks of this machine, as the refusal spells it: "
        "host-path=/srv/data:ro, capability=NET_ADMIN, network=host, …",
    )
    policy = click.option(
        "--restore-policy",
        "policy_file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="A file with such permissions for many snapshots.  "
        "[default: /etc/lazyfs/restore-policy.yaml and ~/.config/lazyfs/restore-policy.yaml]",
    )
    return allow(policy(function))


def _digest(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    from lazyfs.snapshot.stores.pointers import DIGEST_RE

    if text is not None and DIGEST_RE.fullmatch(text) is None:
        raise UsageError(
            f"option --manifest-digest: {text[:100]!r} is not sha256: and 64 hexadecimal digits",
            hint="`lazyfs checkpoint` and `lazyfs snapshot show` print it",
        )
    return text


def manifest_digest_option(function: Decorated) -> Decorated:
    """Add ``--manifest-digest``: parameter ``manifest_digest``, a digest's text or None."""
    return click.option(
        "--manifest-digest",
        metavar="DIGEST",
        callback=_digest,
        help="Accept the snapshot only if its manifest has this digest.",
    )(function)
