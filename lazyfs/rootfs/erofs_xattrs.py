"""The body of extended attributes behind an EROFS inode.

Header of 12 bytes (no name filter, no shared ids), then one entry per attribute: name length u8,
prefix index u8, value size u16, the name without its prefix, the value, zeros up to 4 bytes.
Entries are sorted by (prefix index, name), so that equal attributes give equal bytes.
"""

import struct
from collections.abc import Iterable, Mapping

import msgspec

from lazyfs.rootfs.erofs_format import (
    ACL_INDEXES,
    XATTR_ENTRY,
    XATTR_HEADER_SIZE,
    XATTR_PREFIXES,
    UnsupportedByErofs,
)

HIDDEN_PREFIXES = (
    b"user.lazyfs.",  # what a mount says of itself; an image must not forge it
    # What overlayfs believes of its layers.  A tar says the same by whiteouts, so an image has no
    # use for these; one that has them could redirect names, or make them unreadable, above us.
    b"trusted.overlay.",
    b"user.overlay.",
)
MAX_NAME_SIZE = 255  # with the prefix: Linux' XATTR_NAME_MAX
MAX_VALUE_SIZE = 0xFFFF
MAX_COUNT = 0xFFFF  # of the inode's field: (body size - header) / 4 + 1
HEADER = bytes(XATTR_HEADER_SIZE)

# An ACL's value is that of getxattr(2): a version, then tag, permissions and id of each entry.
ACL_HEADER = struct.Struct("<I")
ACL_ENTRY = struct.Struct("<HHI")
ACL_VERSION = 2
ACL_TAGS = (0x01, 0x02, 0x04, 0x08, 0x10, 0x20)
INDEXES = tuple((prefix, index) for index, prefix in XATTR_PREFIXES.items())

Xattrs = tuple[tuple[bytes, bytes], ...]


class DroppedXattr(msgspec.Struct, frozen=True):
    """An attribute that the index leaves out: its name, on how many inodes, and one of them."""

    name: bytes
    count: int
    example: bytes


class XattrBodies:
    """Makes the bodies; equal attributes of many inodes are made once."""

    def __init__(self) -> None:
        self._made: dict[Xattrs, tuple[bytes, tuple[bytes, ...]]] = {}
        self._dropped: dict[bytes, tuple[int, bytes]] = {}

    def body(self, xattrs: Xattrs, path: bytes) -> bytes:
        """Return the body for *xattrs* of the entry *path*, empty if nothing is left of them.

        Raises UnsupportedByErofs for names, values or bodies that are too large.
        """
        made = self._made.get(xattrs)
        if made is None:
            made = self._made[xattrs] = _from_image(xattrs, path)
        body, dropped = made
        for name in dropped:
            count, example = self._dropped.get(name, (0, path))
            self._dropped[name] = count + 1, example
        return body

    def root_body(self, xattrs: Xattrs, added: Mapping[bytes, bytes]) -> bytes:
        """Return the body for the root: its own *xattrs* and those *added* by lazyfs.

        Raises UnsupportedByErofs also for an added name that EROFS cannot express.
        """
        wanted = {name: value for name, value in xattrs if _is_kept(name, value)}
        for name in added:
            if _prefix_index(name) is None:
                raise UnsupportedByErofs(
                    f"xattr of the root: EROFS has no prefix for the name {name[:80]!r}"
                )
        return _build(b"/", (wanted | dict(added)).items())

    def dropped(self) -> tuple[DroppedXattr, ...]:
        """Return what was left out so far, by name."""
        return tuple(
            DroppedXattr(name, count, example)
            for name, (count, example) in sorted(self._dropped.items())
        )


def _from_image(xattrs: Xattrs, path: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the body and the names left out."""
    kept = [(name, value) for name, value in xattrs if _is_kept(name, value)]
    dropped = tuple(name for name, value in xattrs if not _is_kept(name, value))
    return _build(path, kept), dropped


def _is_kept(name: bytes, value: bytes) -> bool:
    """Return whether an image's attribute goes into the index."""
    if name.startswith(HIDDEN_PREFIXES):
        return False
    split = _prefix_index(name)
    return split is not None and (split[0] not in ACL_INDEXES or _is_acl(value))


def _is_acl(value: bytes) -> bool:
    """Return whether the kernel can decode *value* as a POSIX ACL with entries.

    With another value in its place, every access to the file would fail.
    """
    if len(value) < ACL_HEADER.size or ACL_HEADER.unpack_from(value) != (ACL_VERSION,):
        return False
    entries = value[ACL_HEADER.size :]
    if not entries or len(entries) % ACL_ENTRY.size:
        return False
    return all(tag in ACL_TAGS for tag, _, _ in ACL_ENTRY.iter_unpack(entries))


def _prefix_index(name: bytes) -> tuple[int, bytes] | None:
    for prefix, index in INDEXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            # An ACL's name is the prefix itself; the others need something behind it.
            if (index in ACL_INDEXES) == bool(rest) or b"\0" in rest:
                return None
            return index, rest
    return None


def _build(path: bytes, xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    entries = []
    for name, value in xattrs:
        split = _prefix_index(name)
        if split is not None:
            entries.append((*split, value))
            if len(name) > MAX_NAME_SIZE or len(value) > MAX_VALUE_SIZE:
                raise UnsupportedByErofs(
                    f"xattr {name[:80]!r} of {path[:200]!r}: got a name of {len(name)} and a value "
                    f"of {len(value)} bytes, expected at most {MAX_NAME_SIZE} and {MAX_VALUE_SIZE}"
                )
    if not entries:
        return b""
    entries.sort()
    parts = [HEADER]
    for index, rest, value in entries:
        size = XATTR_ENTRY.size + len(rest) + len(value)
        parts += XATTR_ENTRY.pack(len(rest), index, len(value)), rest, value, bytes(-size & 3)
    body = b"".join(parts)
    if xattr_count(body) > MAX_COUNT:
        raise UnsupportedByErofs(
            f"xattrs of {path[:200]!r}: got {len(body)} bytes, "
            f"expected at most {XATTR_HEADER_SIZE + 4 * (MAX_COUNT - 1)}"
        )
    return body


def xattr_count(body: bytes) -> int:
    """Return the inode's count field for *body*: 0 for none, else words behind the header + 1."""
    return (len(body) - XATTR_HEADER_SIZE) // 4 + 1 if body else 0
