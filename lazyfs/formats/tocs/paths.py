"""Names as tars spell them, brought to one form.

A normalised path has no leading or trailing slash and no empty, ``.`` or ``..`` component; the
root is ``b""``.  ``..`` stops at the root, so that no name leads out of its layer.
"""

from lazyfs.formats.streams.limits import Limits

WHITEOUT_PREFIX = b".wh."
BARE_WHITEOUTS = (b".wh.", b".wh..", b".wh...")


def is_bare_whiteout(path: bytes) -> bool:
    """Say whether the last name of *path* is a whiteout that names nothing below its directory.

    Spec: OCI image-spec, layer.md: it must be an error.
    """
    return path.endswith(BARE_WHITEOUTS) and path.rpartition(b"/")[2] in BARE_WHITEOUTS


def is_left_out(path: bytes) -> bool:
    """Say whether a member of this path is no file in any rootfs: a whiteout, or of no name."""
    if WHITEOUT_PREFIX in path:
        return path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX)
    return not path


def is_below_whiteout(path: bytes) -> bool:
    """Say whether *path* lies below a whiteout's name, which no rootfs has."""
    if WHITEOUT_PREFIX not in path:
        return False
    return any(name.startswith(WHITEOUT_PREFIX) for name in path.split(b"/")[:-1])


def normalise_path(name: bytes, limits: Limits) -> bytes:
    """Return the normalised path of a tar entry's *name*, or raise ValueError saying why not."""
    if b"\0" in name:
        raise ValueError("its name contains a NUL byte")
    path = name.strip(b"/")
    if b"//" in path or b"/." in path or path.startswith(b"."):
        path = _collapse(path)
    if len(path) > limits.component_size:
        _check_size(path, limits)
    return path


def normalise_link(link: bytes, limits: Limits) -> bytes:
    """Return the target of a hardlink like ``normalise_path``, but with ``..`` behind names.

    What that means depends on whether the name before it is a symlink: see play.py.
    """
    path = normalise_path(link, limits)
    if b".." not in link:
        return path
    components: list[bytes] = []
    for component in link.split(b"/"):
        if component not in (b"", b".") and (component != b".." or components):
            components.append(component)
    kept = b"/".join(components)
    _check_size(kept, limits)
    return kept


def _collapse(path: bytes) -> bytes:
    components: list[bytes] = []
    for component in path.split(b"/"):
        if component == b"..":
            del components[-1:]
        elif component not in (b"", b"."):
            components.append(component)
    return b"/".join(components)


def _check_size(path: bytes, limits: Limits) -> None:
    if len(path) > limits.path_size:
        raise ValueError(f"got a path of {len(path)} bytes, expected at most {limits.path_size}")
    components = path.split(b"/")
    if len(components) > limits.depth:
        raise ValueError(f"got a path of {len(components)} levels, expected at most {limits.depth}")
    longest = max(map(len, components))
    if longest > limits.component_size:
        raise ValueError(
            f"got a name component of {longest} bytes, expected at most {limits.component_size}"
        )
