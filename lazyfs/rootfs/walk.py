"""Find a path in a rootfs index, for readers that are not a kernel.

Symlinks are followed inside the tree only: an absolute target starts at the tree's root, and
``..`` of the root is the root, as in a chroot.  Nothing outside of the index can be reached.
"""

from lazyfs.errors import NotFound
from lazyfs.formats.tocs.toc import Kind
from lazyfs.rootfs.erofs_reader import ErofsIndex, IndexCorrupt

MAX_LINKS = 40  # of one walk, as in Linux
MAX_DEPTH = 4096  # a path has at most 4095 bytes; a deeper walk is going round in an index


class PathNotFound(NotFound):
    """A path that leads nowhere in the index."""


def walk_path(index: ErofsIndex, path: bytes, *, follow: bool = True) -> int:
    """Return the nid that *path* leads to, from the root, with or without a leading slash.

    The last component's symlink is followed unless *follow* is False.  Raises PathNotFound and,
    for a broken index, IndexCorrupt.
    """
    return _walk(index, path, follow=follow)[0]


def resolve_path(index: ErofsIndex, path: bytes) -> tuple[int, bytes]:
    """Return the nid that *path* leads to, and its path without symlinks, from the root.

    Raises what ``walk_path`` does.
    """
    nid, names = _walk(index, path, follow=True)
    return nid, b"/" + b"/".join(names)


def _walk(index: ErofsIndex, path: bytes, *, follow: bool) -> tuple[int, list[bytes]]:
    pending = _components(path)
    ends_in_slash = path.endswith((b"/", b"/."))
    trail = [index.root_nid]  # the directories on the way, the root first
    names: list[bytes] = []  # those of the trail below the root, and of a file at its end
    nid = index.root_nid
    links = 0
    while pending:
        name = pending.pop()
        if index.inode(nid).kind != Kind.DIRECTORY:
            raise PathNotFound(f"{_shown(path)}: a parent of it is not a directory")
        if name == b"..":
            if len(trail) > 1:
                trail.pop()
                names.pop()
            nid = trail[-1]
            continue
        found = index.lookup(nid, name)
        if found is None:
            raise PathNotFound(f"{_shown(path)} does not exist in the image")
        kind = index.inode(found).kind
        if kind == Kind.SYMLINK and (pending or follow or ends_in_slash):
            links += 1
            if links > MAX_LINKS:
                raise PathNotFound(f"{_shown(path)}: more than {MAX_LINKS} symlinks on the way")
            target = index.readlink(found)
            if target.startswith(b"/"):
                del trail[1:]
                names.clear()
            nid = trail[-1]
            pending += _components(target)
            continue
        nid = found
        names.append(name)
        if kind == Kind.DIRECTORY:
            trail.append(nid)
            if len(trail) > MAX_DEPTH:
                raise IndexCorrupt(f"{_shown(path)}: more than {MAX_DEPTH} directories deep")
    if ends_in_slash and index.inode(nid).kind != Kind.DIRECTORY:
        raise PathNotFound(f"{_shown(path)} is not a directory")
    return nid, names


def _components(path: bytes) -> list[bytes]:
    """Return the components of *path*, the last one first; ``.`` and empty ones are left out."""
    return [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]


def _shown(path: bytes) -> str:
    return path[:200].decode(errors="backslashreplace")
