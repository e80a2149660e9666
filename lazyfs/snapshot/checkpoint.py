"""Checkpoints: a running sandbox saved as a snapshot, on what its own mounts say they are.

    gates  →  CHECKPOINTING  →  the runtime saves  →  draft  →  UPLOADING  →  COMMITTED  →  STOPPED

No tag is resolved: this module and all that it imports cannot contact a registry.  The
snapshot's id is in the journal before anything is written, so that a command that continues after
a crash completes the same snapshot.  A sandbox that is to keep running is restored from the local
files as soon as they are complete, while they are still being compressed and uploaded.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from lazyfs.documents.errors import (
    BaseCorrupt,
    CheckpointLost,
    RuntimeFailed,
    RuntimeMismatch,
    SnapshotError,
    Unsupported,
)
from lazyfs.documents.journal import Journal, SandboxBroken, State
from lazyfs.documents.manifest import Parent
from lazyfs.documents.manifest_json import check_unfinished
from lazyfs.documents.plans import SandboxPlan
from lazyfs.documents.record import remove_record
from lazyfs.errors import UsageError
from lazyfs.sandbox.bases import Mounts
from lazyfs.sandbox.containers import end
from lazyfs.sandbox.runtimes.runtime import Choose, ContainerState, Runtime
from lazyfs.sandbox.sandbox import Sandbox
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.snapshot.draft import (
    IMAGE,
    Draft,
    TornDraft,
    boot_id,
    list_files,
    load_draft,
    save_draft,
)
from lazyfs.snapshot.evidence import Parts, check_again, gather_parts, witnessed_images
from lazyfs.snapshot.publish import (
    POINTER_BEFORE,
    Made,
    PointerLost,
    Say,
    check_writable,
    note_pointer,
    publish,
)
from lazyfs.snapshot.stores.keys import manifest_key
from lazyfs.snapshot.stores.objects import ObjectMissing, ObjectStore
from lazyfs.snapshot.stores.snapshots import new_id
from lazyfs.snapshot.stores.stores import open_objects

ALIVE = (ContainerState.RUNNING, ContainerState.PAUSED, ContainerState.CREATED)
INTERRUPTED = (State.CHECKPOINTING, State.UPLOADING, State.COMMITTED)
LOCAL = ("checkpoints", "restores")  # of a sandbox's folder: what a snapshot is made from, or was


class NotRunning(SnapshotError, UsageError):
    """The sandbox is in a state in which it cannot be checkpointed."""

    code = "E_NOT_RUNNING"
    exit_code = 2


class Order(msgspec.Struct, frozen=True):
    """What is wanted of a checkpoint.

    ``store`` is the store's URL; ``pointer`` a name to move there; ``compress`` "zstd", "auto" or
    "none"; ``role`` "instance" or "golden"; ``embedded`` the manifests that are beside the
    snapshots by now; ``extensions`` are added to the manifest.
    """

    store: str
    s3_endpoint: str | None = None
    snapshot_id: str | None = None
    pointer: str | None = None
    compress: str = "zstd"
    role: str = "instance"
    leave_running: bool = False
    allow_dead_mount: bool = False
    adopt: bool = False
    embedded: frozenset[str] = frozenset()
    extensions: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Tools(msgspec.Struct, frozen=True):
    """What a checkpoint works with; ``say`` gets a line for the user."""

    mounts: Mounts
    choose: Choose
    objects: Callable[[str, str | None], ObjectStore]
    say: Say


def open_store(url: str, s3_endpoint: str | None) -> ObjectStore:
    """Return the store of a URL, as ``Tools.objects`` wants it."""
    return open_objects(url, s3_endpoint=s3_endpoint)


def checkpoint(sandbox: Sandbox, order: Order, tools: Tools, *, wait: float = 0.0) -> Made:
    """Save *sandbox* as a snapshot; it is stopped then, or resumed if the order says so.

    Raises Busy, NotRunning; BaseDrift, BaseCorrupt, BaseUnresolved, RecordMissing, after which
    the sandbox runs as before; RuntimeFailed; what ``publish`` raises.
    """
    with sandbox.lock(wait):
        journal = _running(sandbox)
        plan = sandbox.plan(journal)
        runtime = _runtime_of(journal, tools.choose)
        facts = runtime.probe()
        if "checkpoint" not in facts.abilities:
            raise Unsupported(
                f"runtime {facts.name} {facts.version} cannot checkpoint",
                hint="start the sandbox with --runtime runsc",
            )
        images = witnessed_images(
            sandbox,
            plan,
            tools.mounts,
            allow_dead_mount=order.allow_dead_mount,
            adopt=order.adopt,
            embedded=order.embedded,
        )
        objects = tools.objects(order.store, order.s3_endpoint)
        before = note_pointer(objects, order.pointer)
        snapshot_id = order.snapshot_id or new_id()
        with suppress(ObjectMissing):  # what refuses to be read is told before the sandbox ends
            objects.get(manifest_key(snapshot_id), 0)
        check_writable(objects, snapshot_id)  # and what refuses to be written
        planned = msgspec.structs.replace(
            journal.with_runtime(facts),
            snapshot_id=snapshot_id,
            store_url=objects.url,  # absolute: who goes on may be elsewhere
            s3_endpoint=order.s3_endpoint,
            pointer=order.pointer,
            role=order.role,
            compress=order.compress,
            embed=bool(order.embedded),
            leave_running=order.leave_running,
            allow_dead_mount=order.allow_dead_mount,
            error=None,
            notes=journal.notes | {POINTER_BEFORE: None} | before,
        )
        parts = gather_parts(sandbox, planned, images, facts, tools.mounts, order.extensions)
        journal = sandbox.step(planned, State.CHECKPOINTING)
        draft = _save(sandbox, journal, runtime, plan, parts)
        return _go_on(sandbox, journal, draft, runtime, plan, tools)


def resume(
    sandbox: Sandbox, tools: Tools, *, store: str | None = None, pointer: str | None = None
) -> Made | None:
    """Continue a checkpoint that a crash, or a failing store, interrupted; the lock is held.

    *store* and *pointer* are others than were wanted first.  Returns None where the sandbox had not
    been saved and runs as before.  Raises CheckpointLost, after which the sandbox has failed, and
    what ``checkpoint`` raises.
    """
    journal = sandbox.journal()
    if journal is None or journal.state not in INTERRUPTED:
        raise _not_running(sandbox, journal, "in an interrupted checkpoint")
    plan = sandbox.plan(journal)
    runtime = _runtime_of(journal, tools.choose)
    draft = _draft_of(sandbox, journal)
    if draft is not None and not _is_of(draft, journal):
        draft = None
    if draft is None:
        if journal.state is State.CHECKPOINTING and _is_alive(runtime, plan):
            sandbox.clear(*LOCAL, sandbox.draft_path.name)
            sandbox.step(journal, State.RUNNING)
            return None
        error = CheckpointLost(
            f"sandbox {sandbox.id} has ended, and its checkpoint is incomplete",
            hint="the previous snapshot is still the latest; lazyfs delete removes what is left",
            details={"snapshot": journal.snapshot_id},
        )
        sandbox.fail(journal, error)
        raise error
    store, pointer = store or journal.store_url, pointer or journal.pointer
    is_other = (store, pointer) != (journal.store_url, journal.pointer)
    if store is not None and is_other and journal.state is not State.COMMITTED:
        objects = tools.objects(store, journal.s3_endpoint)
        notes = journal.notes | {POINTER_BEFORE: None} | note_pointer(objects, pointer)
        journal = sandbox.save(
            msgspec.structs.replace(journal, store_url=objects.url, pointer=pointer, notes=notes),
        )
    return _go_on(sandbox, journal, draft, runtime, plan, tools)


def _draft_of(sandbox: Sandbox, journal: Journal) -> Draft | None:
    """Return the draft, None if there is none, or what a loss of power has left of one.

    It is not synced before the files are compressed.
    """
    try:
        return load_draft(sandbox)
    except TornDraft:
        if journal.state is not State.CHECKPOINTING:
            raise
        return None


def _running(sandbox: Sandbox) -> Journal:
    journal = sandbox.journal()
    if journal is None or journal.state is not State.RUNNING:
        raise _not_running(sandbox, journal, State.RUNNING)
    return journal


def _not_running(sandbox: Sandbox, journal: Journal | None, expected: str) -> NotRunning:
    got = "has no journal" if journal is None else f"is {journal.state}"
    hint = None
    if journal is not None and journal.state in INTERRUPTED:
        hint = f"lazyfs checkpoint {sandbox.id} --continue completes its checkpoint"
    return NotRunning(f"sandbox {sandbox.id} {got}, not {expected}", hint=hint)


def _runtime_of(journal: Journal, choose: Choose) -> Runtime:
    made = journal.runtime
    if made is None:
        raise SandboxBroken(f"sandbox {journal.sandbox_id}: its journal names no runtime")
    digest = made.binary_digest or None
    try:
        return choose(made.name, path=Path(made.path), digest=digest)
    except (RuntimeMismatch, Unsupported):  # the program was replaced since
        return choose(made.name, path=None, digest=digest)


def _is_alive(runtime: Runtime, plan: SandboxPlan) -> bool:
    return runtime.states(plan).get(plan.root.name) in ALIVE


def _is_of(draft: Draft, journal: Journal) -> bool:
    """Say whether a draft is that of the journal's snapshot, and its files can be believed.

    Until they are compressed they are on the disk only once the kernel has written them.
    """
    is_whole = bool(draft.files) or draft.boot_id == boot_id()
    return draft.snapshot.id == journal.snapshot_id and is_whole


def _save(
    sandbox: Sandbox, journal: Journal, runtime: Runtime, plan: SandboxPlan, parts: Parts
) -> Draft:
    """Have the runtime save the sandbox; return the draft, which is on the disk by then."""
    assert journal.snapshot_id is not None, "chosen a moment ago"
    sandbox.clear(*LOCAL, sandbox.draft_path.name)
    image = sandbox.checkpoint_dir(journal.snapshot_id) / IMAGE
    with local_errors(image, "make"):
        image.mkdir(mode=0o700, parents=True)
    try:
        check_unfinished(parts.draft({}).manifest())
        runtime.checkpoint(plan, image)
        raw = list_files(image)
    except SnapshotError as error:
        if _is_alive(runtime, plan):
            sandbox.clear(*LOCAL)
            sandbox.step(journal, State.RUNNING)
        else:
            sandbox.fail(journal, error)
        raise
    return save_draft(sandbox, parts.draft(raw))


def _go_on(
    sandbox: Sandbox,
    journal: Journal,
    draft: Draft,
    runtime: Runtime,
    plan: SandboxPlan,
    tools: Tools,
) -> Made:
    """Complete a checkpoint whose draft is there."""
    if not draft.files:
        try:
            check_again(sandbox, plan, tools.mounts)
        except BaseCorrupt as error:
            _take_back(sandbox, journal, draft, runtime, plan, error)
            raise
    failure: SnapshotError | None = None
    wait_read = _nothing
    if journal.leave_running and not draft.is_restarted:
        try:
            draft, wait_read = _restart(sandbox, journal, draft, runtime, plan)
            tools.say(f"{sandbox.id}: resumed")
        except SnapshotError as error:
            failure = error  # the snapshot can still be completed
    assert journal.store_url is not None, "written with the snapshot's id"
    objects = tools.objects(journal.store_url, journal.s3_endpoint)
    try:
        made = publish(sandbox, journal, draft, objects)
    except PointerLost as lost:
        wait_read()
        _leave(sandbox, lost.made, runtime, plan, tools)
        raise
    wait_read()
    made = _leave(sandbox, made, runtime, plan, tools)
    if failure is not None:
        raise RuntimeFailed(
            f"sandbox {sandbox.id} could not be resumed: {failure.message}",
            hint=f"snapshot {made.id} is complete: lazyfs restore {made.location} --id …",
            details={"snapshot": made.id},
        ) from failure
    return made


def _restart(
    sandbox: Sandbox, journal: Journal, draft: Draft, runtime: Runtime, plan: SandboxPlan
) -> tuple[Draft, Callable[[], None]]:
    """Start a sandbox again from the files that the runtime has just written.

    Returns also a wait for when they are not needed more.
    """
    assert journal.snapshot_id is not None, "written before the files"
    wait_read: Callable[[], None] = _nothing
    if not _is_alive(runtime, plan):
        runtime.delete(plan)
        wait_read = runtime.restore(plan, sandbox.checkpoint_dir(journal.snapshot_id) / IMAGE)
    return save_draft(sandbox, msgspec.structs.replace(draft, is_restarted=True)), wait_read


def _nothing() -> None:
    """Stand in for a wait where nothing is to be waited for."""


def _take_back(
    sandbox: Sandbox,
    journal: Journal,
    draft: Draft,
    runtime: Runtime,
    plan: SandboxPlan,
    error: SnapshotError,
) -> None:
    """Let a sandbox go on of which there is to be no snapshot; fail it where it cannot."""
    try:
        _, wait_read = _restart(sandbox, journal, draft, runtime, plan)
        wait_read()
    except SnapshotError:
        sandbox.fail(journal, error)
        return
    sandbox.step(journal, State.RUNNING)
    sandbox.clear(*LOCAL, sandbox.draft_path.name)


def _leave(sandbox: Sandbox, made: Made, runtime: Runtime, plan: SandboxPlan, tools: Tools) -> Made:
    """End the sandbox, or let it go on, after its snapshot was committed."""
    journal = sandbox.journal()
    assert journal is not None, "it says COMMITTED"
    parent = Parent(id=made.id, manifest_digest=made.manifest_digest, location=made.store)
    changes = {"parent": parent, "generation": made.manifest.snapshot.generation + 1}
    state = State.STOPPED
    if journal.leave_running and _is_alive(runtime, plan):
        state = State.RUNNING
    else:
        end(sandbox, plan, runtime, tools.mounts)
        sandbox.clear("bundles", "runtime", "base")
    sandbox.clear(*LOCAL)
    sandbox.step(journal, state, **changes)
    sandbox.clear(sandbox.draft_path.name)
    if state is State.STOPPED:
        remove_record(sandbox.record_path)
    return replace(made, state=state)
