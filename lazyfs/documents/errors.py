"""Why a snapshot could not be made, or a sandbox not be started or restored.

One class per code; ``exit_code`` is what the command line ends with (docs/reference/exit-codes.md).
Where a family of lazyfs.errors means the same, the class belongs to that too.
"""

from typing import Any

from lazyfs.errors import LazyfsError, UsageError


class SnapshotError(LazyfsError):
    """Base of this part's errors.

    ``details`` are JSON's types: what the reason concerns, for programs.
    """

    code = "E_SNAPSHOT"
    exit_code = 1

    def __init__(
        self, message: str, *, hint: str | None = None, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.details = details or {}


class Interrupted(SnapshotError):
    """What was done to a sandbox was broken off: killed, by a signal, or by a fault in lazyfs."""

    code = "E_INTERRUPTED"


class TemplateInvalid(SnapshotError, UsageError):
    """A template, or a reference in it, is not what it must be; the message names the field."""

    code = "E_TEMPLATE_INVALID"
    exit_code = 2


class ManifestMissing(SnapshotError):
    """There is no ``snapshot-manifest.json`` where the snapshot should be."""

    code = "E_MANIFEST_MISSING"
    exit_code = 10


class ManifestInvalid(SnapshotError):
    """The manifest is no JSON, breaks a rule, or is not the one that a pointer names."""

    code = "E_MANIFEST_INVALID"
    exit_code = 11


class VersionUnsupported(SnapshotError):
    """The manifest is of a version, or has a critical extension, that is unknown here."""

    code = "E_VERSION_UNSUPPORTED"
    exit_code = 12


class OtherManifest(SnapshotError):
    """The manifest is not the one whose digest the user named."""

    code = "E_MANIFEST_DIGEST"
    exit_code = 13


class BaseUnavailable(SnapshotError):
    """The recorded digest cannot be had from any source."""

    code = "E_BASE_UNAVAILABLE"
    exit_code = 20


class BaseCorrupt(SnapshotError):
    """Bytes of the base image do not have their digest, or the mount has met such bytes."""

    code = "E_BASE_CORRUPT"
    exit_code = 21


class BaseDrift(SnapshotError):
    """The mount is not of the image that the record, or the manifest, names."""

    code = "E_BASE_DRIFT"
    exit_code = 22


class BaseUnresolved(SnapshotError):
    """Nothing tells which image a container runs on."""

    code = "E_BASE_UNRESOLVED"
    exit_code = 23


class DeadMount(BaseUnresolved):
    """The mount is there and its server is not: the sandbox may have met errors of reading."""


class RecordMissing(SnapshotError):
    """The mount says what it is, but the record that was made at the start is gone."""

    code = "E_RECORD_MISSING"
    exit_code = 23


class TagUnresolvable(SnapshotError):
    """A fresh run cannot find out which image a tag names."""

    code = "E_TAG_UNRESOLVABLE"
    exit_code = 24


class PlatformMismatch(SnapshotError):
    """The snapshot is of another operating system, architecture or variant."""

    code = "E_PLATFORM_MISMATCH"
    exit_code = 30


class RuntimeMismatch(SnapshotError):
    """The snapshot was made by another version of the runtime, or with flags it does not have."""

    code = "E_RUNTIME_MISMATCH"
    exit_code = 31


class CpuMismatch(SnapshotError):
    """This processor lacks features that the snapshot's had."""

    code = "E_CPU_MISMATCH"
    exit_code = 32


class SpecMismatch(SnapshotError):
    """A container would be started otherwise than the one that was checkpointed."""

    code = "E_SPEC_MISMATCH"
    exit_code = 33


class NotAllowed(SnapshotError):
    """The snapshot asks for more of this machine than images, files and memory."""

    code = "E_NOT_ALLOWED"
    exit_code = 34


class FileMissing(SnapshotError):
    """A file that the manifest names is not in the store."""

    code = "E_FILE_MISSING"
    exit_code = 40


class FileCorrupt(SnapshotError):
    """A file of the snapshot has another size or digest than the manifest says."""

    code = "E_FILE_CORRUPT"
    exit_code = 41


class StoreFailed(SnapshotError):
    """The snapshots' store cannot be reached, or refuses."""

    code = "E_STORE"
    exit_code = 42


class StoreConflict(SnapshotError):
    """Somebody else wrote the manifest, or moved the pointer, first."""

    code = "E_STORE_CONFLICT"
    exit_code = 43


class NoSpace(SnapshotError):
    """The local disk is full, or would be."""

    code = "E_NO_SPACE"
    exit_code = 44


class Busy(SnapshotError):
    """Another command works on the sandbox."""

    code = "E_BUSY"
    exit_code = 50


class RuntimeFailed(SnapshotError):
    """The runtime failed; the message carries the last lines that it said."""

    code = "E_RUNTIME_FAILED"
    exit_code = 51


class CheckpointLost(SnapshotError):
    """The sandbox has ended and its checkpoint is incomplete."""

    code = "E_CHECKPOINT_LOST"
    exit_code = 52


class NotReady(SnapshotError):
    """A container did not become ready in time."""

    code = "E_NOT_READY"
    exit_code = 53


class Unsupported(SnapshotError):
    """The runtime cannot do what is needed."""

    code = "E_UNSUPPORTED"
    exit_code = 54
