"""Where two trees differ, and which differences are meant.

docs/reference/formats.md lists the latter under the same words, with the reason; what is not among
them is a fault.
"""

import posixpath
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from lazyfs.errors import FormatError
from lazyfs.formats.tars.arrange import arrange
from lazyfs.formats.tars.tar import TarMember, TarScanner
from lazyfs.formats.tocs.toc import Kind
from tools.differential.tree import Node, Tree

SECONDS_2262 = 9_223_372_036  # the end of 64-bit nanoseconds


class Difference(msgspec.Struct, frozen=True):
    """One field of one path that differs; ``field`` is "refusal" where one tree is none."""

    path: bytes
    field: str
    ours: object
    theirs: object
    node: Node | None = None
    other: Node | None = None

    def __str__(self) -> str:
        return f"{self.path!r} {self.field}: ours {self.ours!r}, theirs {self.theirs!r}"


def differences(ours: Tree, theirs: Tree) -> list[Difference]:
    """Return where *ours* is not *theirs*."""
    if ours.refusal and theirs.refusal:
        return []
    if ours.refusal or theirs.refusal:
        return [Difference(b"", "refusal", ours.refusal, theirs.refusal)]
    found: list[Difference] = []
    for path in sorted({*ours.nodes, *theirs.nodes}):
        ours_here, theirs_here = ours.nodes.get(path), theirs.nodes.get(path)
        if ours_here is None or theirs_here is None:
            found.append(
                Difference(path, "name", bool(ours_here), bool(theirs_here), ours_here, theirs_here)
            )
            continue
        for field, read in FIELDS.items():
            a, b = read(ours_here), read(theirs_here)
            if a != b:
                found.append(Difference(path, field, a, b, ours_here, theirs_here))
    return found


def _mode(node: Node) -> int | None:
    return None if stat.S_ISLNK(node.mode) else stat.S_IMODE(node.mode)  # which nobody asks of it


def _rdev(node: Node) -> tuple[int, int] | None:
    is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
    return node.rdev if is_device else None


def _xattrs(node: Node) -> Mapping[bytes, bytes]:
    """Return those that Linux would show: it has no user.* but on files and directories."""
    has_user = stat.S_ISREG(node.mode) or stat.S_ISDIR(node.mode)
    return {
        name: value
        for name, value in node.xattrs.items()
        if not name.startswith(b"trusted.") and (has_user or not name.startswith(b"user."))
    }


FIELDS: Mapping[str, Callable[[Node], object]] = {
    "kind": lambda node: node.kind,
    "mode": _mode,
    "owner": lambda node: (node.uid, node.gid),
    "size": lambda node: node.size,
    "content": lambda node: node.digest,
    "time": lambda node: node.mtime,
    "device": _rdev,
    "link": lambda node: node.link,
    "names": lambda node: node.names,
    "xattrs": _xattrs,
}


class Facts(msgspec.Struct, frozen=True):
    """What of an image and the run matters to what is meant.

    ``members`` are those of each layer, as far as they can be read; ``started`` is a time, in
    seconds.  ``global_names`` are what global PAX headers are called.
    """

    members: Sequence[Sequence[TarMember]]
    started: int
    global_names: Sequence[bytes] = ()

    def whiteouts(self, layer: int) -> list[bytes]:
        """Return the paths of a layer's whiteouts, with their symlinks followed if that can be."""
        members = self.members[layer]
        try:
            members = arrange(members).members
        except FormatError:
            pass
        return [each.path for each in members if b".wh." in each.path]


def facts_of(layers: Sequence[bytes], started: int) -> Facts:
    """Return the facts of an image."""
    members: list[list[TarMember]] = []
    for layer in layers:
        scanner, found = TarScanner(), []
        try:
            for at in range(0, len(layer), 512):
                found += scanner.feed(layer[at : at + 512])
        except FormatError:
            pass
        members.append(found)
    return Facts(members, started, [name for layer in layers for name in _global_names(layer)])


def _global_names(layer: bytes) -> Iterator[bytes]:
    for at in range(0, len(layer), 512):
        if layer[at + 156 : at + 157] == b"g" and layer[at + 257 : at + 262] == b"ustar":
            name = layer[at : at + 100].partition(b"\0")[0]
            yield posixpath.normpath(b"/" + name).strip(b"/")


def reason(facts: Facts, difference: Difference) -> str | None:
    """Return the words under which a difference is listed, None if it is not."""
    for words, is_meant in LISTED.items():
        if is_meant(facts, difference):
            return words
    return None


def _refused_by_them(*patterns: str) -> Callable[[Facts, Difference], bool]:
    pattern = re.compile("|".join(patterns))
    return lambda facts, each: each.field == "refusal" and bool(pattern.search(str(each.theirs)))


def _refused_by_us(*patterns: str) -> Callable[[Facts, Difference], bool]:
    pattern = re.compile("|".join(patterns))
    return lambda facts, each: each.field == "refusal" and bool(pattern.search(str(each.ours)))


def _is_moment(facts: Facts, each: Difference) -> bool:
    """The time of unpacking, where the image gives none."""
    other = each.other
    return (
        each.field == "time"
        and other is not None
        and stat.S_ISDIR(other.mode)
        and other.mtime[0] >= facts.started - 5
    )


