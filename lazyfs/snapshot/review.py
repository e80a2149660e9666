"""What a restore finds out before it downloads anything: the manifest, the gates, the template."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from lazyfs.documents.documents import quote
from lazyfs.documents.errors import (
    ManifestInvalid,
    ManifestMissing,
    OtherManifest,
    SpecMismatch,
    Unsupported,
)
from lazyfs.documents.journal import DEFAULT_OVERLAY
from lazyfs.documents.manifest import MANIFEST_NAME, Manifest
from lazyfs.documents.plans import RuntimeFacts
from lazyfs.documents.template import Template
from lazyfs.documents.template_reading import template_of_document
from lazyfs.oci.platforms import Platform
from lazyfs.sandbox.bases import Bases
from lazyfs.sandbox.runtimes.runtime import Choose, Runtime
from lazyfs.snapshot import gates
from lazyfs.snapshot.extensions import specs_of, template_of
from lazyfs.snapshot.gates import DATA, Allowed, BadRestoreOption
from lazyfs.snapshot.grants import (
    OWN_TEMPLATE,
    Grant,
    Granted,
    decide,
    grants_of,
    resolved_overlay,
    resolved_template,
)
from lazyfs.snapshot.legacy import assume
from lazyfs.snapshot.requests import (
    Request,
    network_of,
    requests_of_runtime,
    requests_of_template,
)
from lazyfs.snapshot.restore_policy import Policy, spelled_store
from lazyfs.snapshot.stores.snapshots import Loaded, Snapshots

RUNTIME = "runsc"  # the only one whose state can be kept
DATA_ABILITY = "fscheckpoint"
NOTHING = Allowed()
NO_POLICY = Policy((), is_named=False)


class Wanted(msgspec.Struct, frozen=True):
    """What is wanted of a restore.

    ``name`` is the snapshot's id, or a pointer's after "@".  ``template`` is what is to be run
    now, where that is not simply what was: the restoring user's own word.  ``assumed`` container →
    pinned reference, for a snapshot that has no manifest; with ``trusts_template`` those of a
    pinned template are taken.  ``grants`` and ``policy`` say what the snapshot may ask for, and
    ``manifest_digest``, where it is given, which manifest the snapshot has to have.  ``sandbox_id``
    is what it is to go on as, "" where that is not known.
    """

    name: str
    template: Template | None = None
    assumed: Mapping[str, str] = msgspec.field(default_factory=dict)
    trusts_template: bool = False
    runtime_path: Path | None = None
    allowed: Allowed = NOTHING
    rebase: str | None = None
    grants: tuple[Grant, ...] = ()
    policy: Policy = NO_POLICY
    manifest_digest: str | None = None
    sandbox_id: str = ""


class Review(msgspec.Struct, frozen=True):
    """A snapshot that passed the gates.

    ``template`` is what is to run, ``recorded`` the template that the snapshot has in it.
    ``granted`` is all that was asked for of this machine, and on whose word it is done;
    ``overlay``, ``network`` and ``flags`` are what the runtime is called with.
    """

    loaded: Loaded
    template: Template
    recorded: Template | None
    runtime: Runtime
    facts: RuntimeFacts
    notices: tuple[str, ...]
    granted: tuple[Granted, ...]
    overlay: str
    network: str
    flags: tuple[str, ...]

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
    specs_of(manifest.extensions or {})  # nothing is downloaded for what could not be started
    gates.check_portable(manifest, host)
    gates.check_rebase(manifest, wanted.rebase)
    recorded = _recorded_template(manifest)
    _check_name(manifest, recorded)
    template = wanted.template or recorded
    if template is None:
        raise SpecMismatch(
            f"snapshot {loaded.id} has no template",
            hint="give the template that it was made with: --template FILE",
        )
    is_own = wanted.template is not None or not loaded.digest  # or made up of the user's words
    notices: list[str] = []
    if not is_own:
        template = resolved_template(template, os.path.realpath)
        template = _without_location(template, snapshots.objects.url, notices)
    granted = _granted(wanted, loaded, template, snapshots.objects.url, is_own=is_own)
    notices += map(str, granted)
    gates.check_containers(manifest, template.images, what=f"template {template.name}")
    notices += gates.image_differences(manifest, template.images)
    runtime, facts = _runtime(manifest, wanted, choose)
    notices += gates.check_host(manifest, facts, host, wanted.allowed)
    made = manifest.runtime
    return Review(
        *(loaded, template, recorded, runtime, facts, tuple(notices), granted),
        overlay=resolved_overlay(made.overlay or DEFAULT_OVERLAY, os.path.realpath),
        network=network_of(made),
        flags=made.flags or (),
    )


def requests_of(manifest: Manifest) -> tuple[Request, ...]:
    """Return all that a snapshot would ask of a machine that restores it, as it is written there.

    Raises TemplateInvalid.
    """
    found = requests_of_runtime(manifest.runtime)
    recorded = _recorded_template(manifest)
    if recorded is not None:
        found += requests_of_template(recorded, network_of(manifest.runtime))
    return tuple(sorted({(each.kind, each.value): each for each in found}.values()))


def _granted(
    wanted: Wanted, loaded: Loaded, template: Template, store: str, *, is_own: bool
) -> tuple[Granted, ...]:
    """Return on whose word all is done that is asked for; raise NotAllowed."""
    runtime = loaded.manifest.runtime
    network = network_of(runtime)
    if runtime.overlay is not UNSET:
        overlay = resolved_overlay(runtime.overlay, os.path.realpath)
        runtime = replace(runtime, overlay=overlay)
    requests = requests_of_runtime(runtime)
    grants = wanted.grants
    asked_by_template = requests_of_template(template, network)
    if is_own:
        grants += grants_of(asked_by_template, OWN_TEMPLATE)
    else:
        requests += asked_by_template
    return decide(
        f"snapshot {loaded.id}",
        sorted({(each.kind, each.value): each for each in requests}.values()),
        grants,
        lambda: wanted.policy.grants(spelled_store(store), wanted.sandbox_id),
        os.path.realpath,
    )


def _without_location(template: Template, store: str, notices: list[str]) -> Template:
    """Return *template* without a place for snapshots that is not the store it comes from.

    What is in a sandbox's memory would go there with the next checkpoint that names none.
    """
    config = template.snapshots_config
    if config.location is None or spelled_store(config.location) == spelled_store(store):
        return template
    notices.append(
        f"its template names {config.location} for snapshots; this is ignored: "
        "choose a store with lazyfs checkpoint --to STORE"
    )
    return replace(template, snapshots_config=replace(config, location=None))


def _load(wanted: Wanted, snapshots: Snapshots, bases: Bases, host: Platform) -> Loaded:
    assumed = dict(wanted.assumed)
    if wanted.trusts_template and wanted.template is not None:
        assumed = dict(wanted.template.images) | assumed
    try:
        loaded = snapshots.load(wanted.name, wanted.manifest_digest)
    except ManifestMissing:
        if not assumed or wanted.name.startswith("@"):
            raise
        if wanted.manifest_digest is not None:
            raise OtherManifest(
                f"snapshot {wanted.name} has no manifest; one with digest "
                f"{wanted.manifest_digest} is required"
            ) from None
        return assume(snapshots, wanted.name, assumed, bases, host, template=wanted.template)
    if wanted.assumed:
        raise BadRestoreOption(
            f"--assume-image: snapshot {loaded.id} has a manifest, which records its images",
            hint="restore it without --assume-image",
        )
    return loaded


def _recorded_template(manifest: Manifest) -> Template | None:
    document = template_of(manifest.extensions or {})
    return None if document is None else template_of_document(document, what="recorded template")


def _check_name(manifest: Manifest, recorded: Template | None) -> None:
    """Raise ManifestInvalid where the manifest names another template than the one in it.

    Digests are not compared: the recorded one has no values of variables.
    """
    stated = manifest.snapshot.template
    if recorded is None or isinstance(stated, UnsetType) or stated.name == recorded.name:
        return
    raise ManifestInvalid(
        f"{MANIFEST_NAME}: snapshot.template.name: got {quote(stated.name)}, expected "
        f"{quote(recorded.name)}, the name in extensions.template"
    )


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
            f"runtime {facts.path} {facts.version} has no {needed}, which a snapshot of scope "
            f"{manifest.snapshot.scope} needs",
            hint="choose a newer program with --runsc PATH",
            details={"ability": needed},
        )
    return runtime, facts
