"""``lazyfs recover``: finish or roll back what a crash interrupted."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lazyfs.cli.options import cache_dir_option, default_state_dir, json_option
from lazyfs.cli.output import print_line
from lazyfs.cli.sandbox_options import wait_option
from lazyfs.errors import LazyfsError

if TYPE_CHECKING:
    from lazyfs.documents.journal import State
    from lazyfs.sandbox.sandbox import Sandbox


@click.command()
@click.argument("sandbox_id", metavar="[ID]", required=False)
@wait_option
@cache_dir_option
@json_option
def recover(sandbox_id: str | None, wait: float, cache_dir: Path, as_json: bool) -> int:
    """Finish or roll back commands that a crash interrupted, for the sandbox ID or for all.

    An interrupted snapshot is finished under the same id.  An interrupted start is rolled back.
    The mounts of a sandbox that has ended are released.  A running sandbox is left alone.
    """
    from lazyfs.cli.main import exit_code_of
    from lazyfs.documents.errors import Busy
    from lazyfs.sandbox.sandbox import Sandboxes

    sandboxes = Sandboxes(default_state_dir() / "sandboxes")
    wanted = sandboxes.all() if sandbox_id is None else [sandboxes.open(sandbox_id)]
    documents: list[dict[str, Any]] = []
    code = 0
    for sandbox in wanted:
        error: LazyfsError | None = None
        state: State | None = None
        try:
            state = recover_one(sandbox, cache_dir, wait=wait)
        except LazyfsError as exc:
            if sandbox_id is not None:
                raise
            error = exc
            if not isinstance(exc, Busy):  # somebody works on it: nothing to be recovered
                code = code or exit_code_of(exc)
        documents.append(
            {
                "id": sandbox.id,
                "state": None if state is None else str(state),
                "error": None
                if error is None
                else {"code": error.code, "message": error.message, "hint": error.hint},
            }
        )
    if as_json:
        click.echo(json.dumps({"sandboxes": documents}, indent=2))
        return code
    for each in documents:
        told = each["error"]["message"] if each["error"] else each["state"] or "gone"
        print_line(f"{each['id']}  {told}")
    return code


def recover_one(sandbox: "Sandbox", cache_dir: Path, *, wait: float = 0.0) -> "State | None":
    """Recover one sandbox: what each command on a sandbox does first."""
    from lazyfs.cli.sandboxes.sandbox_tools import tools_for_checkpoints
    from lazyfs.snapshot.recover import recover as work

    with sandbox.lock(wait):
        return work(sandbox, tools_for_checkpoints(cache_dir))
