"""Sandboxes on this machine: a folder, a lock and a journal each.

    <state dir>/sandboxes/<id>/
        lock                    held by the command that works on the sandbox
        journal.json            its state, and all that is needed to continue after a crash
        base-record.json        which images are mounted; written before the processes start
        template.json           what was asked for
        bundles/<container>/    config.json and rootfs, which is a mount
        runtime/                the runtime's own folder
        logs/                   what containers and runtime say
        checkpoints/<snapshot>/ restores/<snapshot>/  draft-manifest.json

Whoever changes anything of a sandbox holds its lock.  The kernel gives it up with the process.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.documents import durable
from lazyfs.documents.errors import Busy, NoSpace, SnapshotError
from lazyfs.documents.journal import (
    Failure,
    Journal,
    SandboxBroken,
    State,
    check_step,
    decode_journal,
    encode_journal,
)
from lazyfs.documents.own import check_own_folder, is_lost, read_own
from lazyfs.documents.plans import ContainerPlan, RuntimeFacts, SandboxPlan
from lazyfs.errors import NotFound, UsageError
from lazyfs.interrupts import uninterrupted
from lazyfs.mount.point import load_mountinfo
from lazyfs.sandbox.pinning import unpin_images
from lazyfs.store.paths import NO_SPACE

JOURNAL_LIMIT = 1 << 20  # bytes
ID_RE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LOCK_POLL = 0.05  # seconds between two tries of somebody who waits


class BadSandboxId(UsageError):
    """A sandbox's id is no DNS label."""


class SandboxMissing(NotFound):
    """There is no sandbox of that id."""


class SandboxExists(UsageError):
    """There is a sandbox of that id."""


