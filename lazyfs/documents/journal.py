"""The journal of a sandbox: its state, and all that is needed to continue after a crash.

Pure: bytes in, values or SandboxBroken out.
"""

from enum import StrEnum
from typing import Any

import msgspec

from lazyfs.documents.errors import SnapshotError
from lazyfs.documents.manifest import Parent
from lazyfs.documents.plans import Limits, RuntimeFacts

JOURNAL_VERSION = 1
DEFAULT_OVERLAY = "root:memory"
DEFAULT_NETWORK = "none"


class SandboxBroken(SnapshotError):
    """What is kept of a sandbox cannot be read or written, or does not fit together."""

    code = "E_SANDBOX"


class State(StrEnum):
    """What a sandbox is doing."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    CHECKPOINTING = "CHECKPOINTING"
    UPLOADING = "UPLOADING"
    COMMITTED = "COMMITTED"
    STOPPED = "STOPPED"
    RESTORING = "RESTORING"
    FAILED = "FAILED"


# State → those that may come next; None is a sandbox without a journal.
NEXT: dict[State | None, frozenset[State]] = {
    None: frozenset({State.STARTING, State.RESTORING}),
    State.STARTING: frozenset({State.RUNNING, State.FAILED}),
    State.RUNNING: frozenset({State.CHECKPOINTING, State.FAILED}),
    State.CHECKPOINTING: frozenset({State.RUNNING, State.UPLOADING, State.FAILED}),
    State.UPLOADING: frozenset({State.COMMITTED, State.FAILED}),
    State.COMMITTED: frozenset({State.RUNNING, State.STOPPED, State.RESTORING, State.FAILED}),
    State.STOPPED: frozenset({State.STARTING, State.RESTORING}),
    State.RESTORING: frozenset({State.RUNNING, State.FAILED}),
    State.FAILED: frozenset({State.STARTING, State.RESTORING}),
}


class _Part(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class JournalRuntime(_Part, frozen=True):
    """The runtime that has the sandbox: RuntimeFacts, as far as they are needed again."""

    name: str
    path: str
    version: str = ""
    binary_digest: str = ""
    platform: str = ""
    cpu_features: tuple[str, ...] = ()


class JournalContainer(_Part, frozen=True):
    """A container: its name in the template, and what the runtime calls it."""

    name: str
    container_id: str


class Failure(_Part, frozen=True):
    """Why a sandbox failed: an error's code and message."""

    code: str
    message: str


class Journal(_Part, frozen=True):
    """The state of a sandbox, and what was asked for in the step that is under way.

    ``containers``: the root one first.  ``base_dirs`` has what to mount again with: the cache.
    Times are RFC 3339, UTC.  ``notes`` has what only one procedure needs, as JSON's types.
    """

    sandbox_id: str
    state: State
    created_at: str
    updated_at: str
    version: int = JOURNAL_VERSION
    runtime: JournalRuntime | None = None
    containers: tuple[JournalContainer, ...] = ()
    overlay: str = DEFAULT_OVERLAY
    network: str = DEFAULT_NETWORK
    flags: tuple[str, ...] = ()
    limits: Limits = Limits()
    cache_dir: str = ""
    template_name: str = ""
    template_digest: str = ""
    generation: int = 1  # of the snapshot that is made next
    parent: Parent | None = None
    snapshot_id: str | None = None
    store_url: str | None = None
    s3_endpoint: str | None = None
    pointer: str | None = None
    role: str = "instance"
    compress: str = "zstd"
    embed: bool = False
    leave_running: bool = False
    allow_dead_mount: bool = False
    error: Failure | None = None
    notes: dict[str, Any] = {}

    def with_runtime(self, facts: RuntimeFacts) -> "Journal":
        """Return the journal with what a runtime said of itself."""
        runtime = JournalRuntime(
            name=facts.name,
            path=str(facts.path),
            version=facts.version,
            binary_digest=facts.binary_digest,
            platform=facts.platform,
            cpu_features=facts.cpu_features,
        )
        return msgspec.structs.replace(self, runtime=runtime)


def encode_journal(journal: Journal) -> bytes:
    """Return the JSON form."""
    return msgspec.json.format(msgspec.json.encode(journal), indent=1) + b"\n"


def decode_journal(data: bytes) -> Journal:
    """Return the journal that *data* holds; raises SandboxBroken."""
    try:
        journal = msgspec.json.decode(data, type=Journal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SandboxBroken(f"journal: not a valid journal of lazyfs: {exc}") from exc
    if journal.version != JOURNAL_VERSION:
        raise SandboxBroken(
            f"journal: got version {journal.version}, expected {JOURNAL_VERSION}",
            hint="another release of lazyfs wrote it",
        )
    return journal


def check_step(sandbox_id: str, before: State | None, after: State) -> None:
    """Raise SandboxBroken unless *after* may follow *before*."""
    if after not in NEXT[before]:
        expected = " or ".join(sorted(NEXT[before]))
        raise SandboxBroken(
            f"sandbox {sandbox_id}: state {after} cannot follow {before or 'nothing'}; only "
            f"{expected} can",
        )
