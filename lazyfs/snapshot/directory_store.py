"""A directory as a store of snapshots.

Files are written under ``.tmp/``, synced, and linked or renamed into place, so that readers see
all of an object or nothing, whenever a writer dies.  Any number of processes may use the directory
at once; ``.lock`` is held for replacing a pointer.  A sandbox's memory holds secrets: what is made
here is for its owner only.  No symbolic link below the directory is followed.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lazyfs.snapshot.errors import SnapshotError, StoreFailed
from lazyfs.snapshot.keys import WORD_RE, check_key
from lazyfs.snapshot.local import local_error
from lazyfs.snapshot.objects import ObjectMissing, Stored
from lazyfs.snapshot.sparse import copy_sparse

TEMPORARY = ".tmp"
LOCK = ".lock"
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
MISSING = {errno.ENOENT, errno.ENOTDIR}
TRIES = 20  # of making a folder that others remove because it is empty
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectoryStore:
    """The objects in the directory *path*; the first write makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def put_file(self, key: str, path: Path) -> None:
        """Store a file; readers see all of it or nothing.  Holes stay holes."""
        with self._errors(key, "write"), self._written(path) as temporary:
            self._place(temporary, key, is_new=False)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store *data* unless there is something; say whether it was stored."""
        with self._errors(key, "write"), self._written(data) as temporary:
            return self._place(temporary, key, is_new=True)

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Store *data* if what is there is *expected* (None: nothing); say whether it was."""
        if expected is None:
            return self.put_if_absent(key, data)
        with self._errors(key, "write"), self._written(data) as temporary, self._lock():
            try:
                found = self.get(key, len(expected))
            except ObjectMissing:
                return False
            return found == expected and self._place(temporary, key, is_new=False)

    def get(self, key: str, limit: int) -> bytes:
        """Return an object; one that is longer than *limit* bytes is cut after ``limit + 1``."""
        with self.open(key) as stream, self._errors(key, "read"):
            return stream.read(limit + 1)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """Open an object for one reading from its start to its end."""
        with self._errors(key, "read"), self._folder(key) as (folder, name):
            file = os.open(name, READING, dir_fd=folder)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                os.close(file)
                raise StoreFailed(f"store {self.url}: {key}: got no regular file, expected one")
        with os.fdopen(file, "rb") as stream:
            yield stream

    def size(self, key: str) -> int | None:
        """Return an object's size, None if there is none."""
        try:
            with self._errors(key, "look at"), self._folder(key) as (folder, name):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except ObjectMissing:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise StoreFailed(f"store {self.url}: {key}: got no regular file, expected one")
        return found.st_size

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield all objects whose keys begin with *prefix*, in the order of keys."""
        above = prefix.rpartition("/")[0]
        if above:
            check_key(above)
        for stored in self._walk(self.path / above, f"{above}/" if above else ""):
            if stored.key.startswith(prefix):
                yield stored

    def delete(self, key: str) -> None:
        """Remove an object, and folders that are empty then; nothing to do where none is."""
        try:
            with self._errors(key, "remove"), self._folder(key) as (folder, name):
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
        except ObjectMissing:
            return
        for parent in list(self._path(key).parents)[: key.count("/")]:
            try:
                parent.rmdir()
            except OSError:
                return

    def abort_uploads(self, older_than: float) -> int:
        """Remove temporary files that nobody has written since then; return how many."""
        aborted = 0
        with self._errors(TEMPORARY, "clean up"):
            try:
                entries = list(os.scandir(self.path / TEMPORARY))
            except FileNotFoundError:
                return 0
            for entry in entries:
                try:
                    if entry.stat(follow_symlinks=False).st_mtime < older_than:
                        os.unlink(entry.path)
                        aborted += 1
                except FileNotFoundError:
                    continue
        return aborted

    def is_conditional(self) -> bool:
        """Say that the filesystem keeps "if absent"."""
        return True

    def _path(self, key: str) -> Path:
        return self.path / key

    def _walk(self, folder: Path, prefix: str) -> Iterator[Stored]:
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if WORD_RE.fullmatch(entry.name)]
            # A folder counts as its name with the slash: "a-b" is before "a/c", as in S3.
            entries.sort(key=lambda each: each.name + "/" * each.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed(prefix or ".", "list", error) from error
        for entry in entries:
            key = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), f"{key}/")
            elif entry.is_file(follow_symlinks=False):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it was removed meanwhile
                yield Stored(key, status.st_size, status.st_mtime)

    @contextmanager
    def _folder(self, key: str, *, is_made: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder of *key* without following links; yield its descriptor and the name."""
        *words, name = check_key(key).split("/")
        if is_made:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self.path, FOLDER & ~os.O_NOFOLLOW)
        try:
            for word in words:
                if is_made:
                    _make_folder(word, folder)
                inner = os.open(word, FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder, name
        finally:
            os.close(folder)

    @contextmanager
    def _written(self, content: bytes | Path) -> Iterator[Path]:
        """Write *content* to a temporary file and sync it; it goes away at the end."""
        folder = self.path / TEMPORARY
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        temporary = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        file = os.open(temporary, WRITING, 0o600)
        try:
            with os.fdopen(file, "wb") as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    with open(content, "rb") as source:
                        copy_sparse(source.fileno(), file)
                stream.flush()
                os.fsync(file)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _place(self, temporary: Path, key: str, *, is_new: bool) -> bool:
        """Give *temporary* its name; say whether that was free, where *is_new* asks for it."""
        for tries in range(TRIES, 0, -1):
            try:
                with self._folder(key, is_made=True) as (folder, name):
                    if is_new:
                        self._link(temporary, folder, name)
                    else:
                        os.rename(temporary, name, dst_dir_fd=folder)
                    os.fsync(folder)
                return True
            except FileExistsError:
                if is_new:
                    return False
                raise
            except FileNotFoundError:  # the folder was removed, since it was empty
                if tries == 1:
                    raise
        raise AssertionError("not reached")

    def _link(self, temporary: Path, folder: int, name: str) -> None:
        """Give *temporary* a second name if that is free, or raise FileExistsError."""
        try:
            os.link(temporary, name, dst_dir_fd=folder)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with self._lock():  # a filesystem without hard links: all others do as we do
                if _exists(name, folder):
                    raise FileExistsError(errno.EEXIST, "exists", name) from None
                os.rename(temporary, name, dst_dir_fd=folder)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    @contextmanager
    def _errors(self, key: str, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(key, action, error) from error

    def _failed(self, key: str, action: str, error: OSError) -> SnapshotError:
        failed = local_error(f"store {self.url}: {key}", error, action)
        if error.errno in MISSING and action != "write":
            return ObjectMissing(failed.message)
        return failed


def _make_folder(name: str, folder: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return
    os.fsync(folder)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
