"""Recovery of a sandbox whose command was killed, or whose machine crashed.

    STARTING, RESTORING   ended and released  →  FAILED
    RUNNING               as it is while it lives; else released  →  FAILED
    CHECKPOINTING …       continued: see ``checkpoint.resume``
    STOPPED, FAILED       what is left of processes and mounts is released

All of it can be done again.  The sandbox's lock is held.
"""

from pathlib import Path

from lazyfs.documents.errors import (
    Interrupted,
    RuntimeFailed,
    RuntimeMismatch,
    SnapshotError,
    Unsupported,
)
from lazyfs.documents.journal import Journal, SandboxBroken, State
from lazyfs.documents.record import remove_record
from lazyfs.errors import LazyfsError, UsageError
from lazyfs.sandbox.containers import end
from lazyfs.sandbox.runtimes.runtime import Choose, ContainerState, Runtime
from lazyfs.sandbox.sandbox import Sandbox
from lazyfs.snapshot.checkpoint import INTERRUPTED, Tools, resume

RESTS = ("bundles", "restores", "runtime")
ALIVE = (ContainerState.CREATED, ContainerState.RUNNING, ContainerState.PAUSED)


class RuntimeDied(SnapshotError):
    """The sandbox's processes have ended by themselves, or with the machine."""

    code = "E_RUNTIME_DIED"
    exit_code = 51


class InUse(UsageError):
    """The sandbox runs, or has a snapshot that is not complete."""

    code = "E_IN_USE"


def runtime_of(journal: Journal, choose: Choose) -> Runtime | None:
    """Return the runtime that has a sandbox; None where none was chosen yet.

    Raises Unsupported where its program is gone.
    """
    made = journal.runtime
    if made is None:
        return None
    path, digest = Path(made.path), made.binary_digest or None
    # The program may have been replaced since: what runs can be ended by another one, too.
    for its_path, its_digest in ((path, digest), (None, digest), (path, None)):
        try:
            return choose(made.name, path=its_path, digest=its_digest)
        except (RuntimeMismatch, RuntimeFailed, Unsupported):
            continue
    return choose(made.name, path=None, digest=None)


def is_alive(sandbox: Sandbox, journal: Journal, runtime: Runtime) -> bool:
    """Say whether the sandbox's root container lives."""
    plan = sandbox.plan(journal)
    return runtime.states(plan).get(plan.root.name) in ALIVE


def recover(sandbox: Sandbox, tools: Tools) -> State | None:
    """Bring a sandbox into a state in which nobody works on it; return that, None if it is gone.

    Raises what ``resume`` raises; Unsupported where its runtime's program is gone.
    """
    journal = sandbox.journal()
    if journal is None:
        sandbox.remove()  # its first command died before it had begun
        return None
    if journal.state in INTERRUPTED:
        resume(sandbox, tools)
        after = sandbox.journal()
        return None if after is None else after.state
    runtime = runtime_of(journal, tools.choose)
    if journal.state is State.RUNNING:
        if runtime is not None and is_alive(sandbox, journal, runtime):
            return State.RUNNING
        return _give_up(
            sandbox,
            journal,
            runtime,
            tools,
            RuntimeDied(f"sandbox {sandbox.id}: its processes have ended"),
        )
    if journal.state in (State.STARTING, State.RESTORING):
        error = Interrupted(f"sandbox {sandbox.id} was {journal.state} when its command died")
        return _give_up(sandbox, journal, runtime, tools, error)
    if journal.state is State.FAILED:
        _release(sandbox, journal, runtime, tools)
    return journal.state


def delete(sandbox: Sandbox, tools: Tools, *, force: bool) -> None:
    """Remove a sandbox with all that it has.

    Raises InUse for one that runs, or whose snapshot is not complete, unless *force*.
    """
    try:
        journal = sandbox.journal()
    except SandboxBroken as exc:
        if not force:
            hint = exc.hint or f"lazyfs delete --force {sandbox.id} removes what is left"
            raise SandboxBroken(exc.message, hint=hint) from exc
        journal = None  # what runs is not known; what is mounted is not removed
    if journal is None:
        sandbox.remove()
        return
    try:
        runtime = runtime_of(journal, tools.choose)
    except LazyfsError:
        if not force:
            raise
        runtime = None
    if not force:
        _check_idle(sandbox, journal, runtime)
    _release(sandbox, journal, runtime, tools)
    remove_record(sandbox.record_path)
    sandbox.remove()


def _check_idle(sandbox: Sandbox, journal: Journal, runtime: Runtime | None) -> None:
    if journal.state in INTERRUPTED:
        raise InUse(
            f"sandbox {sandbox.id} has a snapshot that is not complete ({journal.state})",
            hint=f"complete it with lazyfs recover {sandbox.id}, or abandon it with --force",
        )
    if runtime is not None and is_alive(sandbox, journal, runtime):
        raise InUse(
            f"sandbox {sandbox.id} is running",
            hint=f"lazyfs delete --force {sandbox.id} kills it",
        )


def _give_up(
    sandbox: Sandbox, journal: Journal, runtime: Runtime | None, tools: Tools, error: SnapshotError
) -> State:
    _release(sandbox, journal, runtime, tools)
    if journal.state in (State.STARTING, State.RESTORING):
        remove_record(sandbox.record_path)  # of a start that never was
    sandbox.fail(journal, error)
    tools.say(error.message)
    return State.FAILED


def _release(sandbox: Sandbox, journal: Journal, runtime: Runtime | None, tools: Tools) -> None:
    """End processes and mounts, as far as there are any."""
    if journal.containers:
        plan = sandbox.plan(journal)
        if runtime is not None:
            end(sandbox, plan, runtime, tools.mounts)
        else:
            for container in plan.containers:
                tools.mounts.unmount(sandbox.rootfs(container.name))
    sandbox.clear(*RESTS)
