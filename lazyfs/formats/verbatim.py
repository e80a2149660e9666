"""Tars that are to be written as they are, bit for bit, so that the diffID stays.

A table of contents is a set of names and a tar a sequence of actions (arrange.py), so not every
tar can stay: one that names a file twice, or one below a symlink, is refused by the name of what
stands against it.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from lazyfs.formats.arrange import RESERVED, arrange
from lazyfs.formats.tar import BadTar, HeaderText, TarMember
from lazyfs.formats.toc import Kind


class Spelling(msgspec.Struct, frozen=True, gc=False):
    """A member's header as it stood in a tar.

    ``header`` is everything from the end of the payload before it to its own payload, and ``text``
    what it says in the tar's own words.
    """

    header: bytes
    text: HeaderText


class CannotKeep(BadTar):
    """A tar that cannot be told by a table of contents unless it is changed."""

    code = "E_CANNOT_KEEP_DIFF_ID"


def check_keepable(members: Sequence[TarMember], texts: Sequence[HeaderText]) -> None:
    """Raise CannotKeep, or BadTar, unless a tar of these members can stay as it is."""
    names: set[bytes] = set()
    for member, text in zip(members, texts, strict=True):
        if member.path in names:
            raise CannotKeep(f"{member.path!r}: got it twice, expected each name once")
        if member.path in RESERVED:
            raise CannotKeep(f"{member.path!r}: got it in the layer, expected no eStargz layer")
        if text.is_after_global:
            raise CannotKeep(f"{member.path!r}: got a global PAX header before it, expected none")
        if member.kind is Kind.HARDLINK and member.link not in names:
            raise CannotKeep(
                f"{member.path!r}: got a hardlink to {member.link!r}, expected that file before it"
            )
        if text.mode < 0:
            raise CannotKeep(f"{member.path!r}: got mode {text.mode}, expected one above 0")
        if member.pieces is not None:
            raise CannotKeep(f"{member.path!r}: got a sparse file, expected one with its zeros")
        names.add(member.path)
    arranged = arrange(members).members  # raises BadTar for a tree that cannot be
    if len(arranged) != len(members):
        raise CannotKeep(
            f"tar: got {len(members)} members of which {len(arranged)} have a name in the end,"
            " expected all"
        )
    for member, found in zip(members, arranged, strict=True):
        if found != member and found != replace(member, link=found.link):
            raise CannotKeep(
                f"{member.path!r}: got a tar by which it would be {found.path!r}, and not the same,"
                " expected a member that stands for itself"
            )
