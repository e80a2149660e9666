"""The facts that a manifest states about a sandbox, and where they come from.

The images are those on which the record of the start and the live mounts agree.  There is no other
source.
"""

import json
import os
import platform as machine
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from lazyfs import __version__
from lazyfs.documents.errors import BaseCorrupt, BaseUnresolved, DeadMount, RecordMissing
from lazyfs.documents.journal import Journal, SandboxBroken
from lazyfs.documents.manifest import Container, Image, Runtime, Snapshot, Template
from lazyfs.documents.own import read_own
from lazyfs.documents.plans import RuntimeFacts, SandboxPlan
from lazyfs.documents.record import (
    HEALTHY,
    RECORD_VERSION,
    BaseRecord,
    RecordedImage,
    adopted_image,
    compare_witnesses,
    is_sound,
    load_record,
    save_record,
)
from lazyfs.oci.platforms import platform_of_machine
from lazyfs.sandbox.bases import MOUNT_ID, Mounts
from lazyfs.sandbox.sandbox import Sandbox, utc_now
from lazyfs.sandbox.specs.bundle import load_bundle
from lazyfs.sandbox.specs.spec import spec_digest, spec_facts
from lazyfs.snapshot.draft import Draft, boot_id
from lazyfs.snapshot.extensions import (
    PROFILES,
    SPECS,
    TEMPLATE,
    TRUST,
    pack_profiles,
    trust_of,
    without_values,
)
from lazyfs.snapshot.gates import CLASSES, FULL

HEALTH = "user.lazyfs.health"
REQUESTED = "user.lazyfs.ref.requested"
UNKNOWN = "unknown"  # the health of a mount whose server has ended
TEMPLATE_FILE_LIMIT = 1 << 20  # bytes: the canonical form of what is at most a quarter of it
REBASED = "rebasedFrom"  # of a journal's notes


class Parts(msgspec.Struct, frozen=True):
    """A manifest to be, without its files."""

    snapshot: Snapshot
    images: tuple[Image, ...]
    runtime: Runtime
    host: dict[str, Any]
    extensions: dict[str, Any]

    def draft(self, raw: dict[str, int]) -> Draft:
        """Return the draft, now that the runtime's files are there."""
        return Draft(
            snapshot=self.snapshot,
            images=self.images,
            runtime=self.runtime,
            host=self.host,
            extensions=self.extensions,
            raw=raw,
            boot_id=boot_id(),
        )


def witnessed_images(
    sandbox: Sandbox,
    plan: SandboxPlan,
    mounts: Mounts,
    *,
    allow_dead_mount: bool,
    adopt: bool,
    embedded: Collection[str],
) -> tuple[Image, ...]:
    """Return the images that the record and the live mounts agree on.

    *adopt*: where there is no record, one is made of what the mounts say.  Raises BaseDrift,
    BaseCorrupt, BaseUnresolved, RecordMissing.
    """
    identities: dict[str, Mapping[str, str] | None] = {}
    for container in plan.containers:
        try:
            identities[container.name] = mounts.identity(sandbox.rootfs(container.name))
        except BaseUnresolved as exc:
            if not (isinstance(exc, DeadMount) or allow_dead_mount):
                raise
            identities[container.name] = None
    record = load_record(sandbox.record_path)
    if record is None and adopt:
        record = _adopted(sandbox, identities)
        save_record(sandbox.record_path, record)
    images = compare_witnesses(record, identities, allow_dead_mount=allow_dead_mount)
    return tuple(
        msgspec.structs.replace(image, embedded=True)
        if image.manifest_digest in embedded
        else image
        for image in images
    )


def _adopted(sandbox: Sandbox, identities: Mapping[str, Mapping[str, str] | None]) -> BaseRecord:
    """Return a record of what the mounts in the sandbox's own folder say they are."""
    images = []
    for name, attributes in identities.items():
        if attributes is None or MOUNT_ID not in attributes:
            raise RecordMissing(f"{name}: there is neither a record nor a live mount to adopt")
        image = adopted_image(name, attributes, attributes.get(REQUESTED, ""))
        mountpoint = str(sandbox.rootfs(name))
        images.append(RecordedImage(image, attributes[MOUNT_ID], mountpoint))
    return BaseRecord(RECORD_VERSION, sandbox.id, utc_now(), tuple(images))