def utc_now() -> str:
    """Return the time: RFC 3339, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Sandbox:
    """The folder of one sandbox.  All methods that write want the lock to be held."""

    def __init__(self, folder: Path, clock: Callable[[], str] = utc_now) -> None:
        self.folder = folder
        self.id = folder.name
        self._clock = clock

    @property
    def lock_path(self) -> Path:
        """The file whose lock is the sandbox's."""
        return self.folder / "lock"

    @property
    def journal_path(self) -> Path:
        """What is going on."""
        return self.folder / "journal.json"

    @property
    def record_path(self) -> Path:
        """Which images are mounted."""
        return self.folder / "base-record.json"

    @property
    def template_path(self) -> Path:
        """The canonical form of what was asked for."""
        return self.folder / "template.json"

    @property
    def bundles(self) -> Path:
        """The folder of the containers' bundles."""
        return self.folder / "bundles"

    @property
    def state_dir(self) -> Path:
        """The runtime's own folder."""
        return self.folder / "runtime"

    @property
    def log_dir(self) -> Path:
        """What containers and runtime say."""
        return self.folder / "logs"

    @property
    def draft_path(self) -> Path:
        """The manifest to be; it is there once the checkpoint is complete."""
        return self.folder / "draft-manifest.json"

    def bundle(self, name: str) -> Path:
        """The bundle of a container."""
        return self.bundles / name

    def rootfs(self, name: str) -> Path:
        """Where the image of a container is mounted."""
        return self.bundles / name / "rootfs"

    def checkpoint_dir(self, snapshot_id: str) -> Path:
        """Where the runtime writes a checkpoint, and it is compressed."""
        return self.folder / "checkpoints" / snapshot_id

    def restore_dir(self, snapshot_id: str) -> Path:
        """Where the files of a snapshot lie while the runtime restores from them."""
        return self.folder / "restores" / snapshot_id

    def container_id(self, name: str) -> str:
        """What the runtime is to call a container: unique on the machine, for cgroups."""
        return f"{self.id}.{name}"

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the lock; wait at most so many seconds for it.  Raises Busy, SandboxMissing."""
        descriptor = self._locked(time.monotonic() + wait)
        try:
            holder = {"pid": os.getpid(), "since": self._clock()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
            yield
        finally:
            os.close(descriptor)

    def _locked(self, deadline: float) -> int:
        while True:
            try:
                descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError as exc:
                raise _missing(self.id) from exc
            except OSError as exc:
                raise _broken(self.lock_path, exc) from exc
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                if time.monotonic() >= deadline:
                    raise self._busy() from None
                time.sleep(LOCK_POLL)
                continue
            if _is_same(descriptor, self.lock_path):
                return descriptor
            os.close(descriptor)  # its sandbox was deleted while we waited

    def _busy(self) -> Busy:
        pid, since = self.holder() or (0, "")
        by = f"process {pid} since {since}" if pid else "another process"
        return Busy(
            f"sandbox {self.id} is in use by {by}",
            hint="try again when that command has ended, or wait for it with --wait SECONDS",
            details={"sandbox": self.id, "pid": pid, "since": since},
        )

    def holder(self) -> tuple[int, str] | None:
        """Return process and time of who took the lock last, as it says: for people."""
        try:
            document = json.loads(self.lock_path.read_bytes()[:4096])
            return int(document["pid"]), str(document["since"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def journal(self) -> Journal | None:
        """Return what is going on; None if nothing ever was.  Raises SandboxBroken.

        One that was lost with the power is nothing, too: the first is not synced (see ``begin``).
        """
        try:
            # It names the program that is called and the folders it is told: the user's own word.
            for folder in (self.folder.parent, self.folder):
                check_own_folder(folder)
            data = read_own(self.journal_path, JOURNAL_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _broken(self.journal_path, exc) from exc
        return None if is_lost(data) else decode_journal(data)

    def begin(self, state: State, *, made_by: RuntimeFacts | None = None, **facts: Any) -> Journal:
        """Begin a life of the sandbox: STARTING or RESTORING, with *made_by* where that is known.

        The first one's journal is on the disk with the next step: there is no sandbox until then.
        Raises SandboxBroken.
        """
        before = self.journal()
        check_step(self.id, None if before is None else before.state, state)
        now = self._clock()
        journal = Journal(sandbox_id=self.id, state=state, created_at=now, updated_at=now, **facts)
        if made_by is not None:
            journal = journal.with_runtime(made_by)
        write = write_whole if before is None else write_durably
        write(self.journal_path, encode_journal(journal))
        return journal

    def step(self, journal: Journal, state: State, **changes: Any) -> Journal:
        """Save *journal* with another state, and with *changes*; return it."""
        check_step(self.id, journal.state, state)
        return self.save(msgspec.structs.replace(journal, state=state, **changes))

    def fail(self, journal: Journal, error: Exception) -> Journal:
        """Save that the sandbox failed, and why."""
        code = getattr(error, "code", "E_INTERNAL")
        message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        failure = Failure(code=code, message=message)
        if journal.state == State.FAILED:
            return self.save(msgspec.structs.replace(journal, error=failure))
        return self.step(journal, State.FAILED, error=failure)

    def save(self, journal: Journal) -> Journal:
        """Write the journal so that a crash leaves this one or the last; return it, dated."""
        journal = msgspec.structs.replace(journal, updated_at=self._clock())
        write_durably(self.journal_path, encode_journal(journal))
        return journal

    def plan(self, journal: Journal | None = None) -> SandboxPlan:
        """Return what the runtime is to know, from the journal.  Raises SandboxBroken."""
        journal = journal or self.journal()
        if journal is None or not journal.containers:
            raise SandboxBroken(
                f"sandbox {self.id}: its journal lists no containers",
                hint=f"lazyfs delete {self.id}",
            )
        return SandboxPlan(
            sandbox_id=self.id,
            state_dir=self.state_dir,
            log_dir=self.log_dir,
            containers=tuple(
                ContainerPlan(each.name, each.container_id, self.bundle(each.name), number == 0)
                for number, each in enumerate(journal.containers)
            ),
            overlay=journal.overlay,
            network=journal.network,
            flags=journal.flags,
            limits=journal.limits,
        )

    def clear(self, *names: str) -> None:
        """Remove files and folders of the sandbox that are there; nothing that is mounted on."""
        mounted = [Path(os.fsdecode(entry.mountpoint)) for entry in load_mountinfo()]
        for name in names:
            path = self.folder / name
            if any(each == path or path in each.parents for each in mounted):
                raise SandboxBroken(
                    f"sandbox {self.id}: {name} cannot be removed: something is mounted there",
                    hint="find it with findmnt, and unmount it",
                )
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as exc:
                raise _broken(path, exc) from exc

    def remove(self) -> None:
        """Remove all of the sandbox, the journal last: until then it can be done again.

        What it needs of the cache is let go of.
        """
        try:
            journal = self.journal()
        except SandboxBroken:
            journal = None
        last = [self.journal_path.name, self.lock_path.name]
        names = [each.name for each in self.folder.iterdir()]
        self.clear(*(name for name in names if name not in last))
        self.clear(*last)
        try:
            self.folder.rmdir()
        except OSError as exc:
            raise _broken(self.folder, exc) from exc
        unpin_images(self.folder, "" if journal is None else journal.cache_dir)


class Sandboxes:
    """All sandboxes of a user: the folder *root*, made with mode 0700 when it is needed."""

    def __init__(self, root: Path, clock: Callable[[], str] = utc_now) -> None:
        self.root = Path(os.path.realpath(root))  # as the kernel spells mounts below it
        self._clock = clock

    def create(self, sandbox_id: str) -> Sandbox:
        """Make the folder of a sandbox.  Raises BadSandboxId, SandboxExists, SandboxBroken."""
        check_id(sandbox_id)
        folder = self.root / sandbox_id
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        except FileExistsError as exc:
            raise SandboxExists(
                f"sandbox {sandbox_id} already exists",
                hint=f"see lazyfs status {sandbox_id}; lazyfs delete {sandbox_id} removes it",
            ) from exc
        except OSError as exc:
            raise _broken(folder, exc) from exc
        return Sandbox(folder, self._clock)

    def open(self, sandbox_id: str) -> Sandbox:
        """Return the sandbox of that id.  Raises BadSandboxId, SandboxMissing."""
        check_id(sandbox_id)
        folder = self.root / sandbox_id
        if not folder.is_dir():
            raise _missing(sandbox_id)
        return Sandbox(folder, self._clock)

    def claim(
        self, sandbox_id: str, wait: float, held: uninterrupted, stack: ExitStack
    ) -> tuple[Sandbox, bool]:
        """Make a sandbox, or take the one that is there, and lock it until *stack* ends.

        Returns it, and whether it is new.  *wait* is for how many seconds another command is waited
        for; interrupts, which *held* keeps away, may come meanwhile.  Raises what ``create``,
        ``open`` and ``lock`` raise, but SandboxExists.
        """
        try:
            sandbox = self.create(sandbox_id)
        except SandboxExists:
            sandbox = self.open(sandbox_id)
            with held.opened():
                stack.enter_context(sandbox.lock(wait))
            return sandbox, False
        stack.enter_context(sandbox.lock())
        return sandbox, True

    def all(self) -> list[Sandbox]:
        """Return the sandboxes there are, by id; whatever else lies there is left out."""
        try:
            names = sorted(os.listdir(self.root))
        except OSError:
            return []
        return [
            Sandbox(self.root / name, self._clock)
            for name in names
            if ID_RE.fullmatch(name) and (self.root / name).is_dir()
        ]


def check_id(sandbox_id: str) -> None:
    """Raise BadSandboxId unless *sandbox_id* is a DNS label: it names folders and cgroups."""
    if ID_RE.fullmatch(sandbox_id) is None:
        raise BadSandboxId(
            "sandbox id: must be 1 to 63 of a-z, 0-9 and '-', with no '-' at either end, "
            f"not {sandbox_id[:80]!r}",
        )


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that a crash, of the machine too, leaves all of it or what was there.

    Only its owner may read it.  Two at once would meet: the lock is to be held.
    """
    _write(path, data, is_synced=True)


def write_whole(path: Path, data: bytes) -> None:
    """Do as ``write_durably``, for processes only.

    For what is of no use once the machine has lost power: see ``is_lost``.
    """
    _write(path, data, is_synced=False)


def sync_path(path: Path) -> None:
    """Bring a file, or what a folder says of its files, to the disk."""
    try:
        durable.sync_path(path)
    except OSError as exc:
        raise _broken(path, exc) from exc


def _write(path: Path, data: bytes, *, is_synced: bool) -> None:
    try:
        durable.put_file(path, data, path.with_name(f".{path.name}.tmp"), is_synced=is_synced)
    except OSError as exc:
        raise _broken(path, exc) from exc


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _missing(sandbox_id: str) -> SandboxMissing:
    return SandboxMissing(
        f"sandbox {sandbox_id} does not exist",
        hint="lazyfs status lists your sandboxes",
    )


def _broken(path: Path, exc: OSError) -> SnapshotError:
    family = NoSpace if exc.errno in NO_SPACE else SandboxBroken
    return family(f"{path}: {exc.strerror}")
