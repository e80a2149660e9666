"""The gates of a restore: what must hold before anything is downloaded.

Two groups, each closed unless its own switch is given.  Portable: the snapshot fits this kind of
machine and this template, on every host alike.  Host: this machine's runtime and processor are
those that it was made with.  Pure: a manifest and facts in; notices out, or the reason why not.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from lazyfs.documents.documents import cut
from lazyfs.documents.errors import (
    CpuMismatch,
    PlatformMismatch,
    RuntimeMismatch,
    SpecMismatch,
)
from lazyfs.documents.manifest import Manifest, Runtime
from lazyfs.documents.plans import RuntimeFacts
from lazyfs.errors import UsageError
from lazyfs.oci.platforms import Platform, runs
from lazyfs.sandbox.bases import platform_of

FULL = "full"
DATA = "data"
CLASSES = {"runsc": "gvisor"}  # a runtime's name → the class that manifests have
SHOWN = 12  # of a list in a message
ROOT_FIXED = frozenset({"args", "mounts"})  # what can never differ of the root container
FIELD_RE = re.compile(r"[\[.:]")  # ends the first word of a difference: "args[1]: …"


class BadRestoreOption(UsageError):
    """An option does not fit the snapshot."""


class Allowed(msgspec.Struct, frozen=True):
    """The switches: a gate of each group is passed with a notice where its switch is on.

    ``spec_drift`` is of the portable group; ``cpu`` and ``runtime`` are of the host's.
    """

    spec_drift: bool = False
    cpu: bool = False
    runtime: bool = False


def check_portable(manifest: Manifest, host: Platform) -> None:
    """Raise PlatformMismatch unless the snapshot is for *host*'s system and processor.

    No other child of an index is offered: it would be another image.
    """
    plain = Platform(host.os, host.architecture)
    for image in manifest.images:
        found = platform_of(image)
        if not runs(plain, Platform(found.os, found.architecture)):
            raise PlatformMismatch(
                f"snapshot {manifest.snapshot.id}: container {image.name}: its image is for "
                f"{found}; this machine runs {host}",
                hint="restore it on a machine of the same kind; saved state cannot be converted",
                details={"container": image.name, "snapshot": str(found), "host": str(host)},
            )
    arch = manifest.runtime.arch
    if manifest.snapshot.scope == FULL and arch != host.architecture:
        raise PlatformMismatch(
            f"snapshot {manifest.snapshot.id} was made by a runtime on {arch}; this machine is "
            f"{host.architecture}",
            details={"snapshot": arch, "host": host.architecture},
        )


def check_rebase(manifest: Manifest, rebase: str | None) -> None:
    """Raise BadRestoreOption where another base is wanted for what lies in memory."""
    if rebase is not None and manifest.snapshot.scope != DATA:
        raise BadRestoreOption(
            f"--rebase {rebase}: the snapshot has scope {manifest.snapshot.scope}; only scope "
            "data can be rebased",
            hint="saved memory refers to the files of its own image; run the new image, or restore "
            "without --rebase",
        )


def check_host(
    manifest: Manifest, facts: RuntimeFacts, host: Platform, allowed: Allowed
) -> list[str]:
    """Return notices; raise RuntimeMismatch or CpuMismatch.

    State that is data only depends on neither.
    """
    if manifest.snapshot.scope != FULL:
        return []
    notices = _check_runtime(manifest.runtime, facts, allowed)
    return notices + _check_cpu(manifest, facts, host, allowed)


def _check_runtime(made: Runtime, facts: RuntimeFacts, allowed: Allowed) -> list[str]:
    faults: list[tuple[str, str, str]] = []
    if CLASSES.get(facts.name) != made.class_:
        raise RuntimeMismatch(
            f"runtime {facts.name} cannot restore a snapshot of class {made.class_}",
            hint="lazyfs doctor shows the runtimes of this machine",
            details={"runtime": facts.name, "class": made.class_},
        )
    if isinstance(made.version, UnsetType):
        return [f"the snapshot does not say which runtime made it; {facts.version} is used"]
    if facts.version != made.version:
        faults.append(("version", facts.version, made.version))
    if made.binary_digest is not UNSET and facts.binary_digest != made.binary_digest:
        faults.append(("binary", facts.binary_digest, made.binary_digest))
    if made.platform is not UNSET and facts.platform != made.platform:
        faults.append(("platform", facts.platform, made.platform))
    if wants_overlay(made) and "overlay2" not in facts.abilities:
        raise RuntimeMismatch(
            f"runtime {facts.path} has no --overlay2, which overlay {made.overlay} needs",
            hint="choose another program with --runsc PATH",
            details={"overlay": made.overlay},
        )
    if not faults:
        return []
    said = "; ".join(f"{what}: got {got}, expected {expected}" for what, got, expected in faults)
    if allowed.runtime:
        return [f"runtime {facts.path}: {said}; ignored because of --ignore-runtime"]
    raise RuntimeMismatch(
        f"runtime {facts.path}: {said}",
        hint="give the program that made the snapshot with --runsc PATH, or put it where lazyfs "
        "keeps runtimes (lazyfs doctor); another version cannot read the saved state",
        details={what: {"got": got, "expected": expected} for what, got, expected in faults},
    )


def wants_overlay(made: Runtime) -> bool:
    """Say whether what the sandbox has written is in an overlay that the runtime must know."""
    return made.overlay is not UNSET and made.overlay not in ("", "none")


def _check_cpu(
    manifest: Manifest, facts: RuntimeFacts, host: Platform, allowed: Allowed
) -> list[str]:
    wanted = manifest.runtime.cpu_features
    missing = [] if wanted is UNSET else sorted(set(wanted) - set(facts.cpu_features))
    for image in manifest.images:
        found = platform_of(image)
        if found.variant and not runs(host, found):
            missing.append(f"{found.architecture}/{found.variant}")
    if not missing:
        return []
    said = ", ".join(missing[:SHOWN]) + (" …" if len(missing) > SHOWN else "")
    if allowed.cpu:
        return [f"this processor lacks {said}; ignored because of --ignore-cpu"]
    raise CpuMismatch(
        f"this processor lacks {said}; the snapshot was made on one with "
        f"{len(wanted or ())} features, and needs all of them",
        hint="restore it on a machine that has them, or try with --ignore-cpu",
        details={"missing": missing},
    )


def check_containers(manifest: Manifest, names: Collection[str], *, what: str) -> None:
    """Raise SpecMismatch unless *names* are those of the snapshot's containers."""
    recorded = {image.name for image in manifest.images}
    surplus, missing = sorted(set(names) - recorded), sorted(recorded - set(names))
    if surplus or missing:
        said = ", ".join([*(f"{n} added" for n in surplus), *(f"{n} removed" for n in missing)])
        raise SpecMismatch(
            f"{what} has the containers {', '.join(sorted(names))} ({said}); the snapshot has "
            f"{', '.join(sorted(recorded))}",
            hint="a restored sandbox cannot gain or lose containers; run the template afresh",
            details={"added": surplus, "removed": missing},
        )


