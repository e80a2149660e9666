"""What is compared: the tree that an unpacker, or a mount, makes of an image."""

import hashlib
import stat
from collections.abc import Mapping

import msgspec


class Node(msgspec.Struct, frozen=True):
    """What a name stands for; ``names`` are all names of its inode, ``digest`` is of a file."""

    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: tuple[int, int] = (0, 0)
    rdev: tuple[int, int] = (0, 0)
    link: bytes = b""
    digest: str = ""
    xattrs: Mapping[bytes, bytes] = {}
    names: frozenset[bytes] = frozenset()
    is_implied: bool = False

    @property
    def kind(self) -> int:
        """The bits of the mode that say what it is."""
        return stat.S_IFMT(self.mode)


class Tree(msgspec.Struct, frozen=True):
    """The nodes by path, without the root; or why there are none."""

    nodes: Mapping[bytes, Node] = {}
    refusal: str = ""


def digest_of(data: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.sha256(data).hexdigest()


def with_names(nodes: Mapping[bytes, Node], inodes: Mapping[bytes, object]) -> dict[bytes, Node]:
    """Return *nodes* with all names of their inodes, which *inodes* gives by path."""
    names: dict[object, set[bytes]] = {}
    for path, inode in inodes.items():
        names.setdefault(inode, set()).add(path)
    return {
        path: msgspec.structs.replace(node, names=frozenset(names[inodes[path]]))
        for path, node in nodes.items()
    }
