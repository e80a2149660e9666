"""The store's folder: what lies where, and how a file gets there.

    CACHEDIR.TAG  version
    blobs/sha256/<hex>          manifests, indexes and configs, as received
    images/<manifest hex>/      record.json, index.erofs, provenance
    layers/<TOC hex>/           toc.zst, table, content, presence
    profiles/<manifest hex>     what was read first
    passes/<blob hex>           which TOC a plain layer's blob has
    names/<sha256>              what a reference meant the last time
    pins/<sandbox>              which images it needs
    signatures/<subject hex>    what was signed over a manifest or an index
    signed/<sha256>             the newest signature that a reference had
    revocation/<sha256>         CRLs and OCSP answers, as received
    quarantine/                 what was stored and has rotted
    tmp/                        what is being written

Every file but ``content`` and ``presence`` is written under ``tmp/`` and renamed, so several
processes share the folder without locks, and a crash leaves nothing half-written behind a name.
Format: docs/format.md.
"""

import errno
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from lazyfs.digest import HEX_LENGTH, Digest, parse_digest
from lazyfs.errors import StoreError
from lazyfs.printable import printable
from lazyfs.store.content.regular import read_regular

STORE_VERSION = "1"
OWN_NAMES = {
    *("CACHEDIR.TAG", "version", "blobs", "images", "layers", "names", "passes", "profiles"),
    *("pins", "quarantine", "revocation", "signatures", "signed", "tmp"),
}
FOREIGN_NAMES = {
    "lost+found",
    ".Trash-0",
    ".snapshot",
    ".snapshots",
    ".zfs",
    "System Volume Information",
}
"""What filesystems have in their roots by themselves: such a folder is as good as an empty one."""
TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This folder is lazyfs' cache; its contents can be fetched again.\n"
)


ALGORITHMS = {length: algorithm for algorithm, length in HEX_LENGTH.items()}
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ESTALE}
MEMORY = "/dev/shm"


class StoreUnusable(StoreError):
    """The folder cannot serve as a store."""


class StoreUnwritten(StoreError):
    """The disk does not take what was to be written: images can be served without it."""


class StoreFull(StoreUnwritten):
    """There is no room for what was to be written."""


class StoreReadOnly(StoreUnwritten, StoreUnusable):
    """Nothing may be written, or the disk fails, or the folder is gone."""


HINTS = {
    errno.EROFS: "its filesystem is mounted read-only: mount it read-write, or choose another "
    "--cache-dir",
    errno.EACCES: "this user may not write there: choose another --cache-dir",
    errno.EPERM: "this user may not write there: choose another --cache-dir",
    errno.EIO: "the disk fails: the kernel's log says more; another --cache-dir may do",
    errno.ENOSPC: "`lazyfs cache prune` makes room; so does deleting other files (df, df -i)",
    errno.EDQUOT: "the quota of this user is used up; `lazyfs cache prune` makes room",
}


# Somebody else has put there what lazyfs does not: it is not removed unasked.
MISPLACED = {
    errno.EISDIR: "a directory is in the place of a file",
    errno.ENOTDIR: "a file is in the place of a directory",
    errno.EEXIST: "a file is in the place of a directory",
}


def store_error(what: object, exc: OSError) -> StoreError:
    """Return our error for *exc*, which the store *what* met."""
    if exc.errno in MISPLACED:
        path = _misplaced(what, exc)
        hint = f"remove {path}: lazyfs makes it again"
        if exc.errno != errno.EISDIR:
            hint = f"remove {path} and put an empty directory there: mkdir -m 700 {path}"
        return StoreUnusable(f"store {path}: {MISPLACED[exc.errno]}", hint=hint)
    family: type[StoreError] = StoreUnusable
    if exc.errno in NO_SPACE:
        family = StoreFull
    elif exc.errno in UNWRITABLE:
        family = StoreReadOnly
    return family(f"store {what}: {exc.strerror}", hint=HINTS.get(exc.errno or 0))


def _misplaced(what: object, exc: OSError) -> str:
    """Return the path of what is no file, or no directory, and should be."""
    # Of a rename the second name is the one in whose place something is.
    named = [each for each in (exc.filename2, exc.filename) if isinstance(each, str | os.PathLike)]
    paths = [*map(Path, named), Path(str(what))]
    above = [each for path in paths for each in reversed([path, *path.parents])]
    if exc.errno == errno.EISDIR:
        found = [each for each in paths if each.is_dir()]
    else:
        found = [each for each in above if os.path.lexists(each) and not each.is_dir()]
    return printable(str((found or paths)[0]))


