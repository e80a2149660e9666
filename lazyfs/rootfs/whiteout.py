"""Whiteouts and landmarks: names in a layer that are markers, not files.

Spec: OCI image-spec, layer.md, "Whiteouts".  ``.wh.NAME`` removes NAME of the layers below,
``.wh..wh..opq`` removes everything that the layers below have in its directory.  Other names under
``.wh..wh.`` are leftovers of AUFS; no name that begins with ``.wh.`` ever appears in a rootfs.
"""

from lazyfs.formats.tocs.paths import WHITEOUT_PREFIX

OPAQUE = b".wh..wh..opq"
RESERVED_PREFIX = b".wh..wh."
LANDMARKS = (b".prefetch.landmark", b".no.prefetch.landmark")  # hidden in the root only


def is_whiteout(name: bytes) -> bool:
    """Return whether *name*, one component of a path, never appears in a rootfs."""
    return name.startswith(WHITEOUT_PREFIX)


def is_opaque(name: bytes) -> bool:
    """Return whether *name* hides all that lower layers have in its directory."""
    return name == OPAQUE


def whiteout_target(name: bytes) -> bytes | None:
    """Return the name that *name* removes, or None if it removes none."""
    if not name.startswith(WHITEOUT_PREFIX) or name.startswith(RESERVED_PREFIX):
        return None
    return name[len(WHITEOUT_PREFIX) :] or None
