"""From a draft to a committed snapshot: compressed, uploaded, the manifest last.

Everything here can be done again: what is in the store already is not sent twice, the manifest is
put only where none is, and a pointer that names the snapshot stays.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.digest import digest_of
from lazyfs.documents.errors import CheckpointLost, StoreConflict, StoreFailed
from lazyfs.documents.journal import Journal, State
from lazyfs.documents.manifest import File, Manifest
from lazyfs.documents.manifest_json import encode_manifest
from lazyfs.sandbox.sandbox import Sandbox, sync_path
from lazyfs.sandbox.threads import Threads
from lazyfs.snapshot.draft import IMAGE, STORED, Draft, check_files, save_draft
from lazyfs.snapshot.stores.codec import store_file
from lazyfs.snapshot.stores.keys import folder_of
from lazyfs.snapshot.stores.objects import ObjectStore
from lazyfs.snapshot.stores.pointers import Pointer, move_pointer, read_pointer
from lazyfs.snapshot.stores.snapshots import Snapshots

Say = Callable[[str], None]
WORKERS = 2  # files side by side; each is compressed by several threads
POINTER_BEFORE = "pointerBefore"
PROBE = "probe"  # of whether a snapshot's files can be written

log = logging.getLogger(__name__)


class Made(msgspec.Struct, frozen=True):
    """A committed snapshot; ``state`` is what became of its sandbox."""

    manifest: Manifest
    manifest_digest: str
    store: str
    pointer: str | None
    state: State

    @property
    def id(self) -> str:
        """The snapshot's id."""
        return self.manifest.snapshot.id

    @property
    def location(self) -> str:
        """What to call it: STORE/ID."""
        return f"{self.store}/{self.id}"


def note_pointer(objects: ObjectStore, name: str | None) -> dict[str, Any]:
    """Return what the journal is to remember of a pointer before a snapshot is made."""
    found = read_pointer(objects, name) if name is not None else None
    return {} if found is None else {POINTER_BEFORE: msgspec.to_builtins(found)}


def check_writable(objects: ObjectStore, snapshot_id: str) -> None:
    """Write where a snapshot's files will go, and remove that again; raises StoreFailed, NoSpace.

    What the mode of a directory or a bucket's name look like does not tell: the right to write may
    lack, the disk may be full or its filesystem read-only.
    """
    key = f"{folder_of(snapshot_id)}{PROBE}"
    with tempfile.NamedTemporaryFile(prefix="lazyfs-") as empty:
        objects.put_file(key, Path(empty.name))
    try:
        objects.delete(key)
    except StoreFailed as error:  # one who may write and not remove; gc sees to it
        log.warning("%s", error.message)


def publish(sandbox: Sandbox, journal: Journal, draft: Draft, objects: ObjectStore) -> Made:
    """Take a complete checkpoint to the store: CHECKPOINTING or UPLOADING to COMMITTED.

    The journal's pointer is moved, too, and local files are gone then.  What is to become of the
    sandbox is the caller's.  Raises StoreFailed and NoSpace, after which it may be done again,
    and StoreConflict, after which the snapshot is there.
    """
    snapshot_id = draft.snapshot.id
    folder = sandbox.checkpoint_dir(snapshot_id)
    snapshots = Snapshots(objects)
    if journal.state is not State.COMMITTED:
        if not draft.files or not _has_stored(folder, draft.files):
            draft = compress(sandbox, folder, draft, journal.compress)
        if journal.state is State.CHECKPOINTING:
            journal = sandbox.step(journal, State.UPLOADING)
        stored = folder / STORED
        snapshots.upload(snapshot_id, [(file, stored / file.object) for file in draft.files])
        snapshots.commit(draft.manifest())
        journal = sandbox.step(journal, State.COMMITTED)
    manifest = draft.manifest()
    digest = str(digest_of(encode_manifest(manifest)))
    made = Made(manifest, digest, objects.url, journal.pointer, journal.state)
    conflict = _move(journal, objects, Pointer(snapshot_id, digest))
    if conflict is not None:
        raise PointerLost(conflict, made)
    return made


class PointerLost(StoreConflict):
    """The snapshot is committed; its pointer was moved by somebody else."""

    def __init__(self, conflict: StoreConflict, made: Made) -> None:
        super().__init__(conflict.message, hint=conflict.hint, details=conflict.details)
        self.made = made


def compress(sandbox: Sandbox, folder: Path, draft: Draft, mode: str) -> Draft:
    """Make of the runtime's files what is stored, hashed both ways; note them in the draft.

    Raises CheckpointLost where the runtime's files are not those of the draft.
    """
    check_files(folder / IMAGE, draft.raw)
    stored = folder / STORED
    shutil.rmtree(stored, ignore_errors=True)
    stored.mkdir(mode=0o700)
    names = sorted(draft.raw, key=lambda name: -draft.raw[name])  # the long one begins
    with Threads(WORKERS) as pool:
        waiting = [
            pool.submit(store_file, folder / IMAGE / name, stored, mode=mode) for name in names
        ]
        files = [each.result() for each in waiting]
    files.sort(key=lambda file: file.name)
    _check_same(folder, draft.files, files)
    sync_path(stored)  # or a draft that is on the disk would speak of files that are not
    return save_draft(sandbox, msgspec.structs.replace(draft, files=tuple(files)))


def _check_same(folder: Path, before: tuple[File, ...], now: list[File]) -> None:
    """Raise CheckpointLost where files that were hashed before have become others.

    The runtime's are not synced: after a loss of power they have their sizes, and perhaps zeros.
    """
    digests = {file.name: file.raw_digest for file in before}
    for file in now:
        if digests.get(file.name, file.raw_digest) != file.raw_digest:
            raise CheckpointLost(
                f"{folder / IMAGE / file.name}: got {file.raw_digest}, expected "
                f"{digests[file.name]}, as it was saved"
            )


def _has_stored(folder: Path, files: tuple[File, ...]) -> bool:
    """Say whether what was compressed is still there as it was, after a crash of the machine too.

    Sizes are looked at; the store takes digests of what it gets, and a restore verifies them.
    """
    try:
        return all(
            (folder / STORED / file.object).stat().st_size == file.stored_size for file in files
        )
    except OSError:
        return False


def _move(journal: Journal, objects: ObjectStore, to: Pointer) -> StoreConflict | None:
    if journal.pointer is None:
        return None
    before = journal.notes.get(POINTER_BEFORE)
    expected = None if before is None else msgspec.convert(before, Pointer)
    try:
        move_pointer(objects, journal.pointer, to, expected)
    except StoreConflict as conflict:
        return conflict
    return None