def check_again(sandbox: Sandbox, plan: SandboxPlan, mounts: Mounts) -> None:
    """Raise BaseCorrupt if a mount met wrong bytes while the runtime was saving."""
    for container in plan.containers:
        try:
            attributes = mounts.identity(sandbox.rootfs(container.name))
        except BaseUnresolved:
            continue  # it was allowed to be dead, or died after the state was saved
        health = attributes.get(HEALTH, HEALTHY)
        if health.partition(":")[0] != UNKNOWN and not is_sound(health):
            raise BaseCorrupt(
                f"{container.name}: health of the mount after the checkpoint is {health}, "
                f"not {HEALTHY}",
                hint="read errors may be part of the saved state; no snapshot was made",
                details={"container": container.name, "health": health},
            )


def gather_parts(
    sandbox: Sandbox,
    journal: Journal,
    images: tuple[Image, ...],
    facts: RuntimeFacts,
    mounts: Mounts,
    extensions: Mapping[str, Any],
) -> Parts:
    """Return what the manifest says, as far as it is known before the runtime saves."""
    assert journal.snapshot_id is not None, "chosen before"
    system = os.uname()
    arch = platform_of_machine(system.sysname, system.machine).architecture
    template: Template | Any = UNSET
    if journal.template_digest:
        template = Template(name=journal.template_name, digest=journal.template_digest)
    snapshot = Snapshot(
        id=journal.snapshot_id,
        created_at=utc_now(),
        scope=FULL,
        role=journal.role,
        generation=journal.generation,
        parent=journal.parent,
        sandbox_id=sandbox.id,
        template=template,
        rebased_from=journal.notes.get(REBASED, UNSET),
    )
    specs = {each.name: load_bundle(sandbox.bundle(each.name)) for each in journal.containers}
    containers = tuple(
        Container(each.name, spec_digest(specs[each.name]), root=number == 0)
        for number, each in enumerate(journal.containers)
    )
    runtime = Runtime(
        class_=CLASSES.get(facts.name, facts.name),
        arch=arch,
        version=facts.version,
        binary_digest=facts.binary_digest or UNSET,
        platform=facts.platform or UNSET,
        overlay=journal.overlay,
        network=journal.network,
        flags=journal.flags,
        cpu_features=tuple(sorted(set(facts.cpu_features))),
        containers=tuple(sorted(containers, key=lambda each: each.name)),
    )
    host = {"kernel": machine.release(), "tool": f"lazyfs {__version__}"}
    facts_of_specs = {name: spec_facts(spec) for name, spec in specs.items()}
    added = _extensions(sandbox, images, mounts) | {SPECS: facts_of_specs} | dict(extensions)
    trust = _trust(sandbox, images, mounts)
    if trust:
        added[TRUST] = trust
    return Parts(snapshot, images, runtime, host, added)


def _trust(sandbox: Sandbox, images: tuple[Image, ...], mounts: Mounts) -> dict[str, Any]:
    """Return manifest digest → what was found out about who signed it, as its mount says."""
    found = {}
    for image in images:
        try:
            said = trust_of(mounts.identity(sandbox.rootfs(image.name)))
        except BaseUnresolved:
            continue  # it was allowed to be dead
        if said:
            found[image.manifest_digest] = said
    return found


def _extensions(sandbox: Sandbox, images: tuple[Image, ...], mounts: Mounts) -> dict[str, Any]:
    extensions: dict[str, Any] = {}
    try:
        extensions[TEMPLATE] = without_values(
            json.loads(read_own(sandbox.template_path, TEMPLATE_FILE_LIMIT))
        )
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as exc:
        raise SandboxBroken(f"{sandbox.template_path} is not a valid template: {exc}") from exc
    digests = {image.manifest_digest for image in images}
    found = {digest: mounts.profile(digest) for digest in sorted(digests)}
    packed = pack_profiles({digest: data for digest, data in found.items() if data is not None})
    if packed:
        extensions[PROFILES] = packed
    return extensions
