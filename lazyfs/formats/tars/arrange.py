"""Decide what a converted layer holds and in which order.

A tar is a sequence of actions: a later member replaces an earlier one of the same name, a hardlink
means the file that its target's name has *at that point*, and a name whose parent is a symlink by
then means the directory that the symlink leads to.  A table of contents is a set of names.
``arrange`` plays the actions through (play.py) and returns members that say the same as a set:

- of equal names the last one stays; a directory listed again keeps its place and its children,
  anything else that replaces a directory removes what was in it;
- hardlinks name their file directly, without chains, and come after it; where the file itself
  was replaced later, its first link takes over the payload;
- names below symlinks are those of the directories that the symlinks lead to;
- landmarks and a table of contents of an earlier conversion are dropped;
- prioritised files come first, each after the directories above it and the file it links to.

Whiteouts are ordinary members, of any kind: only their name counts, so hardlinks and devices among
them become files.  Missing parent directories stay missing: an explicit entry would replace the
attributes of the same directory in a lower layer (a 1777 ``/tmp``, say).
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from lazyfs.formats.tars.play import play
from lazyfs.formats.tars.tar_member import BadTar, TarMember
from lazyfs.formats.tocs.toc import Kind

TOC_NAME = b"stargz.index.json"
PREFETCH_LANDMARK = b".prefetch.landmark"
NO_PREFETCH_LANDMARK = b".no.prefetch.landmark"
RESERVED = frozenset((TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK))


class Arrangement(msgspec.Struct, frozen=True):
    """The members of a layer in the order in which they will be written.

    The first ``prioritized`` of them are what a mount should fetch ahead.  ``missing`` are
    prioritised paths that the layer does not have.
    """

    members: tuple[TarMember, ...]
    prioritized: int = 0
    missing: tuple[bytes, ...] = ()


def arrange(members: Iterable[TarMember], prioritized: Sequence[bytes] = ()) -> Arrangement:
    """Return the arrangement of a tar's *members*, or raise BadTar for a tree that cannot be.

    *prioritized* are normalised paths, in the order in which they will be needed.
    """
    survivors = play([member for member in members if not _is_reserved(member)])
    if not RESERVED.isdisjoint(survivors):  # by way of a symlink
        survivors = {path: each for path, each in survivors.items() if path not in RESERVED}
    order = _Order(survivors)
    missing = tuple(path for path in prioritized if not order.put_first(path))
    count = len(order.done)
    for path in survivors:
        order.put(path)
    return Arrangement(tuple(order.done.values()), count, missing)


def _is_reserved(member: TarMember) -> bool:
    top = member.path.split(b"/", 1)[0]
    if top not in RESERVED:
        return False
    if member.kind is Kind.DIRECTORY or top != member.path:
        raise BadTar(f"{member.path!r} is a directory; eStargz layers have a file of that name")
    return True


class _Order:
    """The members put so far, in order; ``done`` is keyed by path."""

    def __init__(self, survivors: Mapping[bytes, TarMember]) -> None:
        self._survivors = survivors
        self.done: dict[bytes, TarMember] = {}

    def put(self, path: bytes) -> None:
        """Put a member, after the file that it links to."""
        member = self._survivors[path]
        if member.kind is Kind.HARDLINK:
            self.done.setdefault(member.link, self._survivors[member.link])
        self.done.setdefault(path, member)

    def put_first(self, path: bytes) -> bool:
        """Put a member after what it needs; return False if there is no such member."""
        member = self._survivors.get(path)
        if member is None:
            return False
        if member.kind is Kind.HARDLINK:
            self._put_parents(member.link)
            self.done.setdefault(member.link, self._survivors[member.link])
        self._put_parents(path)
        self.done.setdefault(path, member)
        return True

    def _put_parents(self, path: bytes) -> None:
        parents = [b""] if path else []
        parents += [path[:at] for at, byte in enumerate(path) if byte == 0x2F]
        for parent in parents:
            if parent in self._survivors:
                self.done.setdefault(parent, self._survivors[parent])
