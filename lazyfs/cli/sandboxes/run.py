"""``lazyfs run``: start a sandbox from a template or from one image."""

import json
import os
import re
import secrets as random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.access import access_options
from lazyfs.cli.confinement_options import confined, confinement_options
from lazyfs.cli.images.resolve import is_template
from lazyfs.cli.options import (
    cache_dir_option,
    default_state_dir,
    json_option,
    patience_option,
    platform_option,
)
from lazyfs.cli.output import print_line
from lazyfs.cli.sandbox_options import (
    locked_option,
    program_option,
    require_pinned_option,
    secrets_option,
    wait_option,
)
from lazyfs.cli.trust_options import trust_options
from lazyfs.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.documents.template import EnvVar, Template
    from lazyfs.registry.config.access import AccessOptions
    from lazyfs.sandbox.run import Order, Started, Tools

VARIABLE_RE = re.compile(r"[^=]+=.*", re.DOTALL)
ID_LENGTH = 54  # of a name, before a dash and 8 digits


@click.command()
@click.argument("source", metavar="TEMPLATE|IMAGE")
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1)
@click.option("--id", "sandbox_id", metavar="ID", help="Name of the sandbox.  [default: a new one]")
@click.option(
    "--runtime",
    default="",
    metavar="NAME",
    help="runsc, crun, runc, bwrap, or a path.  [default: the first of these that is installed]",
)
@program_option("The runsc program to use; implies --runtime runsc.")
@click.option(
    "--pull",
    type=click.Choice(["missing", "always", "never"]),
    default="missing",
    show_default=True,
    help="When to ask the registry which digest a tag points to. missing: if it is not known here.",
)
@locked_option
@require_pinned_option
@click.option(
    "--attach/--detach",
    "is_attached",
    default=None,
    help="Run on this terminal and remove the sandbox afterwards, or run in the background.  "
    "[default: attach for IMAGE, detach for TEMPLATE]",
)
@click.option(
    "--overlay",
    metavar="KIND",
    help="Where changed files are kept: root:memory, root:dir=/PATH, none.  [default: root:memory]",
)
@click.option(
    "--network",
    type=click.Choice(["none", "sandbox", "host"]),
    help="The network of the sandbox.  [default: none]",
)
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="An environment variable; only with IMAGE.",
)
@secrets_option("Values for the template's secretKeyRefs, as NAME: {KEY: VALUE}.")
@click.option(
    "--mount-option",
    "mount_words",
    multiple=True,
    metavar="OPTION",
    help="An option for -o of lazyfs mount: prefetch=, driver=, cache_size=, …",
)
@confinement_options
@click.option("--keep-failed", is_flag=True, help="Keep a sandbox that does not become ready.")
@patience_option
@wait_option
@cache_dir_option
@platform_option
@access_options
@trust_options
@json_option
def run(
    source: str,
    words: tuple[str, ...],
    sandbox_id: str | None,
    runtime: str,
    program: Path | None,
    pull: str,
    locked: Path | None,
    require_pinned: bool,
    is_attached: bool | None,
    overlay: str | None,
    network: str | None,
    variables: tuple[str, ...],
    secret_file: Path | None,
    mount_words: tuple[str, ...],
    keep_failed: bool,
    patience: str,
    wait: float,
    cache_dir: Path,
    platform: str | None,
    access: "AccessOptions",
    confinement: dict[str, tuple[str, ...]],
    as_json: bool,
) -> int:
    """Start a sandbox on lazily mounted images.

    TEMPLATE is a file whose name ends in .yaml, .yml or .json, or begins with / or ./ or ../.  The
    command prints the sandbox's id and returns when the sandbox is ready.  Anything else is an
    IMAGE, which is run on this terminal, as with docker run --rm.  Tags are resolved once: the
    sandbox and its snapshots keep using those digests.

    With IMAGE, Ctrl-C goes to the program; press it twice within a second to stop the sandbox.
    """
    from lazyfs.documents import template_reading as templates
    from lazyfs.documents.lockfile import apply_lock, load_lock
    from lazyfs.sandbox.run import Order, run_attached
    from lazyfs.sandbox.run import run as start
    from lazyfs.sandbox.specs.environment import load_secrets

    template = confined(_template_of(source, words, variables), confinement)
    if locked is not None:
        template = apply_lock(template, load_lock(locked))
    if require_pinned:
        templates.require_pinned(template, source if is_template(source) else "IMAGE")
    if is_attached is None:
        is_attached = not is_template(source)
    if is_attached and as_json:
        raise UsageError("option --json needs --detach")
    order = Order(
        template=template,
        sandbox_id=sandbox_id or _new_id(template.name),
        runtime=runtime or ("runsc" if program else ""),
        program=program,
        platform=platform,
        pull=pull,
        overlay=overlay,
        network=network,
        secrets=load_secrets(secret_file, os.environ),
        cache_dir=str(cache_dir),
        keep_failed=keep_failed and not is_attached,
        wait=wait,
    )
    _recover_first(order, cache_dir)
    tools = tools_for_runs(cache_dir, access, mount_words, patience)
    if is_attached:
        return run_attached(order, tools)
    _say(start(order, tools), as_json=as_json)
    return 0


