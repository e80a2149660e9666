"""Tars that are to be written as they are, bit for bit, so that the diffID stays.

A table of contents is a set of names and a tar a sequence of actions (arrange.py), so not every
tar can stay: one that names a file twice, or one below a symlink, is refused by the name of what
stands against it.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from lazyfs.formats.tars.arrange import RESERVED, arrange
from lazyfs.formats.tars.tar import BadTar, HeaderText, TarMember
from lazyfs.formats.tocs.toc import Kind


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
            raise CannotKeep(f"{member.path!r} is in the tar twice")
        if member.path in RESERVED:
            raise CannotKeep(f"{member.path!r} is in the tar, so the layer is eStargz already")
        if text.is_after_global:
            raise CannotKeep(f"{member.path!r} follows a global PAX header")
        if member.kind is Kind.HARDLINK and member.link not in names:
            raise CannotKeep(
                f"{member.path!r} is a hard link to {member.link!r}, which does not come before it"
            )
        if text.mode < 0:
            raise CannotKeep(f"{member.path!r} has a negative mode, {text.mode}")
        if member.pieces is not None:
            raise CannotKeep(f"{member.path!r} is a sparse file")
        names.add(member.path)
    arranged = arrange(members).members  # raises BadTar for a tree that cannot be
    if len(arranged) != len(members):
        raise CannotKeep(
            f"tar: only {len(arranged)} of its {len(members)} members still have a name after"
            " unpacking"
        )
    for member, found in zip(members, arranged, strict=True):
        if found != member and found != replace(member, link=found.link):
            raise CannotKeep(
                f"{member.path!r} would be unpacked as {found.path!r}, or with other attributes"
            )
