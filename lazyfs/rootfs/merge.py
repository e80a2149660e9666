"""Merge the layers of an image into one tree.

Each layer is first made a tree of its own, from its entries in their order (last one wins), with
its hardlinks resolved; then it is laid over the tree of the layers below it.  No link is ever
followed: a parent that is not a directory is replaced by an implicit one.
Spec: OCI image-spec, layer.md; the rules for names are in whiteout.py.
"""

from collections.abc import Sequence

import msgspec

from lazyfs.errors import FormatError
from lazyfs.formats.tocs.paths import WHITEOUT_PREFIX
from lazyfs.formats.tocs.toc import Kind, Toc, TocEntry
from lazyfs.rootfs.layout import NO_PAYLOAD, device_offsets
from lazyfs.rootfs.whiteout import (
    LANDMARKS,
    is_opaque,
    is_whiteout,
    whiteout_target,
)


class BadLayer(FormatError):
    """A layer whose entries do not make a tree."""


class Node(msgspec.Struct, gc=False):
    """One inode of the tree; a hardlinked one stands in several directories.

    ``entry`` is None for a directory that is there only because of the paths below it.  ``layer``
    counts from 0, the bottom layer; ``device_offset`` is that of the payload, NO_PAYLOAD without
    one.  ``nid`` and ``nlink`` are the index writer's, 0 until it numbers the tree.
    """

    kind: Kind
    entry: TocEntry | None
    layer: int
    device_offset: int = NO_PAYLOAD
    nid: int = 0
    nlink: int = 0


class Directory(Node, gc=False):
    """A directory; ``is_opaque`` and ``whiteouts`` are what its layer says about those below it.

    ``parent_nid`` and ``names``, the sorted names of the children, are the index writer's.
    """

    children: dict[bytes, Node] = {}
    is_opaque: bool = False
    whiteouts: set[bytes] | None = None
    parent_nid: int = 0
    names: list[bytes] = []


def merge(tocs: Sequence[Toc]) -> Directory:
    """Return the root of the merged tree of *tocs*, bottom layer first.

    Without a layer that has an entry for the root, the root's ``entry`` is None.  Raises BadLayer.
    """
    root = Directory(Kind.DIRECTORY, None, 0)
    for number, toc in enumerate(tocs):
        layer = _LayerTree(toc, number).build()
        if number == 0:
            root = layer
        else:
            _lay_over(root, layer)
    return root


def _lay_over(below: Directory, above: Directory) -> None:
    """Lay the tree *above* over the tree *below*, which becomes the result."""
    pending = [(below, above)]
    while pending:
        lower, upper = pending.pop()
        if upper.is_opaque:
            lower.children = {}
        elif upper.whiteouts is not None:
            for name in upper.whiteouts:
                lower.children.pop(name, None)
        if upper.entry is not None:
            lower.entry = upper.entry
            lower.layer = upper.layer
        children = lower.children
        for name, node in upper.children.items():
            if isinstance(node, Directory):
                old = children.get(name)
                if isinstance(old, Directory):
                    pending.append((old, node))
                    continue
            children[name] = node