def image_differences(manifest: Manifest, references: Mapping[str, str]) -> list[str]:
    """Return a notice for each container for which a template now names another image."""
    return [
        f"{image.name}: the template now says {references[image.name]}; the snapshot uses "
        f"{image.original_ref} ({image.manifest_digest})"
        for image in manifest.images
        if image.name in references and references[image.name] != image.original_ref
    ]


def check_specs(
    manifest: Manifest,
    digests: Mapping[str, str],
    differences: Mapping[str, Sequence[str]],
    allowed: Allowed,
) -> list[str]:
    """Return notices; raise SpecMismatch for a container that would be started otherwise.

    *digests*: container → spec digest of now.  *differences*: container → the fields that differ,
    as far as they are known.  Arguments and mounts of the root container may never differ.
    """
    containers = manifest.runtime.containers
    if manifest.snapshot.scope != FULL or isinstance(containers, UnsetType):
        return []
    notices = []
    for container in containers:
        got = digests.get(container.name)
        if got == container.spec_digest:
            continue
        fields = list(differences.get(container.name, ()))
        said = f" ({cut(', '.join(fields[:SHOWN]))})" if fields else ""
        fixed = container.root is True and (
            not fields
            or any(FIELD_RE.split(field, maxsplit=1)[0] in ROOT_FIXED for field in fields)
        )
        if allowed.spec_drift and not fixed:
            notices.append(f"{container.name}: the spec differs from that at the checkpoint{said}")
            continue
        raise SpecMismatch(
            f"container {container.name}: got spec {got}, expected {container.spec_digest}{said}",
            hint="restore it without --template, or with the template that it was run from"
            + ("; arguments and mounts of the root container may never differ" if fixed else ""),
            details={"container": container.name, "fields": fields},
        )
    return notices
