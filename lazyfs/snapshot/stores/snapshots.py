"""The snapshots of a store: files first, the manifest last, and in the other order when removed.

    absent → partial (files, no manifest) → committed → (partial →) absent

A snapshot whose manifest is there is complete: the sizes of its files are looked at before the
manifest is put, and only if there is none.  Every step can be done again.
"""

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import msgspec

from lazyfs.digest import digest_of
from lazyfs.documents.errors import (
    FileCorrupt,
    FileMissing,
    ManifestInvalid,
    ManifestMissing,
    NoSpace,
    OtherManifest,
    SnapshotError,
    StoreConflict,
    StoreFailed,
)
from lazyfs.documents.manifest import MANIFEST_LIMIT, File, Manifest
from lazyfs.documents.manifest_json import decode_manifest, encode_manifest
from lazyfs.sandbox.specs.local import local_errors
from lazyfs.sandbox.threads import Threads, wait_all
from lazyfs.snapshot.stores import embedding, pointers
from lazyfs.snapshot.stores.absence import no_manifest
from lazyfs.snapshot.stores.codec import check_stored, decode_file, restore_file
from lazyfs.snapshot.stores.keys import (
    ID_RE,
    SNAPSHOTS,
    check_id,
    check_word,
    folder_of,
    manifest_key,
)
from lazyfs.snapshot.stores.objects import ObjectMissing, ObjectStore, Stored, stopping
from lazyfs.snapshot.stores.pointers import Pointer

WORKERS = 2  # files on their way at once; each is compressed or decompressed by several threads
Item = TypeVar("Item")


class Loaded(msgspec.Struct, frozen=True):
    """A committed snapshot: its manifest, the bytes of that and their digest."""

    id: str
    manifest: Manifest
    digest: str
    data: bytes


class State(msgspec.Struct, frozen=True):
    """A snapshot as the store has it; ``modified`` is when something of it was last written."""

    id: str
    is_committed: bool
    files: tuple[Stored, ...]

    @property
    def size(self) -> int:
        """Bytes of all its objects."""
        return sum(stored.size for stored in self.files)

    @property
    def modified(self) -> float:
        """When something of it was last written (Unix seconds)."""
        return max(stored.modified for stored in self.files)


