"""The rules of merging once more, as plainly as possible: layers applied to a dictionary of paths.

Slow, and written without a look at the real one: the reference that property tests compare with.
"""

import stat
from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.formats.tocs.toc import Kind, Toc, TocEntry
from tests.support.formats.rootfs import Facts

IMPLICIT = TocEntry(b"", Kind.DIRECTORY, 0o755, 0, 0)
TYPES = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SYMLINK: stat.S_IFLNK,
}
SHOWN_XATTRS = (b"user.", b"trusted.", b"security.")
ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")


@dataclass(eq=False)
class Inode:
    """One inode; ``entry`` is None for a directory that only paths below it imply."""

    entry: TocEntry | None
    layer: int
    offset: int | None = None

    @property
    def is_directory(self) -> bool:
        return self.entry is None or self.entry.kind == Kind.DIRECTORY


def is_below(path: bytes, ancestor: bytes) -> bool:
    return path != ancestor and (not ancestor or path.startswith(ancestor + b"/"))


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def ancestors_of(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


class _Layer:
    """What one layer says: its own paths, what it removes, what it makes opaque."""

    def __init__(self, toc: Toc, number: int) -> None:
        self.number = number
        self.paths: dict[bytes, Inode] = {b"": Inode(None, number)}
        self.removed: set[bytes] = set()
        self.opaque: set[bytes] = set()
        end = 0
        for entry in toc.entries:
            offset = None
            if entry.size:
                offset = end
                end += -(-entry.size // 4096) * 4096
            self._add(entry, offset)
        self._resolve()
        for name in (b".prefetch.landmark", b".no.prefetch.landmark"):
            self._drop(name)

    def _add(self, entry: TocEntry, offset: int | None) -> None:
        path = entry.path
        if not path:
            self.paths[b""].entry = entry
            return
        *above, name = path.split(b"/")
        if any(part.startswith(b".wh.") for part in above):
            return
        for ancestor in ancestors_of(path):
            if ancestor not in self.paths or not self.paths[ancestor].is_directory:
                self.paths[ancestor] = Inode(None, self.number)
        if name.startswith(b".wh."):
            if name == b".wh..wh..opq":
                self.opaque.add(parent_of(path))
            elif not name.startswith(b".wh..wh.") and name != b".wh.":
                self.removed.add(b"/".join([*above, name[4:]]))
            return
        old = self.paths.get(path)
        if entry.kind == Kind.HARDLINK and entry.link == path and old is not None:
            return
        if entry.kind == Kind.DIRECTORY and old is not None and old.is_directory:
            old.entry = entry
            return
        self._drop(path)
        self.paths[path] = Inode(entry, self.number, offset)

    def _drop(self, path: bytes) -> None:
        for other in [p for p in self.paths if p == path or is_below(p, path)]:
            del self.paths[other]
        self.removed = {
            r for r in self.removed if parent_of(r) != path and not is_below(parent_of(r), path)
        }
        self.opaque = {o for o in self.opaque if o != path and not is_below(o, path)}

    def _resolve(self) -> None:
        final = {}
        for path, inode in self.paths.items():
            seen = set()
            while inode.entry is not None and inode.entry.kind == Kind.HARDLINK:
                if inode in seen:
                    raise LookupError(f"hardlink {path!r} goes in a circle")
                seen.add(inode)
                inode = self.paths[inode.entry.link]  # a KeyError is a LookupError
            if seen and inode.is_directory:
                raise LookupError(f"hardlink {path!r} leads to a directory")
            final[path] = inode
        self.paths = final


def naive_merge(tocs: Sequence[Toc]) -> dict[bytes, Inode]:
    """Return the inode of every path; raises LookupError for a layer with broken hardlinks."""
    tree: dict[bytes, Inode] = {b"": Inode(None, 0)}

    def delete(*, at: bytes | None = None, below: bytes) -> None:
        for path in [p for p in tree if p == at or is_below(p, below)]:
            del tree[path]

    for number, toc in enumerate(tocs):
        layer = _Layer(toc, number)
        for path in layer.opaque:
            if path in tree and tree[path].is_directory:
                delete(below=path)
        for path in layer.removed:
            delete(at=path, below=path)
        for path in sorted(layer.paths, key=lambda p: p.count(b"/") if p else -1):
            inode, old = layer.paths[path], tree.get(path)
            if old is not None and old.is_directory and inode.is_directory:
                if inode.entry is not None:
                    old.entry, old.layer = inode.entry, inode.layer
            else:
                delete(below=path)
                tree[path] = inode
    return tree


def naive_facts(tree: dict[bytes, Inode]) -> dict[bytes, Facts]:
    """Return what an index must say of the merged tree."""
    names: dict[Inode, set[bytes]] = {}
    for path, inode in tree.items():
        names.setdefault(inode, set()).add(path)
    facts = {}
    for path, inode in tree.items():
        entry = inode.entry or IMPLICIT
        nlink = len(names[inode])
        if inode.is_directory:
            nlink = 2 + sum(
                p != b"" and parent_of(p) == path and tree[p].is_directory for p in tree
            )
        facts[path] = Facts(
            mode=TYPES[entry.kind] | entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            nlink=nlink,
            size=len(entry.link) if entry.kind == Kind.SYMLINK else entry.size,
            mtime=(entry.mtime_seconds, entry.mtime_nanoseconds),
            rdev=(entry.dev_major, entry.dev_minor),
            link=entry.link,
            names=frozenset(names[inode]),
            xattrs={name: value for name, value in entry.xattrs if is_shown_xattr(name)},
        )
    return facts


def is_shown_xattr(name: bytes) -> bool:
    if name.startswith(b"user.lazyfs."):
        return False
    return name in ACLS or any(name.startswith(p) and name != p for p in SHOWN_XATTRS)
