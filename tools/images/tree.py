"""A file tree in memory, and the tar entries it becomes."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

MTIME = 1_700_000_000  # of everything that has no time of its own


@dataclass(slots=True)
class Node:
    """One path of a tree; ``kind`` is one of tarfile's type bytes.

    A regular file has ``data``, or ``size`` bytes that ``pieces()`` makes when they are needed.
    """

    kind: bytes
    mode: int
    data: bytes = field(default=b"", repr=False)
    link: str = ""
    uid: int = 0
    gid: int = 0
    mtime: int = MTIME
    size: int = 0
    pieces: Callable[[], Iterator[bytes]] | None = None

    def tar_info(self, path: str) -> tarfile.TarInfo:
        """Return the tar header for this node at *path*."""
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.linkname = self.kind, self.mode, self.link
        info.uid, info.gid, info.mtime = self.uid, self.gid, self.mtime
        if self.kind == tarfile.REGTYPE:
            info.size = self.size if self.pieces else len(self.data)
        return info


# Paths are relative and have no "./" in front; directories no slash behind.
Tree = dict[str, Node]


def directory(mode: int = 0o755) -> Node:
    return Node(tarfile.DIRTYPE, mode)


def file(data: bytes, mode: int = 0o644) -> Node:
    return Node(tarfile.REGTYPE, mode, data=data)


def symlink(target: str) -> Node:
    return Node(tarfile.SYMTYPE, 0o777, link=target)


def add_parents(tree: Tree) -> None:
    """Add the directories that *tree* implies."""
    for path in list(tree):
        while path := path.rpartition("/")[0]:
            tree.setdefault(path, directory())


def total_size(tree: Tree) -> int:
    """Return the sum of all file sizes, in bytes."""
    return sum(node.tar_info(path).size for path, node in tree.items())
