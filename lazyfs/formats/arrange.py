"""Decide what a converted layer holds and in which order.

A tar is a sequence of actions: a later member replaces an earlier one of the same name, and a
hardlink means the file that its target's name had *at that point*.  A table of contents is a set
of names.  ``arrange`` plays the actions through and returns members that say the same as a set:

- of equal names the last one stays; a directory listed again keeps its place and its children,
  anything else that replaces a directory removes what was in it;
- hardlinks name their file directly, without chains, and come after it; where the file itself
  was replaced later, its first link takes over the payload;
- landmarks and a table of contents of an earlier conversion are dropped;
- prioritised files come first, each after the directories above it and the file it links to.

Whiteouts are ordinary members.  Missing parent directories stay missing: an explicit entry would
replace the attributes of the same directory in a lower layer (a 1777 ``/tmp``, say).
"""

from collections.abc import Iterable, Sequence

import msgspec

from lazyfs.formats.tar import BadTar, TarMember
from lazyfs.formats.toc import Kind

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
    survivors = _play([member for member in members if not _is_reserved(member)])
    _check_parents(survivors)
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
        raise BadTar(f"{member.path!r}: got a directory, expected a file of an eStargz layer")
    return True


def _play(members: Sequence[TarMember]) -> dict[bytes, TarMember]:
    """Play the members in order; return what has a name at the end, hardlinks made direct.

    A *file* here is the position of the member that made it; hardlinks share it.
    """
    burials = _Burials(members)
    current: dict[bytes, int] = {}
    file_at: dict[bytes, int] = {}  # name → file, at this point of the play
    file_of: dict[int, int] = {}  # hardlink → file; missing where the target comes later
    for position, member in enumerate(members):
        path = member.path
        file = position if member.kind is not Kind.HARDLINK else file_at.get(member.link)
        if file is None:
            file_at.pop(path, None)
        else:
            file_at[path] = file_of[position] = file
        if burials.last_of(path) > position:
            continue
        previous = current.get(path)
        if previous is None or not _are_directories(members[previous], member):
            current.pop(path, None)  # the last of equal names has a place of its own
        current[path] = position
    return _link(members, current, file_of)


def _are_directories(first: TarMember, second: TarMember) -> bool:
    return first.kind is Kind.DIRECTORY and second.kind is Kind.DIRECTORY


class _Burials:
    """Tells when something above a path was last replaced by something other than a directory.

    The answer for one directory follows from its parent's: a deep tree costs a step per directory.
    """

    def __init__(self, members: Sequence[TarMember]) -> None:
        self._replaced = {
            member.path: position
            for position, member in enumerate(members)
            if member.kind is not Kind.DIRECTORY
        }
        self._known = {b"": -1}

    def last_of(self, path: bytes) -> int:
        """Return the position of the last such replacement, -1 for never."""
        unknown: list[bytes] = []
        parent = _parent(path)
        while parent not in self._known:
            unknown.append(parent)
            parent = _parent(parent)
        last = self._known[parent]
        for parent in reversed(unknown):
            last = max(last, self._replaced.get(parent, -1))
            self._known[parent] = last
        return last


def _link(
    members: Sequence[TarMember], current: dict[bytes, int], file_of: dict[int, int]
) -> dict[bytes, TarMember]:
    """Return the members that remain, each hardlink naming its file, or being it."""
    heirs: dict[int, bytes] = {}
    survivors: dict[bytes, TarMember] = {}
    for path, position in current.items():
        member = members[position]
        if member.kind is not Kind.HARDLINK:
            survivors[path] = member
            continue
        file = _follow(members, current, file_of, position)
        target = members[file]
        if target.kind is Kind.DIRECTORY:
            raise BadTar(f"{path!r}: got a hardlink to directory {target.path!r}, expected a file")
        if current.get(target.path) == file:
            survivors[path] = msgspec.structs.replace(member, link=target.path)
        elif file in heirs:
            survivors[path] = msgspec.structs.replace(member, link=heirs[file])
        else:
            heirs[file] = path
            survivors[path] = msgspec.structs.replace(target, path=path)
    return survivors


def _follow(
    members: Sequence[TarMember],
    current: dict[bytes, int],
    file_of: dict[int, int],
    position: int,
) -> int:
    """Return the file of a hardlink; one that came before its target sees the final names."""
    chain: list[int] = []
    while position not in file_of:
        chain.append(position)
        member = members[position]
        following = current.get(member.link)
        if following is None:
            raise BadTar(
                f"{member.path!r}: got a hardlink to {member.link!r}, which is not in the layer"
            )
        if len(chain) > len(members):
            raise BadTar(f"{member.path!r}: got a circle of hardlinks, expected a file")
        position = following
    for link in chain:
        file_of[link] = file_of[position]
    return file_of[position]


def _check_parents(survivors: dict[bytes, TarMember]) -> None:
    """Raise BadTar if something lies below a name that is not a directory.

    That goes for symlinks too: unpackers follow one, readers of a table of contents do not.
    """
    checked = {b""}
    for path in survivors:
        parent = _parent(path)
        while parent not in checked:
            checked.add(parent)
            above = survivors.get(parent)
            if above is not None and above.kind is not Kind.DIRECTORY:
                raise BadTar(
                    f"{path!r}: got {above.kind.name.lower()} {parent!r} above it, "
                    "expected a directory"
                )
            parent = _parent(parent)


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


class _Order:
    """The members put so far, in order; ``done`` is keyed by path."""

    def __init__(self, survivors: dict[bytes, TarMember]) -> None:
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