def _is_old(facts: Facts, each: Difference) -> bool:
    if each.field != "time" or each.node is None or each.other is None:
        return False
    return not 0 <= each.node.mtime[0] < SECONDS_2262 and each.other.mtime == (0, 0)


def _says_so(facts: Facts, each: Difference, kind: Kind) -> bool:
    """Say whether a member of *kind* says what stands in their tree."""
    for member in (each for layer in facts.members for each in layer if each.kind is kind):
        mtime = member.mtime_seconds, member.mtime_nanoseconds
        if not 0 <= member.mtime_seconds < SECONDS_2262:
            mtime = 0, 0
        said: dict[str, object] = {
            "mode": member.mode,
            "owner": (member.uid, member.gid),
            "time": mtime,
        }
        if each.field == "xattrs":
            theirs = each.theirs
            if isinstance(theirs, dict) and dict(member.xattrs).items() & theirs.items():
                return True
        elif each.field in said and said[each.field] == each.theirs:
            return True
    return False


def _is_implied(facts: Facts, each: Difference) -> bool:
    """The group that mkdir gives, and what is copied from where a symlink below leads to."""
    return each.field in ("owner", "mode") and each.node is not None and each.node.is_implied


def _is_listed_twice(facts: Facts, each: Difference) -> bool:
    if each.field != "xattrs" or each.node is None or each.other is None:
        return False
    ours, theirs = _xattrs(each.node), _xattrs(each.other)
    return stat.S_ISDIR(each.node.mode) and ours.items() <= theirs.items()


def _is_in_bottom_layer(facts: Facts, each: Difference) -> bool:
    return bool(facts.whiteouts(0))


def _is_blocked(facts: Facts, each: Difference) -> bool:
    """Something lies where a whiteout of the same layer has put its device."""
    if not _refused_by_them("not a directory")(facts, each):
        return False
    return any(facts.whiteouts(layer) for layer in range(1, len(facts.members)))


def _is_root_opaque(facts: Facts, each: Difference) -> bool:
    above = range(1, len(facts.members))
    return any(b".wh..wh..opq" in facts.whiteouts(layer) for layer in above)


def _is_below_whiteout(facts: Facts, each: Difference) -> bool:
    if each.field == "names" and each.other is not None:
        return any(_wh(name) for name in each.other.names)
    if each.field == "refusal":
        return ".wh." in str(each.ours)
    return _wh(each.path)


def _wh(path: bytes) -> bool:
    return any(name.startswith(b".wh.") for name in path.split(b"/"))


def _is_global(facts: Facts, each: Difference) -> bool:
    """The directories above the name of a global header, and what had that name."""
    if each.field != "name":
        return False
    path = each.path
    if each.theirs:
        return any(name.startswith(path + b"/") for name in facts.global_names)
    return any((path + b"/").startswith(name + b"/") for name in facts.global_names)


def _is_null_device(facts: Facts, each: Difference) -> bool:
    node = each.node
    return (
        each.field == "name"
        and len(facts.members) > 1
        and node is not None
        and stat.S_ISCHR(node.mode)
        and node.rdev == (0, 0)
    )


LISTED: Mapping[str, Callable[[Facts, Difference], bool]] = {
    "time of a directory without an entry": _is_moment,
    "times before 1970 and after 2262": _is_old,
    "a hardlink's own attributes": lambda facts, each: _says_so(facts, each, Kind.HARDLINK),
    "time of what replaced a directory": lambda facts, each: (
        each.field == "time" and _says_so(facts, each, Kind.DIRECTORY)
    ),
    "owner and mode of a directory without an entry": _is_implied,
    "attributes of the root": _refused_by_us("got an xattr with a name of 0 "),
    "xattrs of a directory listed twice": _is_listed_twice,
    "whiteouts of the bottom layer, or of their own": lambda facts, each: (
        _is_in_bottom_layer(facts, each)
        or _refused_by_them("failed to convert whiteout file .*: file exists")(facts, each)
        or _is_blocked(facts, each)
        or (
            _refused_by_us("is not a file before it")(facts, each)
            and any(facts.whiteouts(layer) for layer in range(len(facts.members)))
        )
    ),
    # To them it is empty; it may as well be an image of a filesystem (formats/tars/empty_tar.py).
    "the end of a tar before its beginning": _refused_by_us(
        "zeros and then other bytes, which is not a tar"
    ),
    "global PAX headers": _is_global,
    "an opaque marker in the root": _is_root_opaque,
    "names below a whiteout's": _is_below_whiteout,
    "device 0:0": _is_null_device,
    "old GNU sparse files and contiguous files": _refused_by_them(
        r"unhandled tar header type (83|55)$"
    ),
    "a hardlink to itself": _refused_by_them(r"link (\S+) \1: no such file"),
    "a directory that is gone at the end": _refused_by_them(
        "failed call to UtimesNanoAt .*no such file",
        "layer [0-9]+: lstat .*: not a directory",
        "layer [0-9]+: too many links",
    ),
    "symlinks in a circle below": _refused_by_them(
        "layer [1-9]: (lstat .*: )?too many l", "too many levels of symbolic links"
    ),
    "owners and devices that Linux cannot hold": _refused_by_us(
        "does not fit into 32 bits$", "got device .* expected at most"
    ),
}
