"""What a file tree holds, as values that compare: on disk, and as a tar says it should be."""

import hashlib
import io
import os
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Found:
    """One name of a tree; ``rdev`` and ``link`` where they mean something."""

    kind: int
    mode: int
    uid: int
    gid: int
    size: int | None
    mtime_ns: int
    rdev: int | None = None
    link: bytes | None = None
    digest: str | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)


def look(path: bytes) -> Found:
    """Return what is at *path*, without following it."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    found = Found(
        kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, None, status.st_mtime_ns
    )
    if kind == stat.S_IFREG:
        found.size = status.st_size
        with open(path, "rb") as file:
            found.digest = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == stat.S_IFLNK:
        found.link = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        found.rdev = status.st_rdev
    names = os.listxattr(path, follow_symlinks=False)
    found.xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    return found


def tree_of(root: str | Path) -> dict[bytes, Found]:
    """Return everything below *root*, by path."""
    top = os.fsencode(root)
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = look(path)
    return found


TAR_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
XATTR_PREFIX = "SCHILY.xattr."


def tree_of_tar(data: bytes) -> dict[bytes, Found]:
    """Return what a layer's tar makes when it is unpacked alone; the last of duplicates counts.

    Whiteouts are not applied: leave them to tests that have layers to apply them to.
    """
    found: dict[bytes, Found] = {}
    links: list[tuple[bytes, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as tar:
        for member in tar:
            path = _path(member.name)
            if not path:
                continue
            if member.islnk():
                links.append((path, _path(member.linkname)))
                continue
            kind = TAR_KINDS[member.type]
            entry = Found(
                kind, member.mode & 0o7777, member.uid, member.gid, None, _nanoseconds(member)
            )
            if kind == stat.S_IFREG:
                content = tar.extractfile(member).read()
                entry.size = len(content)
                entry.digest = hashlib.sha256(content).hexdigest()
            elif kind == stat.S_IFLNK:
                entry.link = member.linkname.encode("utf-8", "surrogateescape")
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                entry.rdev = os.makedev(member.devmajor, member.devminor)
            entry.xattrs = {
                name.removeprefix(XATTR_PREFIX): value.encode("utf-8", "surrogateescape")
                for name, value in member.pax_headers.items()
                if name.startswith(XATTR_PREFIX)
            }
            found[path] = entry
    while links:
        waiting = [(path, target) for path, target in links if target not in found]
        for path, target in links:
            if target in found:
                found[path] = found[target]
        if len(waiting) == len(links):
            raise ValueError(f"hardlinks to nothing: {waiting}")
        links = waiting
    return found


def _path(name: str) -> bytes:
    raw = os.path.normpath("/" + name).lstrip("/")
    return raw.encode("utf-8", "surrogateescape")


def _nanoseconds(member: tarfile.TarInfo) -> int:
    whole, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
    nanoseconds = int((fraction + "0" * 9)[:9] or 0)
    return int(whole) * 10**9 + (-nanoseconds if whole.startswith("-") else nanoseconds)