class Snapshots:
    """The snapshots in *objects*.  Errors: StoreFailed, beside what each method says."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    # What there is

    def states(self) -> list[State]:
        """Return all snapshots, partial ones too, in the order of ids."""
        found: dict[str, list[Stored]] = {}
        for stored in self.objects.list(SNAPSHOTS):
            name, _, rest = stored.key.removeprefix(SNAPSHOTS).partition("/")
            if rest and ID_RE.fullmatch(name):
                found.setdefault(name, []).append(stored)
        return [
            State(name, any(each.key == manifest_key(name) for each in files), tuple(files))
            for name, files in sorted(found.items())
        ]

    def ids(self) -> list[str]:
        """Return the ids of committed snapshots, in their order."""
        return [state.id for state in self.states() if state.is_committed]

    def state(self, snapshot_id: str) -> State | None:
        """Return what the store has of a snapshot, None if nothing."""
        files = tuple(self.objects.list(folder_of(check_id(snapshot_id))))
        is_committed = any(each.key == manifest_key(snapshot_id) for each in files)
        return State(snapshot_id, is_committed, files) if files else None

    # Reading

    def load(self, name: str, expected: str | None = None) -> Loaded:
        """Return the committed snapshot *name*: an id, or a pointer's name after "@".

        *expected*: the digest that its manifest has to have; nothing of another one is read.
        Raises ManifestMissing, ManifestInvalid, VersionUnsupported, OtherManifest.
        """
        is_pointer = name.startswith("@")
        pointer = self._named(name[1:]) if is_pointer else None
        snapshot_id = name if pointer is None else pointer.id
        data = self._manifest_of(snapshot_id, name[1:] if is_pointer else None)
        digest = str(digest_of(data))
        if expected is not None and digest != expected:
            raise OtherManifest(
                f"snapshot {snapshot_id}: got a manifest {digest}, expected {expected}",
                hint="the name now means another snapshot, or its manifest was changed",
                details={"id": snapshot_id, "got": digest, "expected": expected},
            )
        if pointer is not None and digest != pointer.manifest_digest:
            raise ManifestInvalid(
                f"snapshot {snapshot_id}: got a manifest {digest}, expected "
                f"{pointer.manifest_digest}, as pointer {name[1:]} says",
                hint="the manifest was overwritten, or tampered with, after the pointer was set",
            )
        manifest = decode_manifest(data)
        if manifest.snapshot.id != snapshot_id:
            raise ManifestInvalid(
                f"snapshot {snapshot_id} has the manifest of {manifest.snapshot.id}, not its"
            )
        return Loaded(snapshot_id, manifest, digest, data)

    def download(self, loaded: Loaded, target_dir: Path) -> None:
        """Make *target_dir* with all files of a snapshot, verified; on any failure, nothing.

        Raises FileMissing, FileCorrupt, NoSpace.
        """
        files = loaded.manifest.files
        needed = sum(file.raw_size for file in files)
        temporary = target_dir.with_name(f".{target_dir.name}.{secrets.token_hex(4)}")
        with local_errors(target_dir, "make"):
            room = os.statvfs(target_dir.parent)
            if (free := room.f_bavail * room.f_frsize) < needed:
                raise NoSpace(
                    f"{target_dir.parent}: the disk is full: {needed} bytes needed, {free} "
                    "bytes free"
                )
            temporary.mkdir(mode=0o700)
        try:
            self._each(files, lambda file, stop: self._fetch(loaded.id, file, temporary, stop))
            with local_errors(target_dir, "make"):
                temporary.rename(target_dir)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def verify(self, loaded: Loaded, *, deep: bool) -> list[SnapshotError]:
        """Read all files of a snapshot; return what is wrong.  *deep*: decompress them, too."""
        wrong: list[SnapshotError] = []

        def check(file: File, stop: threading.Event) -> None:
            try:
                if deep:
                    self._decode(loaded.id, file, stop)
                else:
                    self._check_stored(loaded.id, file, stop)
            except (FileMissing, FileCorrupt) as error:
                wrong.append(error)

        self._each(loaded.manifest.files, check)
        return sorted(wrong, key=lambda error: error.message)

    # Writing

    def upload(self, snapshot_id: str, files: Iterable[tuple[File, Path]]) -> None:
        """Store files of a snapshot that is to be; what is there already, by digest, is left.

        Raises StoreConflict where the snapshot is committed with others; FileCorrupt where the
        store has another size than what was sent.
        """
        check_id(snapshot_id)
        self._each(list(files), lambda each, stop: self._send(snapshot_id, *each, stop))

    def commit(self, manifest: Manifest) -> str:
        """Put the manifest, last and only if there is none; return its digest.

        Done already with the same bytes is success.  Raises StoreConflict where other bytes are
        there; FileMissing, FileCorrupt where a file is not as the manifest says.
        """
        return self.commit_raw(manifest, encode_manifest(manifest))

    def commit_raw(self, manifest: Manifest, data: bytes) -> str:
        """Do as ``commit`` with the manifest's bytes as they are."""
        snapshot_id = check_id(manifest.snapshot.id)
        for file in manifest.files:
            self._check_size(snapshot_id, file)
        key = manifest_key(snapshot_id)
        try:
            is_stored = self.objects.put_if_absent(key, data)
        except StoreFailed:
            # The answer may have been lost after the deed.
            if not self._has(key, data):
                raise
            is_stored = True
        if not is_stored and not self._has(key, data):
            raise StoreConflict(
                f"snapshot {snapshot_id} already has a different manifest in the store",
                details={"id": snapshot_id},
            )
        return str(digest_of(data))

    def remove(self, snapshot_id: str) -> bool:
        """Remove a snapshot, its manifest first; say whether there was something.

        Raises StoreConflict where a pointer names it.
        """
        check_id(snapshot_id)
        named = [name for name, each in self.pointers().items() if each.id == snapshot_id]
        if named:
            raise StoreConflict(
                f"snapshot {snapshot_id} is named by pointer {', '.join(named)}",
                hint=f"move the pointer, or remove it: lazyfs snapshot rm STORE@{named[0]}",
                details={"id": snapshot_id, "pointers": named},
            )
        state = self.state(snapshot_id)
        if state is None:
            return False
        self.objects.delete(manifest_key(snapshot_id))
        for stored in state.files:
            self.objects.delete(stored.key)
        return True

    # Pointers

    def pointer(self, name: str) -> Pointer | None:
        """Return what a pointer names, None if there is none of that name."""
        return pointers.read_pointer(self.objects, name)

    def pointers(self) -> dict[str, Pointer]:
        """Return all pointers by name."""
        return pointers.list_pointers(self.objects)

    def move_pointer(self, name: str, to: Pointer, expected: Pointer | None) -> None:
        """Have a pointer name *to*, if it names *expected* now; else StoreConflict."""
        pointers.move_pointer(self.objects, name, to, expected)

    def remove_pointer(self, name: str) -> None:
        """Remove a pointer; its snapshot stays."""
        pointers.remove_pointer(self.objects, name)

    # Embedded images

    def embed(
        self,
        snapshot_id: str,
        manifest: bytes,
        media_type: str,
        blobs: Mapping[str, Path | bytes],
        *,
        algorithm: str = "sha256",
    ) -> None:
        """Keep an image beside the snapshots, for the snapshot that is to be; see ``embedding``."""
        embedding.embed(
            *(self.objects, check_id(snapshot_id), manifest, media_type, blobs), algorithm=algorithm
        )

    def embedded(self, loaded: Loaded, scratch: Path) -> Path | None:
        """Return an image layout with the snapshot's embedded images, None if it has none.

        A directory is used as it is; from elsewhere the images are copied to *scratch*, which is
        made.  Raises BaseUnavailable, BaseCorrupt.
        """
        return embedding.embedded(self.objects, loaded.manifest, scratch)

    # One file

    def _send(self, snapshot_id: str, file: File, path: Path, stop: threading.Event) -> None:
        key = key_of(snapshot_id, file)
        if self.objects.size(key) == file.stored_size:
            try:
                self._check_stored(snapshot_id, file, stop)
                return
            except (FileCorrupt, FileMissing):
                pass  # what somebody left: this is better
        if self.objects.size(manifest_key(snapshot_id)) is not None:
            raise StoreConflict(
                f"snapshot {snapshot_id} is already complete: {file.name} is not overwritten",
                details={"id": snapshot_id},
            )
        self.objects.put_file(key, path)
        self._check_size(snapshot_id, file)

    def _check_size(self, snapshot_id: str, file: File) -> None:
        size = self.objects.size(key_of(snapshot_id, file))
        if size is None:
            raise missing_file(snapshot_id, file)
        if size != file.stored_size:
            raise FileCorrupt(
                f"file {file.object} of {snapshot_id}: got {size} bytes in the store, "
                f"expected {file.stored_size}",
                details={"id": snapshot_id, "file": file.name},
            )

    def _check_stored(self, snapshot_id: str, file: File, stop: threading.Event) -> None:
        with self._opened(snapshot_id, file, stop) as stream:
            check_stored(stream, file, lambda data: None)

    def _decode(self, snapshot_id: str, file: File, stop: threading.Event) -> None:
        with self._opened(snapshot_id, file, stop) as stream:
            decode_file(stream, file, lambda data: None)

    def _fetch(self, snapshot_id: str, file: File, folder: Path, stop: threading.Event) -> None:
        for is_last in (False, True):
            try:
                with self._opened(snapshot_id, file, stop) as stream:
                    restore_file(stream, file, folder / file.name)
                return
            except FileCorrupt:
                if is_last:  # once more, in case it happened on the way
                    raise

    def _opened(self, snapshot_id: str, file: File, stop: threading.Event) -> "_Opened":
        return _Opened(self.objects, snapshot_id, file, stop)

    def _each(self, items: Sequence[Item], work: Callable[[Item, threading.Event], None]) -> None:
        """Do *work* with each of *items* in threads; the first failure ends the others."""
        stop = threading.Event()

        def run(item: Item) -> None:
            stopping.set(stop)
            work(item, stop)

        pool = Threads(WORKERS)
        try:
            futures = [pool.submit(run, item) for item in items]
            wait_all(futures)
            failed = [each for each in futures if each.done() and each.exception() is not None]
            for future in failed or futures:
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    # Manifests

    def _has(self, key: str, data: bytes) -> bool:
        try:
            return self.objects.get(key, len(data)) == data
        except ObjectMissing:
            return False

    def _named(self, name: str) -> Pointer:
        pointer = self.pointer(name)
        if pointer is None:
            have = ", ".join(sorted(self.pointers())[:10]) or "none"
            raise ManifestMissing(
                f"pointer {name} does not exist in {self.objects.url}",
                hint=f"the store has these pointers: {have}",
                details={"pointer": name},
            )
        return pointer

    def _manifest_of(self, snapshot_id: str, pointer: str | None) -> bytes:
        check_word(snapshot_id)
        try:
            data = self.objects.get(manifest_key(snapshot_id), MANIFEST_LIMIT)
        except ObjectMissing as error:
            raise no_manifest(self.objects, snapshot_id, pointer, self.ids) from error
        if len(data) > MANIFEST_LIMIT:
            raise ManifestInvalid(
                f"snapshot {snapshot_id}: its manifest is longer than {MANIFEST_LIMIT} bytes"
            )
        return data