class Store:
    """One store folder; *root* is made, with mode 0700, when it is missing.

    Contents that have been verified are believed later, so a folder that another user owns, or
    that others may write to, is refused (StoreUnusable).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.images = root / "images"
        self.layers = root / "layers"
        self.profiles = root / "profiles"
        self.names = root / "names"
        self.passes = root / "passes"
        self.pins = root / "pins"
        self.quarantine = root / "quarantine"
        self.revocation = root / "revocation"
        self.signatures = root / "signatures"
        self.signed = root / "signed"
        self.tmp = root / "tmp"
        try:
            self._prepare()
        except OSError as exc:
            raise store_error(root, exc) from exc

    def _prepare(self) -> None:
        version = self.root / "version"
        try:
            data = read_regular(version)
        except FileNotFoundError:
            data = b""
        found = data[:20].decode("ascii", "replace").strip()
        # Empty, or zeros, is what a loss of power leaves of a file that was just written.  What
        # else the folder holds has digests of its own.
        if not data.strip(b"\0\n"):
            found = self._create(version)
        if found != STORE_VERSION:
            raise StoreUnusable(
                f"store {self.root}: got version {found[:20]!r}, expected {STORE_VERSION!r}",
                hint="another release of lazyfs made it: remove it, or choose another --cache-dir",
            )
        status = self.root.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreUnusable(
                f"store {self.root}: got owner {status.st_uid}, mode "
                f"{stat.S_IMODE(status.st_mode):o}, expected owner {os.geteuid()}, mode 700",
                hint="a store that others can write to could serve bytes that nobody verified",
            )
        self._make_missing()

    def _create(self, version: Path) -> str:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {entry.name for entry in self.root.iterdir()}
        foreign = sorted(names - OWN_NAMES - FOREIGN_NAMES)
        if foreign:
            raise StoreUnusable(
                f"store {self.root} is not a cache of lazyfs, and not empty: it has {foreign[0]!r}",
                hint="choose an empty directory",
            )
        self._make_folders()
        self.write_file(self.root / "CACHEDIR.TAG", TAG.encode())
        self.write_file(version, STORE_VERSION.encode() + b"\n", is_synced=True)
        return STORE_VERSION

    def _make_folders(self) -> None:
        for folder in (self.blobs / "sha256", self.images, self.layers, self.tmp):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _make_missing(self) -> None:
        """Make again what somebody has removed; who wants to write there is told otherwise."""
        try:
            self._make_folders()
        except OSError:
            pass

    def blob_path(self, digest: Digest) -> Path:
        """Where a manifest, index or config lies."""
        return self.blobs / digest.algorithm / digest.hex

    def image_path(self, manifest_digest: Digest) -> Path:
        """The folder of one image's rootfs index."""
        return self.images / manifest_digest.hex

    def layer_path(self, toc_digest: Digest) -> Path:
        """The folder of one layer's content."""
        return self.layers / toc_digest.hex

    def profile_path(self, manifest_digest: Digest) -> Path:
        """Where the profile of an image lies."""
        return self.profiles / manifest_digest.hex

    def discard(self, folder: Path) -> None:
        """Remove a folder: all of it at once for those who look for it."""
        temporary = self.temporary()
        try:
            folder.rename(temporary)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise store_error(folder, exc) from exc
        shutil.rmtree(temporary, ignore_errors=True)

    def temporary(self) -> Path:
        """A fresh name under ``tmp/``, on the same filesystem as everything else."""
        return self.tmp / f"{os.getpid()}-{secrets.token_hex(8)}"

    def make_folder(self, path: Path) -> None:
        """Make a folder of the store, where it is missing."""
        try:
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise store_error(path, exc) from exc

    def write_file(
        self, path: Path, data: bytes | bytearray | memoryview, *, is_synced: bool = False
    ) -> None:
        """Write *data* to *path* so that readers see all of it or nothing.

        No fsync unless *is_synced*: every file written this way carries or has a digest, and is
        made again when it does not match.
        """
        temporary = self.temporary()
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                if is_synced:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename(path)
        except OSError as exc:
            _remove(temporary)
            raise store_error(path, exc) from exc


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        pass  # it is not there, or a sweep will find it


def open_store(root: Path) -> Store | None:
    """Return the store in the folder *root*, None if there is none: looking must not make one."""
    return Store(root) if (root / "version").exists() else None


def digest_named(name: str) -> Digest:
    """Return the digest whose hexadecimal part is the name of a file; raises BadDigest."""
    return parse_digest(f"{ALGORITHMS.get(len(name), 'sha256')}:{name}")


def volatile_store() -> Store:
    """Return a fresh store in memory, for an image whose index has no room on the disk.

    No contents go there.  Raises StoreFull where it has no room either.
    """
    parent = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = ""
    try:
        folder = tempfile.mkdtemp(prefix="lazyfs-", dir=parent)
        return Store(Path(folder))
    except (OSError, StoreError) as exc:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(exc, StoreError):
            raise
        raise store_error(parent or tempfile.gettempdir(), exc) from exc
