"""What a restore finds out before it downloads anything: the manifest, the gates, the template."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import UnsetType

from lazyfs.oci.platforms import Platform
from lazyfs.snapshot import gates
from lazyfs.snapshot.bases import Bases
from lazyfs.snapshot.errors import ManifestMissing, SpecMismatch, Unsupported
from lazyfs.snapshot.extensions import template_of
from lazyfs.snapshot.gates import DATA, Allowed, BadRestoreOption
from lazyfs.snapshot.legacy import assume
from lazyfs.snapshot.manifest import Manifest
from lazyfs.snapshot.runtime import Choose, Runtime, RuntimeFacts
from lazyfs.snapshot.snapshots import Loaded, Snapshots
from lazyfs.snapshot.template import Template, template_of_document

RUNTIME = "runsc"  # the only one whose state can be kept
DATA_ABILITY = "fscheckpoint"
NOTHING = Allowed()


class Wanted(msgspec.Struct, frozen=True):
    """What is wanted of a restore.

    ``name`` is the snapshot's id, or a pointer's after "@".  ``template`` is what is to be run
    now, where that is not simply what was; ``assumed`` container → pinned reference, for a
    snapshot that has no manifest; with ``trusts_template`` those of a pinned template are taken.
    """

    name: str
    template: Template | None = None
    assumed: Mapping[str, str] = msgspec.field(default_factory=dict)
    trusts_template: bool = False
    runtime_path: Path | None = None
    allowed: Allowed = NOTHING
    rebase: str | None = None


class Review(msgspec.Struct, frozen=True):
    """A snapshot that passed the gates.  ``recorded`` is the template that it has in it."""

    loaded: Loaded
    template: Template
    recorded: Template | None
    runtime: Runtime
    facts: RuntimeFacts
    notices: tuple[str, ...]

    @property
    def manifest(self) -> Manifest:
        """The snapshot's manifest."""
        return self.loaded.manifest

    @property
    def is_data(self) -> bool:
        """Say whether it has no memory, so that any base will do."""
        return self.manifest.snapshot.scope == DATA

    @property
    def file_size(self) -> int:
        """Bytes of all files that are to be downloaded."""
        return sum(file.stored_size for file in self.manifest.files)

    @property
    def image_size(self) -> int:
        """Bytes of all layers: at most so much is fetched, as it is read."""
        layers = {each.digest: each.size for i in self.manifest.images for each in i.layers}
        return sum(layers.values())


def review(
    wanted: Wanted, snapshots: Snapshots, bases: Bases, choose: Choose, host: Platform
) -> Review:
    """Return what is to be restored; raise why it cannot be.

    Only the manifest is read; but all of a snapshot that has none and is assumed.
    """
    loaded = _load(wanted, snapshots, bases, host)
    manifest = loaded.manifest
    gates.check_portable(manifest, host)
    gates.check_rebase(manifest, wanted.rebase)
    recorded = _recorded_template(manifest)
    template = wanted.template or recorded
    if template is None:
        raise SpecMismatch(
            f"snapshot {loaded.id}: got no template in it, expected one",
            hint="name the template that it was made with: --template FILE",
        )
    gates.check_containers(manifest, template.images, what=f"template {template.name}")
    notices = gates.image_differences(manifest, template.images)
    runtime, facts = _runtime(manifest, wanted, choose)
    notices += gates.check_host(manifest, facts, host, wanted.allowed)
    return Review(loaded, template, recorded, runtime, facts, tuple(notices))


def _load(wanted: Wanted, snapshots: Snapshots, bases: Bases, host: Platform) -> Loaded:
    assumed = dict(wanted.assumed)
    if wanted.trusts_template and wanted.template is not None:
        assumed = dict(wanted.template.images) | assumed
    try:
        loaded = snapshots.load(wanted.name)
    except ManifestMissing:
        if not assumed or wanted.name.startswith("@"):
            raise
        return assume(snapshots, wanted.name, assumed, bases, host, template=wanted.template)
    if wanted.assumed:
        raise BadRestoreOption(
            f"--assume-image: got snapshot {loaded.id}, which has a manifest, expected none",
            hint="restore it without: its images are recorded",
        )
    return loaded


def _recorded_template(manifest: Manifest) -> Template | None:
    document = template_of(manifest.extensions or {})
    return None if document is None else template_of_document(document, what="recorded template")


def _runtime(manifest: Manifest, wanted: Wanted, choose: Choose) -> tuple[Runtime, RuntimeFacts]:
    """Return the runtime that made the snapshot, wherever it is kept, and what it can do."""
    digest = None
    recorded = manifest.runtime.binary_digest
    is_bound = manifest.snapshot.scope == gates.FULL and wanted.runtime_path is None
    if is_bound and not wanted.allowed.runtime and not isinstance(recorded, UnsetType):
        digest = recorded
    runtime = choose(RUNTIME, path=wanted.runtime_path, digest=digest)
    facts = runtime.probe()
    needed = DATA_ABILITY if manifest.snapshot.scope == DATA else "restore"
    if needed not in facts.abilities:
        raise Unsupported(
            f"runtime {facts.path} {facts.version}: got no {needed}, expected it for a snapshot "
            f"of scope {manifest.snapshot.scope}",
            hint="name a newer program with --runsc PATH",
            details={"ability": needed},
        )
    return runtime, facts