class _Opened:
    """An open file of a snapshot that ends with an error when *stop* is set."""

    def __init__(
        self, objects: ObjectStore, snapshot_id: str, file: File, stop: threading.Event
    ) -> None:
        self._opening = objects.open(key_of(snapshot_id, file))
        self._missing = missing_file(snapshot_id, file)
        self._stop = stop

    def __enter__(self) -> BinaryIO:
        try:
            self._stream = self._opening.__enter__()
        except ObjectMissing as error:
            raise self._missing from error
        return cast(BinaryIO, self)

    def __exit__(self, *exception: object) -> None:
        self._opening.__exit__(None, None, None)

    def read(self, size: int) -> bytes:
        if self._stop.is_set():
            raise StoreFailed("the download was stopped because another file failed")
        return self._stream.read(size)


def new_id(now: float | None = None) -> str:
    """Return a fresh snapshot's id: the time in UTC, and eight random hex digits."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    return f"{moment}-{secrets.token_hex(4)}"


def key_of(snapshot_id: str, file: File) -> str:
    """Return where a file of a snapshot is kept."""
    return f"{folder_of(snapshot_id)}{file.object}"


def missing_file(snapshot_id: str, file: File) -> FileMissing:
    """Return the error for a file that is not there."""
    return FileMissing(
        f"file {file.object} of {snapshot_id} is not in the store ({file.stored_size} bytes)",
        details={"id": snapshot_id, "file": file.name, "object": file.object},
    )
