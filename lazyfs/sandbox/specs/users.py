"""Users of an image: names in its /etc/passwd and /etc/group, as OCI configs use them.

Spec: OCI image-spec, config.md, "User".  Lines that are no entries are passed over, as libc does.
"""

from collections.abc import Callable, Iterator

import msgspec

from lazyfs.documents.documents import quote
from lazyfs.documents.errors import TemplateInvalid

ID_LIMIT = (1 << 32) - 1
# Returns a file of the image, None where there is none.
Lookup = Callable[[str], bytes | None]


class User(msgspec.Struct, frozen=True):
    """Numbers and home of a user; ``groups`` are those beside ``gid``, in order."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class _Entry(msgspec.Struct, frozen=True):
    name: str
    uid: int
    gid: int
    home: str


def find_user(text: str, lookup: Lookup, what: str) -> User:
    """Return the user that *text* means: name or number, with ":" and a group if wanted.

    "" is root.  *what* names the field for messages.  Raises TemplateInvalid.
    """
    name, colon, group = (text or "0").partition(":")
    entries = list(_entries(lookup("/etc/passwd")))
    number = _number(name)
    entry = next((each for each in entries if each.name == name), None)
    if entry is None and number is not None:
        entry = next((each for each in entries if each.uid == number), None)
        entry = entry or _Entry("", number, 0, "/root" if number == 0 else "/")
    if entry is None:
        raise TemplateInvalid(
            f"{what}: user {quote(name)} is neither a number nor a name in the image's /etc/passwd"
        )
    groups = list(_groups(lookup("/etc/group")))
    gid = _gid(group, groups, what) if colon and group else entry.gid
    others = () if colon and group else _supplementary(entry.name, gid, groups)
    return User(entry.uid, gid, others, entry.home)


def _gid(text: str, groups: list[tuple[str, int, list[str]]], what: str) -> int:
    named = next((gid for name, gid, _ in groups if name == text), None)
    gid = _number(text) if named is None else named
    if gid is None:
        raise TemplateInvalid(
            f"{what}: group {quote(text)} is neither a number nor a name in the image's /etc/group"
        )
    return gid


def _supplementary(
    name: str, gid: int, groups: list[tuple[str, int, list[str]]]
) -> tuple[int, ...]:
    """Return the groups that list the user; a user whose group was named gets that one only."""
    found = {number for _, number, members in groups if name and name in members}
    return tuple(sorted(found - {gid}))


def _entries(data: bytes | None) -> Iterator[_Entry]:
    for line in _lines(data):
        words = line.split(":")
        if len(words) < 6:
            continue
        uid, gid = _number(words[2]), _number(words[3])
        if words[0] and uid is not None and gid is not None:
            home = words[5] if words[5].startswith("/") and "\0" not in words[5] else "/"
            yield _Entry(words[0], uid, gid, home)


def _groups(data: bytes | None) -> Iterator[tuple[str, int, list[str]]]:
    for line in _lines(data):
        words = line.split(":")
        gid = _number(words[2]) if len(words) >= 4 else None
        if gid is not None and words[0]:
            yield words[0], gid, [member for member in words[3].split(",") if member]


def _lines(data: bytes | None) -> Iterator[str]:
    for line in (data or b"").split(b"\n"):
        try:
            yield line.decode()
        except UnicodeDecodeError:
            continue


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) >= ID_LIMIT:
        return None
    return int(text)