def _template_of(source: str, words: tuple[str, ...], variables: tuple[str, ...]) -> "Template":
    from lazyfs.documents.template_reading import load_template, template_of_image

    if not is_template(source):
        return template_of_image(source, words, env=_environment(variables))
    for what, given in (("a command", words), ("--env", variables)):
        if given:
            raise UsageError(
                f"run {source}: {what} cannot be combined with a template; write it in there",
                hint="if an image of that name is meant, write its tag too",
            )
    return load_template(Path(source))


def _environment(variables: tuple[str, ...]) -> "list[EnvVar]":
    from lazyfs.documents.template import EnvVar

    found = []
    for text in variables:
        if VARIABLE_RE.fullmatch(text) is None:
            raise UsageError(f"option --env: {text[:80]!r} is not NAME=VALUE")
        name, _, value = text.partition("=")
        found.append(EnvVar(name=name, value=value))
    return found


def _new_id(name: str) -> str:
    """Return a new id for a sandbox of the template *name*."""
    stem = re.sub(r"[^a-z0-9]+", "-", name)[:ID_LENGTH].strip("-")
    return f"{stem}-{random.token_hex(4)}"


def _recover_first(order: "Order", cache_dir: Path) -> None:
    """Recover the sandbox of that id, if its command was killed."""
    from lazyfs.cli.sandboxes.recover import recover_one
    from lazyfs.sandbox.sandbox import Sandboxes, SandboxMissing

    try:
        sandbox = Sandboxes(default_state_dir() / "sandboxes").open(order.sandbox_id)
    except SandboxMissing:
        return
    recover_one(sandbox, cache_dir, wait=order.wait)


def tools_for_runs(
    cache_dir: Path, access: "AccessOptions", mount_words: tuple[str, ...], patience: str
) -> "Tools":
    """Return what a run works with."""
    from lazyfs.cli.sandboxes.mounter import bases_for_sandboxes
    from lazyfs.sandbox.privileges import rootless
    from lazyfs.sandbox.run import Tools
    from lazyfs.sandbox.runtimes.runtimes import Chooser
    from lazyfs.sandbox.sandbox import Sandboxes

    words = tuple(word for option in mount_words for word in ("-o", option))
    return Tools(
        sandboxes=Sandboxes(default_state_dir() / "sandboxes"),
        bases=bases_for_sandboxes(cache_dir, access, words, patience=patience),
        choose=Chooser(default_state_dir()),
        say=lambda line: print_line(f"lazyfs: {line}", err=True),
        rootless=rootless(),
    )


def _say(started: "Started", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_document(started), indent=2))
    else:
        print_line(started.sandbox.id)


def _document(started: "Started") -> dict[str, Any]:
    """Return the JSON form.  Fields: docs/reference/json.md."""
    return {
        "id": started.sandbox.id,
        "state": "RUNNING",
        "runtime": started.runtime.name,
        "logs": str(started.plan.log_dir),
        "images": [
            {
                "name": image.name,
                "originalRef": image.original_ref,
                "resolvedRef": image.resolved_ref,
                "resolvedAt": image.resolved_at,
                "pinned": image.pinned,
            }
            for image in started.images
        ],
    }
