"""Options for reaching registries, the same for every command that does."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lazyfs.cli.options import OptionalValue
from lazyfs.errors import UsageError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

ARGUMENTS_START, ARGUMENTS_END = 45, 46  # of the fields after the name in /proc/pid/stat
PASSWORD_LIMIT = 64 << 10


class BadCredentials(UsageError):
    """``--creds`` has no user, or no password was given."""


def _absolute(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    return None if value is None else value.absolute()


def _login(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, str] | None:
    """Return user and password of ``--creds``; ask for the password that is not there."""
    if value is None or ctx.resilient_parsing:
        return None
    user, colon, password = value.partition(":")
    if colon:
        hide_argument(value, keep=len(user) + 1)
    if not user:
        raise BadCredentials("option --creds has no user", hint="--creds USER[:PASSWORD]")
    return user, password if colon else _ask_password(user)


def _ask_password(user: str) -> str:
    """Ask on the terminal, or read a line where there is none."""
    if sys.stdin.isatty():
        asked: str = click.prompt(f"Password for {user}", hide_input=True, err=True)
        return asked
    password = sys.stdin.readline(PASSWORD_LIMIT).rstrip("\r\n")
    if not password:
        raise BadCredentials(
            f"standard input has no password for {user}",
            hint="run the command on a terminal, or pipe the password into it",
        )
    return password


def with_password(words: list[str]) -> list[str]:
    """Return *words* with the password that ``--creds`` leaves out, for a process that cannot ask.

    What stands in this process's own arguments is hidden.  What is wrong with the words is for
    whoever parses them.  Raises KeyboardInterrupt.
    """
    result = list(words)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name != "--creds":
            continue
        if not equals:
            number, value = number + 1, "".join(words[number + 1 : number + 2])
        user, colon, _ = value.partition(":")
        if colon:
            hide_argument(word if equals else value, keep=len(word) - len(value) if equals else 0)
        elif user:
            try:
                password = _ask_password(user)
            except click.Abort as exc:
                raise KeyboardInterrupt from exc
            except BadCredentials:
                return words
            result[number] = f"{name}=" * bool(equals) + f"{user}:{password}"
    return result


def hide_argument(word: str, *, keep: int) -> None:
    """Overwrite what follows the first *keep* characters of *word* in this process's arguments.

    ``ps`` and /proc show the arguments to every user for as long as a process lives, and a
    server forked from this one would show them for the life of its mount.  The memory is our own;
    where the kernel does not say where it is, nothing is done.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[ARGUMENTS_START]), int(fields[ARGUMENTS_END])
    except (OSError, IndexError, ValueError):
        return
    if not 0 < start < end:
        return
    import ctypes

    shown = ctypes.string_at(start, end - start)
    secret = os.fsencode(word)
    kept = len(os.fsencode(word[:keep]))
    position = shown.find(secret)
    while position >= 0:
        ctypes.memset(start + position + kept, ord("x"), len(secret) - kept)
        position = shown.find(secret, position + len(secret))


OPTIONS = (
    click.option(
        "--plain-http",
        is_flag=True,
        help="Use http. For loopback addresses http is tried first anyway, then https.",
    ),
    click.option(
        "--insecure-skip-verify",
        is_flag=True,
        help="Do not check the registry's TLS certificate. Contents are still verified.",
    ),
    click.option(
        "--tls-verify",
        cls=OptionalValue,
        bare="true",
        type=bool,
        default=True,
        metavar="[=true|false]",
        help="=false means --insecure-skip-verify, as in podman and skopeo.",
    ),
    click.option(
        "--cert-dir",
        type=click.Path(path_type=Path),
        callback=_absolute,
        metavar="PATH",
        help="Directory with the registry's certificates: CA.crt, and NAME.cert with NAME.key.",
    ),
    click.option(
        "--hosts-dir",
        type=click.Path(path_type=Path),
        callback=_absolute,
        metavar="PATH",
        help="Directory like containerd's certs.d, searched before the others.",
    ),
    click.option(
        "--authfile",
        type=click.Path(path_type=Path),
        callback=_absolute,
        metavar="PATH",
        help="File with credentials, as docker and podman write it.",
    ),
    click.option(
        "--creds",
        callback=_login,
        metavar="USER[:PASSWORD]",
        help="Registry credentials. Without a password: prompt, or read one line from standard "
        "input.",
    ),
    click.option("--anonymous", "--no-creds", is_flag=True, help="Use no credentials."),
    click.option(
        "--offline",
        is_flag=True,
        help="Contact no registry; use the digest last seen for a tag.",
    ),
)


def access_options(function: Decorated) -> Decorated:
    """Add the options; the function gets what they mean as *access*, an ``AccessOptions``."""

    @functools.wraps(function)
    def command(
        *args: Any,
        plain_http: bool,
        insecure_skip_verify: bool,
        tls_verify: bool,
        cert_dir: Path | None,
        hosts_dir: Path | None,
        authfile: Path | None,
        creds: tuple[str, str] | None,
        anonymous: bool,
        offline: bool,
        **rest: Any,
    ) -> Any:
        from lazyfs.registry.config.access import AccessOptions

        if anonymous and (creds or authfile):
            raise UsageError("--anonymous cannot be combined with --creds or --authfile")
        access = AccessOptions(
            authfile=authfile,
            plain_http=plain_http,
            is_verified=tls_verify and not insecure_skip_verify,
            cert_dir=cert_dir,
            hosts_dir=hosts_dir,
            login=creds,
            is_anonymous=anonymous,
            is_offline=offline,
            environment=dict(os.environ),
        )
        return function(*args, access=access, **rest)

    decorated: Any = command
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
