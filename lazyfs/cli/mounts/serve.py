"""``lazyfs serve``: a process that makes mounts without starting an interpreter for each."""

import gc
import hashlib
import importlib
import os
import socket
import ssl
from collections.abc import Sequence

import click

from lazyfs.cli.log import set_up_logging
from lazyfs.cli.options import default_runtime_dir
from lazyfs.service.processes.handover import CONTROL_SOCKET
from lazyfs.service.processes.systemd import notify, take_listener
from lazyfs.service.processes.warm import Client, WarmService, listening
from lazyfs.service.record import make_runtime_directory

# With these a mount imports nothing more, neither while it is made nor while it is served.
NEEDED = (
    "encodings.idna",  # names of hosts
    "tomllib",  # configuration of registries
    "lazyfs.cli.mounts.mount",
    "lazyfs.cli.mounts.mounting",
    "lazyfs.image.one_tree",
    "lazyfs.image.prepare",
    "lazyfs.registry.client",
    "lazyfs.registry.layout",
    "lazyfs.service.server",
)

# And with these one that is judged: only where a policy is in force when the process starts.
NEEDED_TO_JUDGE = (
    "lazyfs.signatures.rules",
    "lazyfs.trust.notation.signature",
    "lazyfs.trust.notation.stores",
    "lazyfs.trust.sigstore.checking",
    "lazyfs.trust.sigstore.material",
)


@click.command()
@click.option(
    "--idle-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after this time without a request.  [default: never]",
)
@click.pass_context
def serve(ctx: click.Context, idle_seconds: float | None) -> None:
    """Run a process that makes this user's later mounts faster.

    lazyfs mount finds it by itself, and works without it if it is not running.  It listens on the
    socket that systemd passes, or else on control.sock in the runtime directory.  SIGTERM ends it;
    its mounts stay.
    """
    set_up_logging(ctx.obj["verbosity"], as_json=ctx.obj["log_json"], is_server=True)
    environment = dict(os.environ)
    passed = take_listener(os.environ)
    if passed is not None:
        with passed:
            _serve(passed, environment, idle_seconds)
        return
    folder = default_runtime_dir()
    make_runtime_directory(folder)
    with listening(folder / CONTROL_SOCKET) as listener:
        _serve(listener, environment, idle_seconds)


def _serve(
    listener: socket.socket, environment: dict[str, str], idle_seconds: float | None
) -> None:
    for name in (*NEEDED, *(NEEDED_TO_JUDGE if is_judging(environment) else ())):
        importlib.import_module(name)
    # The first of each sets OpenSSL up, which would take every child 5 ms.
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    hashlib.new("sha256", b"", usedforsecurity=False)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it visits

    def say(text: str) -> None:
        notify(environment, f"STATUS={text}")

    service = WarmService(listener, do_handed_over, idle_seconds=idle_seconds, say=say)
    notify(environment, "READY=1")
    try:
        service.run()
    finally:
        notify(environment, "STOPPING=1")


def is_judging(environment: dict[str, str]) -> bool:
    """Say whether mounts will be judged by a policy; a faulty one is for the mounts to refuse."""
    from lazyfs.signatures.policies import policies_in_force
    from lazyfs.trust.errors import PolicyFault
    from lazyfs.trust.options import TrustOptions

    try:
        return bool(policies_in_force(TrustOptions(), environment))
    except PolicyFault:
        return False


def do_handed_over(words: Sequence[str], client: Client, prepared: bytes | None = None) -> int:
    """Do what the command line *words* of another process says, in its place.

    *prepared* is what that process has prepared for a mount already.
    """
    from lazyfs.cli.main import cli

    try:
        cli.main(words, prog_name="lazyfs", obj={"client": client, "prepared": prepared})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