class _LayerTree:
    """The tree of one layer while it is made."""

    def __init__(self, toc: Toc, layer: int) -> None:
        self._toc = toc
        self._layer = layer
        self._root = Directory(Kind.DIRECTORY, None, layer)
        # Every directory that is in the tree now, by path: finding a parent is one lookup.
        self._directories: dict[bytes, Directory] = {b"": self._root}
        self._hardlinks: list[tuple[dict[bytes, Node], bytes, Node]] = []

    def build(self) -> Directory:
        """Return the root, with hardlinks resolved and landmarks removed."""
        layer = self._layer
        directories = self._directories
        find_directory = directories.get
        for entry, device_offset in zip(self._toc.entries, device_offsets(self._toc), strict=True):
            path = entry.path
            kind = entry.kind
            parent_path, _, name = path.rpartition(b"/")
            if not path:
                if kind != Kind.DIRECTORY:
                    raise BadLayer(f"the root is not a directory ({kind.name.lower()})")
                self._root.entry = entry
                continue
            if WHITEOUT_PREFIX in path and self._note_whiteout(parent_path, name):
                continue
            parent = find_directory(parent_path)
            if parent is None:
                parent = self._make_directory(parent_path)
            children = parent.children
            old = children.get(name)
            if kind == Kind.DIRECTORY:
                if isinstance(old, Directory):
                    old.entry = entry
                else:
                    children[name] = directories[path] = Directory(kind, entry, layer)
                continue
            if old is not None:
                if kind == Kind.HARDLINK and entry.link == path:
                    continue  # a link to itself, as tar writes for a file named twice
                if isinstance(old, Directory):
                    self._forget(path, old)
            children[name] = node = Node(kind, entry, layer, device_offset)
            if kind == Kind.HARDLINK:
                self._hardlinks.append((children, name, node))
        if self._hardlinks:
            self._resolve_hardlinks()
        for name in LANDMARKS:
            self._root.children.pop(name, None)
        return self._root

    def _note_whiteout(self, parent_path: bytes, name: bytes) -> bool:
        """Return whether the entry is no file; if it is a whiteout, note what it removes."""
        if any(map(is_whiteout, parent_path.split(b"/"))):
            return True
        if not is_whiteout(name):
            return False
        parent = self._make_directory(parent_path)
        target = whiteout_target(name)
        if is_opaque(name):
            parent.is_opaque = True
        elif target is not None:
            if parent.whiteouts is None:
                parent.whiteouts = set()
            parent.whiteouts.add(target)
        return True

    def _make_directory(self, path: bytes) -> Directory:
        """Return the directory *path*; make it, and all its missing parents, implicit."""
        missing = []
        directory = self._directories.get(path)
        while directory is None:
            path, _, name = path.rpartition(b"/")
            missing.append(name)
            directory = self._directories.get(path)
        for name in reversed(missing):
            path = path + b"/" + name if path else name
            child = Directory(Kind.DIRECTORY, None, self._layer)
            directory.children[name] = self._directories[path] = child
            directory = child
        return directory

    def _forget(self, path: bytes, directory: Directory) -> None:
        """Forget the paths of *directory* and all below it: a file takes its place."""
        pending = [(path, directory)]
        while pending:
            path, directory = pending.pop()
            del self._directories[path]
            for name, node in directory.children.items():
                if isinstance(node, Directory):
                    pending.append((path + b"/" + name, node))
            directory.children.clear()  # hardlinks in it are no longer in the tree

    def _resolve_hardlinks(self) -> None:
        """Put the final target in the place of each hardlink that is still in the tree."""
        resolved: dict[int, Node] = {}
        for children, name, link in self._hardlinks:
            if children.get(name) is link:
                children[name] = self._target(link, resolved)

    def _target(self, link: Node, resolved: dict[int, Node]) -> Node:
        """Return what *link* names in the end; *resolved* remembers it by the link's id()."""
        chain: set[int] = set()
        node = link
        while (entry := node.entry) is not None and entry.kind == Kind.HARDLINK:
            if id(node) in resolved:
                node = resolved[id(node)]
                break
            if id(node) in chain:
                raise BadLayer(f"hard link {_path(link)[:200]!r} leads in a circle")
            chain.add(id(node))
            node = self._find(entry.link, link)
        if isinstance(node, Directory):
            raise BadLayer(f"hard link {_path(link)[:200]!r} leads to a directory")
        resolved.update(dict.fromkeys(chain, node))
        return node

    def _find(self, path: bytes, link: Node) -> Node:
        parent_path, _, name = path.rpartition(b"/")
        parent = self._directories.get(parent_path)
        node = None if parent is None else parent.children.get(name)
        if node is None:
            raise BadLayer(
                f"hard link {_path(link)[:200]!r} leads to {path[:200]!r}, "
                "which is not in the same layer"
            )
        return node


def _path(link: Node) -> bytes:
    return b"" if link.entry is None else link.entry.path
