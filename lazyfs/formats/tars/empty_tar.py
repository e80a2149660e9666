"""Which bytes are a tar without members: nothing, or blocks of zeros.

What begins with the end of an archive looks empty to every reader of tars: Go's archive/tar (so
containerd and Docker), umoci and GNU tar all stop at two blocks of zeros, and so they take an image
of EROFS or ext4, whose first 1024 bytes are zeros, for a tar of nothing.  Here a tar without
members is one only if all of it is padding, and no more than a tar program writes.  Behind members
anything may follow, as for those others: the headers say that it is a tar, and the diffID vouches
for the rest.
"""

import hashlib

from lazyfs.digest import Digest

MAX_EMPTY_SIZE = 1 << 20
"""Bytes of padding: 1024 are usual, 10240 GNU tar's record; ``tar -b`` makes it longer."""


def why_no_tar(size: int, rest: bytes | memoryview) -> str | None:
    """Say why *size* bytes that are zeros, and end with *rest*, are no empty tar; None if not."""
    if any(rest):
        return "layer: zeros and then other bytes, which is not a tar"
    if size > MAX_EMPTY_SIZE:
        return f"layer: got {size} zeros, expected at most {MAX_EMPTY_SIZE} in an empty tar"
    return None


def is_empty_tar(diff_id: Digest, size: int) -> bool:
    """Say whether *diff_id*, of *size* bytes, is that of a tar without members."""
    if size > MAX_EMPTY_SIZE:
        return False
    hasher = hashlib.new(diff_id.algorithm, bytes(size), usedforsecurity=False)
    return hasher.hexdigest() == diff_id.hex
