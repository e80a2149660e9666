"""Restores: a sandbox that is resumed from a snapshot, on exactly the images it was made on.

    review  →  RESTORING  →  mounts, compared  ∥  files, verified  →  the runtime  →  RUNNING

A tag is never resolved.  Nothing is downloaded before the gates; whatever fails before the runtime
is called leaves nothing, and what fails after it is ended and removed, too.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import UnsetType
from msgspec.structs import replace

from lazyfs.documents.errors import (
    BaseCorrupt,
    BaseUnavailable,
    Interrupted,
    NotReady,
    SnapshotError,
)
from lazyfs.documents.journal import (
    Journal,
    State,
)
from lazyfs.documents.manifest import Image, Parent
from lazyfs.documents.record import (
    RECORD_VERSION,
    BaseRecord,
    RecordedImage,
    save_record,
)
from lazyfs.documents.security import limits_of
from lazyfs.documents.template import SecretKey
from lazyfs.errors import LazyfsError
from lazyfs.interrupts import uninterrupted
from lazyfs.oci.platforms import Platform
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
from lazyfs.sandbox.runtimes.logs import forget_logs
from lazyfs.sandbox.runtimes.runtime import Choose, Runtime
from lazyfs.sandbox.sandbox import (
    Sandbox,
    Sandboxes,
    SandboxExists,
    SandboxMissing,
    sync_path,
    utc_now,
    write_whole,
)
from lazyfs.sandbox.specs.bundle import write_bundle
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.sandbox.specs.spec import Rootless, diff_specs, spec_digest, start_as_before
from lazyfs.sandbox.threads import Threads, wait_all
from lazyfs.snapshot import gates
from lazyfs.snapshot.evidence import REBASED
from lazyfs.snapshot.extensions import specs_of, unpack_profiles
from lazyfs.snapshot.resuming import resume
from lazyfs.snapshot.review import Review, Wanted, review
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.objects import ObjectStore
from lazyfs.snapshot.stores.snapshots import Snapshots
from lazyfs.snapshot.stores.stoppable import Stoppable

Say = Callable[[str], None]
Mounted = tuple[dict[str, Base], tuple[RecordedImage, ...]]  # by container; and the mounts
RESUMABLE = (State.STOPPED, State.FAILED)
BASE = "base"  # of a sandbox's folder: images that were embedded beside the snapshot
RESTORED = ("bundles", BASE, "restores", "runtime", "base-record.json")  # what a restore makes


class Order(msgspec.Struct, frozen=True):
    """What is wanted: a snapshot as ``wanted`` says, going on as sandbox ``sandbox_id``.

    ``files``: a folder that has the snapshot's files already, verified; they are linked.
    """

    wanted: Wanted
    sandbox_id: str
    s3_endpoint: str | None = None
    check_drift: bool = False
    allow_partial: bool = False
    keep_failed: bool = False
    cache_dir: str = ""
    files: Path | None = None
    secrets: Mapping[SecretKey, str] = msgspec.field(default_factory=dict)
    wait: float = 0.0


class Tools(msgspec.Struct, frozen=True):
    """What a restore works with; ``say`` gets a line for the user."""

    sandboxes: Sandboxes
    snapshots: Snapshots
    bases: Bases
    choose: Choose
    host: Platform
    say: Say
    rootless: Rootless | None = None


class Restored(msgspec.Struct, frozen=True):
    """A sandbox that runs; container → digest of the manifest that its tag names now."""

    sandbox: Sandbox
    review: Review
    images: tuple[Image, ...]
    notices: tuple[str, ...]
    drift: Mapping[str, str]


def restore(order: Order, tools: Tools) -> Restored:
    """Restore a snapshot as a new sandbox, or as one that has stopped.

    Raises the reasons of ``review``; SandboxExists; BaseUnavailable, BaseCorrupt, BaseDrift;
    FileMissing, FileCorrupt, NoSpace; SpecMismatch; RuntimeFailed, NotReady.
    """
    with tools.bases.ready():
        return _start(order, tools)


def _start(order: Order, tools: Tools) -> Restored:
    _check_free(tools.sandboxes, order.sandbox_id)
    wanted = replace(order.wanted, sandbox_id=order.sandbox_id)
    found = review(wanted, tools.snapshots, tools.bases, tools.choose, tools.host)
    notices = list(found.notices)
    for notice in notices:
        tools.say(notice)
    drift = _drift(found, tools) if order.check_drift else {}
    with uninterrupted() as held, ExitStack() as stack:
        sandbox, is_new = tools.sandboxes.claim(order.sandbox_id, order.wait, held, stack)
        if not is_new:
            _check_state(sandbox)
        try:
            with held.opened():
                images = _restore(sandbox, order, found, tools, notices)
        except BaseException as error:
            keeps = order.keep_failed and isinstance(error, NotReady)
            _undo(sandbox, found.runtime, tools.bases, error, is_new=is_new, keeps=keeps)
            raise
    return Restored(sandbox, found, images, tuple(notices), drift)


def _check_free(sandboxes: Sandboxes, sandbox_id: str) -> None:
    """Raise SandboxExists, before anything else is done, for an id that cannot be had."""
    try:
        sandbox = sandboxes.open(sandbox_id)
    except SandboxMissing:
        return
    _check_state(sandbox)


def _check_state(sandbox: Sandbox) -> None:
    journal = sandbox.journal()
    if journal is None or journal.state not in RESUMABLE:
        state = "being made" if journal is None else f"{journal.state}"
        raise SandboxExists(
            f"sandbox {sandbox.id} already exists and is {state}",
            hint=f"choose another id with --id, or remove it with lazyfs delete {sandbox.id}",
        )


def _drift(found: Review, tools: Tools) -> dict[str, str]:
    """Tell which tags name other manifests now; a registry that cannot be asked is no reason."""
    try:
        drift = tools.bases.drift(found.manifest.images)
    except LazyfsError as error:
        tools.say(f"drift: {error.message}")
        return {}
    for image in found.manifest.images:
        if image.name in drift:
            tools.say(
                f"{image.name}: {image.original_ref} now names {drift[image.name]}; "
                f"the snapshot uses {image.manifest_digest}"
            )
    return drift


def _restore(
    sandbox: Sandbox, order: Order, found: Review, tools: Tools, notices: list[str]
) -> tuple[Image, ...]:
    """Do it, in a sandbox whose lock is held; return its images."""
    sandbox.clear("checkpoints", sandbox.draft_path.name, *RESTORED)
    journal = _begin(sandbox, order, found, tools.snapshots.objects.url)
    plan = sandbox.plan(journal)
    is_rootless = tools.rootless is not None
    confine(found.template.security, plan, found.facts.name, tools.say, is_rootless=is_rootless)
    files = sandbox.restore_dir(found.loaded.id)
    bases, mounted = _bring(sandbox, order, found, tools, files)
    journal = _note_rebase(sandbox, journal, order, found)
    configs = {name: base.config for name, base in bases.items()}
    specs = build_specs(
        sandbox,
        plan,
        found.template,
        configs,
        found.facts.name,
        secrets=order.secrets,
        rootless=tools.rootless,
    )
    notices += _check_specs(found, order, specs, tools.say)
    for container in plan.containers:
        write_bundle(container.bundle, specs[container.name])
    images = _record(sandbox, found, mounted)
    write_whole(sandbox.template_path, msgspec.json.encode(found.template.to_document()))
    with Threads(1) as pool:
        # Whoever comes after a crash finds them already; after one of the machine nothing runs.
        syncing = pool.submit(_sync, sandbox)
        wait_read = resume(found.runtime, plan, files, found.manifest)
        syncing.result()
    wait_ready(found.template, found.runtime, plan)
    sandbox.step(journal, State.RUNNING)
    wait_read()
    sandbox.clear("restores")
    return images


def _begin(sandbox: Sandbox, order: Order, found: Review, store: str) -> Journal:
    manifest = found.manifest
    is_known = bool(found.loaded.digest)  # a manifest that was made up is nobody's parent
    parent = Parent(id=found.loaded.id, manifest_digest=found.loaded.digest, location=store)
    template = manifest.snapshot.template
    if isinstance(template, UnsetType) or order.wanted.template is not None:
        name, digest = found.template.name, found.template.digest
    else:
        name, digest = template.name, template.digest
    return sandbox.begin(
        State.RESTORING,
        made_by=found.facts,
        containers=journal_containers(sandbox, found.template),
        overlay=found.overlay,
        network=found.network,
        flags=found.flags,
        limits=limits_of(found.template.resources, found.template.logs),
        cache_dir=order.cache_dir,
        template_name=name,
        template_digest=digest,
        generation=manifest.snapshot.generation + 1 if is_known else 1,
        parent=parent if is_known else None,
        snapshot_id=found.loaded.id,
        store_url=store,
        s3_endpoint=order.s3_endpoint,
    )


def _bring(sandbox: Sandbox, order: Order, found: Review, tools: Tools, files: Path) -> Mounted:
    """Mount the images and download the files, side by side; end both when one fails."""
    stoppable = Stoppable(tools.snapshots.objects)
    snapshots = Snapshots(cast(ObjectStore, stoppable))
    with local_errors(files, "make"):
        files.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Threads(1) as pool:
        try:
            if order.files is not None:
                downloading = pool.submit(link_files, order.files, files)
            else:
                downloading = pool.submit(snapshots.download, found.loaded, files)
            mounted = _mount(sandbox, order, found, tools)
            wait_all([downloading])
            downloading.result()
        except BaseException:
            stoppable.stop()
            raise
    return mounted


def link_files(source: Path, target: Path) -> None:
    """Have a folder with the files of another one; they are read only from then on."""
    with local_errors(target, "make"):
        target.mkdir(mode=0o700)
        for path in source.iterdir():
            (target / path.name).hardlink_to(path)


def _mount(sandbox: Sandbox, order: Order, found: Review, tools: Tools) -> Mounted:
    """Mount the recorded images, by digest, and compare what the mounts say they are."""
    _pin(sandbox, order, [image.manifest_digest for image in found.manifest.images], tools)
    bases = _obtain(sandbox, order, found, tools)
    _pin(sandbox, order, [base.image.manifest_digest for base in bases.values()], tools)
    digests = sorted({base.image.manifest_digest for base in bases.values()})
    for digest, profile in unpack_profiles(found.manifest.extensions or {}, digests).items():
        tools.bases.add_profile(digest, profile)
    for base in bases.values():
        if base.note is not None:
            tools.say(base.note)
    return bases, mount_all(sandbox, bases.values(), tools.bases)


def _pin(sandbox: Sandbox, order: Order, manifests: Sequence[str], tools: Tools) -> None:
    pin_images(sandbox.folder, order.cache_dir, manifests, tools.say)


def _obtain(sandbox: Sandbox, order: Order, found: Review, tools: Tools) -> dict[str, Base]:
    wanted = order.wanted
    if found.is_data and (wanted.rebase is not None or wanted.template is not None):
        # What lies in files only goes on with any image.
        references = dict.fromkeys(found.template.images, wanted.rebase)
        if wanted.rebase is None:
            references = dict(found.template.images)
        resolved = tools.bases.resolve(
            cast(Mapping[str, str], references), platform=None, pull="missing"
        )
        for image in found.manifest.images:
            base = resolved[image.name]
            if base.image.manifest_digest != image.manifest_digest:
                tools.say(
                    f"{image.name}: the data was saved with {image.resolved_ref}; it is now "
                    "used with "
                    f"{base.image.resolved_ref}"
                )
        return resolved
    obtained = _obtain_recorded(sandbox, order, found, tools)
    recorded = {image.name: image for image in found.manifest.images}
    return {name: replace(base, image=recorded[name]) for name, base in obtained.items()}


def _obtain_recorded(
    sandbox: Sandbox, order: Order, found: Review, tools: Tools
) -> dict[str, Base]:
    """Find the recorded images; those beside the snapshot are copied only if nobody has them."""
    images = found.manifest.images
    scratch = sandbox.folder / BASE  # what is mounted may be read from it as long as it is
    if isinstance(tools.snapshots.objects, DirectoryStore):
        embedded = tools.snapshots.embedded(found.loaded, scratch)
        return tools.bases.obtain(images, embedded=embedded, allow_partial=order.allow_partial)
    has_embedded = any(image.embedded is True for image in images)
    try:
        return tools.bases.obtain(
            images, embedded=None, allow_partial=order.allow_partial and not has_embedded
        )
    except (BaseUnavailable, BaseCorrupt):
        if not has_embedded:
            raise
    embedded = tools.snapshots.embedded(found.loaded, scratch)
    return tools.bases.obtain(images, embedded=embedded, allow_partial=order.allow_partial)


def _note_rebase(sandbox: Sandbox, journal: Journal, order: Order, found: Review) -> Journal:
    if order.wanted.rebase is None:
        return journal
    before = found.manifest.images[0].resolved_ref
    return sandbox.save(msgspec.structs.replace(journal, notes=journal.notes | {REBASED: before}))


def _check_specs(
    found: Review, order: Order, specs: Mapping[str, dict[str, Any]], say: Say
) -> list[str]:
    """Raise SpecMismatch unless containers are started as those were that were checkpointed."""
    before = specs_of(found.manifest.extensions or {})
    notices = []
    for name in sorted(before.keys() & specs.keys()):
        is_wanted = specs[name]["process"]["noNewPrivileges"]
        start_as_before(specs[name], before[name])
        if is_wanted and not specs[name]["process"]["noNewPrivileges"]:
            notices.append(
                f"{name}: the snapshot was made without noNewPrivileges, so its programs may gain "
                "privileges by set-user-id files; a fresh run closes that"
            )
    differences = {
        name: [str(each) for each in diff_specs(before[name], spec)]
        for name, spec in specs.items()
        if name in before
    }
    digests = {name: spec_digest(spec) for name, spec in specs.items()}
    notices += gates.check_specs(found.manifest, digests, differences, order.wanted.allowed)
    for notice in notices:
        say(notice)
    return notices


def _record(sandbox: Sandbox, found: Review, mounted: Sequence[RecordedImage]) -> tuple[Image, ...]:
    """Write down which images the sandbox goes on with: as recorded, whatever tags mean now."""
    recorded = []
    for each in mounted:
        image = each.image
        if image.source != "assumed" and not found.is_data:
            image = replace(image, source="inherited", embedded=msgspec.UNSET)
        recorded.append(replace(each, image=image))
    record = BaseRecord(RECORD_VERSION, sandbox.id, utc_now(), tuple(recorded))
    save_record(sandbox.record_path, record, is_synced=False)
    return tuple(each.image for each in recorded)


def _sync(sandbox: Sandbox) -> None:
    for path in (sandbox.record_path, sandbox.template_path, sandbox.folder):
        sync_path(path)


def _undo(
    sandbox: Sandbox,
    runtime: Runtime,
    bases: Bases,
    error: BaseException,
    *,
    is_new: bool,
    keeps: bool,
) -> None:
    """Leave nothing of a restore that failed; a sandbox that was there before stays, FAILED."""
    journal = sandbox.journal()
    if journal is not None and journal.state is State.RESTORING:
        if keeps:
            sandbox.fail(journal, cast(Exception, error))
            return
        end(sandbox, sandbox.plan(journal), runtime, bases)
        sandbox.clear(*RESTORED)
        if not is_new:
            reason = error if isinstance(error, SnapshotError) else Interrupted(repr(error))
            with suppress(LazyfsError):
                sandbox.fail(journal, reason)
    if is_new and (journal is None or journal.state is State.RESTORING):
        sandbox.remove()
        forget_logs(sandbox.log_dir, error)
