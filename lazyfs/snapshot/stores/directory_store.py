"""A directory as a store of snapshots.

Files are written under ``.tmp/``, synced, and linked or renamed into place, so that readers see
all of an object or nothing, whenever a writer dies.  Any number of processes may use the directory
at once; ``.lock`` is held for replacing a pointer.  A sandbox's memory holds secrets: what is made
here is for its owner only.  Whoever else can write to the directory may have put anything in the
places of files and folders: every step below it goes from an open folder to the next and follows no
symbolic link, and what is no regular file is neither read nor waited for.
"""

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lazyfs.documents.errors import SnapshotError, StoreFailed
from lazyfs.sandbox.specs.local import local_error
from lazyfs.snapshot.stores.keys import WORD_RE, check_key
from lazyfs.snapshot.stores.objects import ObjectMissing, Stored
from lazyfs.snapshot.stores.sparse import copy_sparse

TEMPORARY = ".tmp"
LOCK = ".lock"
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
MISSING = {errno.ENOENT, errno.ENOTDIR}
TRIES = 20  # of making a folder that others remove because it is empty
DEEPEST = 8  # folders below each other; ours are four
TEMPORARY_RE = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}", re.ASCII)
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
LOCKING = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
Temporary = tuple[int, str]  # an open folder, and the name of a file in it


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
                raise StoreFailed(f"{key} in store {self.url} is not a regular file")
        with os.fdopen(file, "rb") as stream:
            yield stream

    def size(self, key: str) -> int | None:
        """Return an object's size, None if there is none."""
        try:
            with self._errors(key, "inspect"), self._folder(key) as (folder, name):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except ObjectMissing:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise StoreFailed(f"{key} in store {self.url} is not a regular file")
        return found.st_size

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield all objects whose keys begin with *prefix*, in the order of keys.

        What lies there under a name that no key has, deeper than keys go, or as anything but a
        regular file, is not ours and is left out.
        """
        above = prefix.rpartition("/")[0]
        words = check_key(above).split("/") if above else []
        try:
            with self._errors(prefix or ".", "list"):
                folder = self._open(words)
        except ObjectMissing:
            return
        for stored in self._walk(folder, f"{above}/" if above else ""):
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
        words = key.split("/")[:-1]
        while words:
            try:
                with self._folder("/".join(words)) as (folder, name):
                    os.rmdir(name, dir_fd=folder)
            except OSError:
                return
            words.pop()

    def abort_uploads(self, older_than: float) -> int:
        """Remove temporary files that nobody has written since then; return how many."""
        aborted = 0
        try:
            with self._errors(TEMPORARY, "clean up"):
                folder = self._open([TEMPORARY])
        except ObjectMissing:
            return 0
        try:
            with self._errors(TEMPORARY, "clean up"), os.scandir(folder) as found:
                for entry in found:
                    try:
                        is_ours = TEMPORARY_RE.fullmatch(entry.name) and entry.is_file(
                            follow_symlinks=False
                        )
                        if is_ours and entry.stat(follow_symlinks=False).st_mtime < older_than:
                            os.unlink(entry.name, dir_fd=folder)
                            aborted += 1
                    except FileNotFoundError:
                        continue
        finally:
            os.close(folder)
        return aborted

    def is_conditional(self) -> bool:
        """Say that the filesystem keeps "if absent"."""
        return True

    def _walk(self, folder: int, prefix: str) -> Iterator[Stored]:
        """Yield what is in an open folder, which is closed at the end."""
        try:
            with self._errors(prefix or ".", "list"), os.scandir(folder) as found:
                entries = [entry for entry in found if WORD_RE.fullmatch(entry.name)]
                # A folder counts as its name with the slash: "a-b" is before "a/c", as in S3.
                entries.sort(key=lambda each: each.name + "/" * each.is_dir(follow_symlinks=False))
            for entry in entries:
                key = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if key.count("/") >= DEEPEST:
                        continue
                    try:
                        with self._errors(key, "list"):
                            inner = os.open(entry.name, FOLDER, dir_fd=folder)
                    except ObjectMissing:
                        continue  # it was removed meanwhile, or is another thing now
                    yield from self._walk(inner, f"{key}/")
                elif entry.is_file(follow_symlinks=False):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # it was removed meanwhile
                    yield Stored(key, status.st_size, status.st_mtime)
        finally:
            os.close(folder)

    def _open(self, words: Sequence[str], *, is_made: bool = False) -> int:
        """Open the folder of *words* below the directory; no link is followed there."""
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
        except BaseException:
            os.close(folder)
            raise
        return folder

    @contextmanager
    def _folder(self, key: str, *, is_made: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder of *key* without following links; yield its descriptor and the name."""
        *words, name = check_key(key).split("/")
        folder = self._open(words, is_made=is_made)
        try:
            yield folder, name
        finally:
            os.close(folder)

    @contextmanager
    def _written(self, content: bytes | Path) -> Iterator[Temporary]:
        """Write *content* to a temporary file and sync it; it goes away at the end."""
        folder = self._open([TEMPORARY], is_made=True)
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            file = os.open(name, WRITING, 0o600, dir_fd=folder)
            try:
                with os.fdopen(file, "wb") as stream:
                    if isinstance(content, bytes):
                        stream.write(content)
                    else:
                        with open(content, "rb") as source:
                            copy_sparse(source.fileno(), file)
                    stream.flush()
                    os.fsync(file)
                yield folder, name
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)

    def _place(self, temporary: Temporary, key: str, *, is_new: bool) -> bool:
        """Give *temporary* its name; say whether that was free, where *is_new* asks for it."""
        for tries in range(TRIES, 0, -1):
            try:
                with self._folder(key, is_made=True) as (folder, name):
                    if is_new:
                        self._link(temporary, folder, name)
                    else:
                        _rename(temporary, folder, name)
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

    def _link(self, temporary: Temporary, folder: int, name: str) -> None:
        """Give *temporary* a second name if that is free, or raise FileExistsError."""
        try:
            os.link(temporary[1], name, src_dir_fd=temporary[0], dst_dir_fd=folder)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with self._lock():  # a filesystem without hard links: all others do as we do
                if _exists(name, folder):
                    raise FileExistsError(errno.EEXIST, "exists", name) from None
                _rename(temporary, folder, name)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        folder = self._open([])
        try:
            file = os.open(LOCK, LOCKING, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise StoreFailed(f"{LOCK} in store {self.url} is not a regular file")
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
        failed = local_error(f"{key} in store {self.url}", error, action)
        if error.errno in MISSING and action != "write":
            return ObjectMissing(failed.message)
        return failed


def _rename(temporary: Temporary, folder: int, name: str) -> None:
    os.rename(temporary[1], name, src_dir_fd=temporary[0], dst_dir_fd=folder)


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
