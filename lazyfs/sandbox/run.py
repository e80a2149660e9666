"""Runs: starting a sandbox on images whose tags are resolved once; the digests are recorded.

    STARTING  →  resolved  →  mounted side by side, compared  →  bundles  →  record  →  RUNNING

The record of what was mounted is on the disk before a process starts.  Whatever fails leaves no
process, no mount, no record and no folder.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import cast

import msgspec

from lazyfs.documents.errors import Interrupted, NotReady
from lazyfs.documents.journal import (
    DEFAULT_NETWORK,
    DEFAULT_OVERLAY,
    Journal,
    State,
)
from lazyfs.documents.manifest import Image
from lazyfs.documents.plans import SandboxPlan
from lazyfs.documents.record import (
    RECORD_VERSION,
    BaseRecord,
    remove_record,
    save_record,
)
from lazyfs.documents.security import limits_of
from lazyfs.documents.template import SecretKey, Template
from lazyfs.errors import LazyfsError
from lazyfs.interrupts import uninterrupted
from lazyfs.sandbox.bases import Base, Bases
from lazyfs.sandbox.containers import (
    build_specs,
    confine,
    end,
    journal_containers,
    mount_all,
    wait_ready,
)
from lazyfs.sandbox.pinning import pin_images
from lazyfs.sandbox.runtimes.logs import forget_logs, last_lines
from lazyfs.sandbox.runtimes.runtime import Choose, Runtime
from lazyfs.sandbox.sandbox import (
    Sandbox,
    Sandboxes,
    SandboxExists,
    utc_now,
    write_durably,
)
from lazyfs.sandbox.specs.bundle import write_bundle
from lazyfs.sandbox.specs.spec import Rootless

Say = Callable[[str], None]
RESTARTABLE = (None, State.STOPPED, State.FAILED)
MADE = ("bundles", "runtime", "restores", "template.json", "base-record.json")  # by a run
AFTER_SECONDS = 30.0  # for another command to let go of a sandbox whose process has ended


class Order(msgspec.Struct, frozen=True):
    """What is wanted: *template* as sandbox ``sandbox_id``.

    ``runtime``, ``overlay`` and ``network`` come before what the template says.  ``pull`` is
    "missing", "always" or "never".  ``cache_dir`` is written down for later commands.
    """

    template: Template
    sandbox_id: str
    runtime: str = ""
    program: Path | None = None
    platform: str | None = None
    pull: str = "missing"
    overlay: str | None = None
    network: str | None = None
    secrets: Mapping[SecretKey, str] = msgspec.field(default_factory=dict)
    cache_dir: str = ""
    keep_failed: bool = False
    wait: float = 0.0


class Tools(msgspec.Struct, frozen=True):
    """What a run works with; ``say`` gets a line for the user."""

    sandboxes: Sandboxes
    bases: Bases
    choose: Choose
    say: Say
    rootless: Rootless | None = None


class Started(msgspec.Struct, frozen=True):
    """A sandbox that runs, or is about to on the terminal."""

    sandbox: Sandbox
    plan: SandboxPlan
    runtime: Runtime
    images: tuple[Image, ...]


def run(order: Order, tools: Tools) -> Started:
    """Start a sandbox in the background; return when it is ready.

    Raises SandboxExists, Busy, Unsupported, TemplateInvalid; TagUnresolvable, BaseUnavailable,
    BaseCorrupt, PlatformMismatch, BaseDrift; RuntimeFailed, NotReady.
    """
    with uninterrupted() as held:
        return _run(order, tools, held, is_attached=False)


def run_attached(order: Order, tools: Tools) -> int:
    """Run a sandbox of one container on this terminal; return its exit status.

    Nothing of it is left, but for a checkpoint that another command has begun meanwhile.
    """
    with uninterrupted() as held:
        started = _run(order, tools, held, is_attached=True)
        sandbox = started.sandbox
        try:
            # Not under the lock: others may checkpoint it.
            return started.runtime.run_attached(started.plan)
        finally:
            with suppress(LazyfsError), sandbox.lock(AFTER_SECONDS):
                journal = sandbox.journal()
                if journal is not None and journal.state is State.RUNNING:
                    end(sandbox, started.plan, started.runtime, tools.bases)
                    remove_record(sandbox.record_path)
                    sandbox.remove()


def _run(order: Order, tools: Tools, held: uninterrupted, *, is_attached: bool) -> Started:
    with tools.bases.ready(), ExitStack() as stack:
        sandbox, is_new = tools.sandboxes.claim(order.sandbox_id, order.wait, held, stack)
        if not is_new:
            _check_state(sandbox)
        attempt = _Attempt(sandbox, order, tools)
        try:
            with held.opened():
                return attempt.make(is_attached=is_attached)
        except BaseException as error:
            attempt.undo(error, is_new=is_new)
            raise


def _check_state(sandbox: Sandbox) -> None:
    journal = sandbox.journal()
    state = None if journal is None else journal.state
    if state not in RESTARTABLE:
        raise SandboxExists(
            f"sandbox {sandbox.id} already exists and is {state}",
            hint=f"choose another id with --id, or remove it with lazyfs delete {sandbox.id}",
        )


class _Attempt:
    """One start of a sandbox whose lock is held."""

    def __init__(self, sandbox: Sandbox, order: Order, tools: Tools) -> None:
        self._sandbox = sandbox
        self._order = order
        self._tools = tools
        self._runtime: Runtime | None = None

    def make(self, *, is_attached: bool) -> Started:
        """Do it all; an attached sandbox is ready to be run then."""
        sandbox, order, tools = self._sandbox, self._order, self._tools
        template = order.template
        remove_record(sandbox.record_path)  # what an earlier life was started on
        sandbox.clear(*MADE, "checkpoints", sandbox.draft_path.name)
        journal = self._begin()
        runtime = self._runtime = tools.choose(
            order.runtime or template.runtime.name or "", path=order.program, digest=None
        )
        facts = runtime.probe()
        journal = sandbox.save(journal.with_runtime(facts))
        plan = sandbox.plan(journal)
        is_rootless = tools.rootless is not None
        confine(template.security, plan, facts.name, tools.say, is_rootless=is_rootless)
        bases = tools.bases.resolve(
            template.images, platform=order.platform or template.platform, pull=order.pull
        )
        for base in bases.values():
            tools.say(locked_line(base.image))
            if base.note is not None:
                tools.say(base.note)
        digests = [base.image.manifest_digest for base in bases.values()]
        pin_images(sandbox.folder, order.cache_dir, digests, tools.say)
        record = self._mount(bases)
        configs = {name: base.config for name, base in bases.items()}
        specs = build_specs(
            sandbox,
            plan,
            template,
            configs,
            facts.name,
            secrets=order.secrets,
            rootless=tools.rootless,
        )
        for container in plan.containers:
            write_bundle(container.bundle, specs[container.name])
        write_durably(sandbox.template_path, msgspec.json.encode(template.to_document()))
        save_record(sandbox.record_path, record)
        if not is_attached:
            runtime.start(plan)
            self._wait_ready(plan)
        sandbox.step(journal, State.RUNNING)
        images = tuple(each.image for each in record.images)
        return Started(sandbox, plan, runtime, images)

    def _begin(self) -> Journal:
        sandbox, template = self._sandbox, self._order.template
        options = template.runtime
        return sandbox.begin(
            State.STARTING,
            containers=journal_containers(sandbox, template),
            overlay=self._order.overlay or options.overlay or DEFAULT_OVERLAY,
            network=self._order.network or options.network or DEFAULT_NETWORK,
            flags=options.flags,
            limits=limits_of(template.resources, template.logs),
            cache_dir=self._order.cache_dir,
            template_name=template.name,
            template_digest=template.digest,
        )

    def _mount(self, bases: Mapping[str, Base]) -> BaseRecord:
        """Mount all images side by side; return what the mounts say they are."""
        recorded = mount_all(self._sandbox, bases.values(), self._tools.bases)
        return BaseRecord(RECORD_VERSION, self._sandbox.id, utc_now(), recorded)

    def _wait_ready(self, plan: SandboxPlan) -> None:
        assert self._runtime is not None, "it has started the sandbox"
        try:
            wait_ready(self._order.template, self._runtime, plan)
        except NotReady as error:
            name = str(error.details.get("container", plan.root.name))
            said = last_lines(plan.log_dir / f"{name}.log", 0)
            if not said:
                raise
            message = f"{error.message}; its output ends with: {said}"
            raise NotReady(message, hint=error.hint, details=error.details) from error

    def undo(self, error: BaseException, *, is_new: bool) -> None:
        """Leave nothing of a start that failed; a sandbox that was there before stays, FAILED."""
        sandbox = self._sandbox
        journal = sandbox.journal()
        has_begun = journal is not None and journal.state in (State.STARTING, State.RUNNING)
        if journal is not None and has_begun:
            if self._order.keep_failed and isinstance(error, NotReady):
                sandbox.fail(journal, error)
                return
            plan = sandbox.plan(journal)
            if self._runtime is not None:
                end(sandbox, plan, self._runtime, self._tools.bases)
            remove_record(sandbox.record_path)
            sandbox.clear(*MADE)
        if is_new:
            sandbox.remove()
            forget_logs(sandbox.log_dir, error)
        elif journal is not None and has_begun:
            reason = error if isinstance(error, LazyfsError) else Interrupted(repr(error))
            sandbox.fail(journal, cast(Exception, reason))


def locked_line(image: Image) -> str:
    """Return what is said of an image: what the user wrote, and what that is from now on."""
    what = "pinned" if image.pinned else "recorded"
    return (
        f"{image.name}: {image.original_ref} -> {image.resolved_ref} ({image.platform}), {what} "
        "for this sandbox and its snapshots"
    )
