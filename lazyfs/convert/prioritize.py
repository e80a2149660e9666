"""Find the files that should come first, in the layers that hold them.

The user names files of the image; each lies in one layer, and may be reached through symlinks in
others.  The merged tree says which: a lazy mount will read the symlinks as well.
"""

from collections import deque
from collections.abc import Sequence

from lazyfs.digest import Digest
from lazyfs.errors import NotFound, UsageError
from lazyfs.formats.tars.tar import TarMember
from lazyfs.formats.tocs.toc import Kind, Toc, TocEntry
from lazyfs.rootfs.merge import Directory, Node, merge

MAX_SYMLINKS = 40  # as Linux
NO_DIGEST = Digest("sha256", "0" * 64)


def prioritize(
    paths: Sequence[str], layers: Sequence[Sequence[TarMember]]
) -> list[tuple[bytes, ...]]:
    """Return for each layer the paths to write first, in the order in which *paths* need them.

    *layers* are the arranged members of each layer, bottom first.  A path stands for the symlinks
    on the way to it and the file at its end.  Raises NotFound for a file that the image does not
    have, UsageError for a directory.
    """
    placed: list[dict[bytes, None]] = [{} for _ in layers]
    root = merge([_toc_of(members) for members in layers]) if layers else None
    for path in paths:
        if root is None:
            raise NotFound(f"prioritized file {path!r} does not exist: the image has no layers")
        for number, found in _walk(root, path):
            placed[number][found] = None
    return [tuple(found) for found in placed]


def _toc_of(members: Sequence[TarMember]) -> Toc:
    """Return a table of contents that says as much as names, kinds and links."""
    entries = [
        TocEntry(member.path, member.kind, member.mode, member.uid, member.gid, link=member.link)
        for member in members
    ]
    return Toc(NO_DIGEST, tuple(entries))


def _walk(root: Directory, path: str) -> list[tuple[int, bytes]]:
    """Return (layer, path in it) of every symlink on the way and of the file."""
    found: list[tuple[int, bytes]] = []
    at: list[tuple[bytes, Directory]] = [(b"", root)]  # never leads above the root
    names = deque(path.encode("utf-8", "surrogateescape").split(b"/"))
    links = 0
    while names:
        name = names.popleft()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if len(at) > 1:
                at.pop()
            continue
        node = at[-1][1].children.get(name)
        if node is None:
            raise NotFound(f"prioritized file {path!r} does not exist in the image")
        here = b"/".join([*(parent for parent, _ in at[1:]), name])
        if isinstance(node, Directory):
            at.append((name, node))
            continue
        found.append((node.layer, here))
        if node.kind is not Kind.SYMLINK:
            if any(names):
                raise NotFound(f"prioritized file {path!r}: {here!r} is not a directory")
            return found
        links += 1
        if links > MAX_SYMLINKS:
            raise NotFound(f"prioritized file {path!r}: more than {MAX_SYMLINKS} symlinks")
        target = _target(node)
        if target.startswith(b"/"):
            del at[1:]
        names.extendleft(reversed(target.split(b"/")))
    raise UsageError(f"prioritized file {path!r} is a directory")


def _target(node: Node) -> bytes:
    return b"" if node.entry is None else node.entry.link
