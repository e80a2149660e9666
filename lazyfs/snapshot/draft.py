"""The draft of a snapshot: written when the runtime has saved all, kept until it is committed.

While there is no draft, what lies in the checkpoint's folder is incomplete.  Once there is one,
the snapshot can be completed without the sandbox, by any later command.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.documents.errors import CheckpointLost, NoSpace, RuntimeFailed, SnapshotError
from lazyfs.documents.journal import SandboxBroken
from lazyfs.documents.manifest import KIND, VERSION, File, Image, Manifest, Runtime, Snapshot
from lazyfs.documents.own import read_own
from lazyfs.sandbox.sandbox import Sandbox, write_durably, write_whole

DRAFT_LIMIT = 2 << 20  # bytes
NEEDED = "checkpoint.img"
IMAGE = "image"  # of the checkpoint's folder: what the runtime writes
STORED = "stored"  # what goes to the store


class Draft(msgspec.Struct, frozen=True, rename="camel"):
    """The parts of a manifest to be; ``files`` is empty until they are compressed.

    ``raw``: the runtime's files and their sizes in bytes.  ``is_restarted``: the sandbox was
    started again from them.  ``boot_id``: what was not synced is lost when that changes.
    """

    snapshot: Snapshot
    images: tuple[Image, ...]
    runtime: Runtime
    host: dict[str, Any]
    extensions: dict[str, Any]
    raw: dict[str, int]
    boot_id: str
    files: tuple[File, ...] = ()
    is_restarted: bool = False

    def manifest(self) -> Manifest:
        """Return the manifest; the files are there by now."""
        return Manifest(
            version=VERSION,
            kind=KIND,
            snapshot=self.snapshot,
            images=self.images,
            runtime=self.runtime,
            files=self.files,
            host=self.host,
            extensions=self.extensions,
        )


def save_draft(sandbox: Sandbox, draft: Draft) -> Draft:
    """Write the draft so that a crash, of the machine too, leaves this one or the last.

    One without files is of no use to another start of the machine.  It is not synced, which would
    have to wait for what the runtime has written.
    """
    write = write_durably if draft.files else write_whole
    write(sandbox.draft_path, msgspec.json.encode(draft))
    return draft


class TornDraft(SandboxBroken):
    """A draft cannot be read: a loss of power has damaged it, as it was not synced."""


def load_draft(sandbox: Sandbox) -> Draft | None:
    """Return the draft, None if there is none.  Raises SandboxBroken, TornDraft."""
    try:
        data = read_own(sandbox.draft_path, DRAFT_LIMIT)
        # Empty: it was not synced when the machine lost power, and its files are lost as well.
        return msgspec.json.decode(data, type=Draft) if data else None
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise TornDraft(f"{sandbox.draft_path} is not a valid draft: {exc}") from exc
    except OSError as exc:
        raise SandboxBroken(f"cannot read {sandbox.draft_path}: {exc.strerror}") from exc


def list_files(folder: Path) -> dict[str, int]:
    """Return the files that the runtime has written, and their sizes.

    Which they are depends on its version.  Raises RuntimeFailed for what is no regular file, and
    where the one is missing without which nothing can be restored.
    """
    found = {}
    try:
        for entry in sorted(os.scandir(folder), key=lambda each: each.name):
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise RuntimeFailed(
                    f"{folder}: {entry.name} is not a regular file",
                    hint="what the runtime wrote is not a checkpoint",
                )
            found[entry.name] = status.st_size
    except OSError as exc:
        raise disk_error(folder, exc) from exc
    if NEEDED not in found:
        raise RuntimeFailed(f"{folder} has {', '.join(found) or 'no files'}, but no {NEEDED}")
    return found


def check_files(folder: Path, raw: dict[str, int]) -> None:
    """Raise CheckpointLost unless the runtime's files are there as the draft has them."""
    for name, size in raw.items():
        try:
            got = (folder / name).stat(follow_symlinks=False).st_size
        except OSError as exc:
            raise CheckpointLost(f"cannot read {folder / name}: {exc.strerror}") from exc
        if got != size:
            raise CheckpointLost(f"{folder / name}: got {got} bytes, expected {size}")


def disk_error(path: Path, exc: OSError) -> SnapshotError:
    """Return the error for trouble with a local file."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{path}: {exc.strerror}", hint="free some disk space and try again")
    return SandboxBroken(f"{path}: {exc.strerror}")


def boot_id() -> str:
    """Return what tells this start of the machine from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
