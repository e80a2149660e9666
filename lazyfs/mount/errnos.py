"""The table from our errors to what a system call on the mount says.

A reader of a file gets EIO for everything that is not its own fault: that the blob of an existing
file has vanished from the registry is not ENOENT to somebody who has the file open.
"""

import errno

from lazyfs.errors import DeadlineExceeded, LazyfsError, UsageError
from lazyfs.rootfs.erofs_reader import WrongKind

# First match counts, so that a member comes before its family.
ERRNOS: tuple[tuple[type[LazyfsError], int], ...] = (
    (UsageError, errno.EINVAL),
    (WrongKind, errno.ENOTDIR),  # a name was looked up in a file; the kernel itself never does
    (DeadlineExceeded, errno.ETIMEDOUT),
    (LazyfsError, errno.EIO),
)


def errno_of(error: Exception) -> int:
    """Return the errno for *error*; an exception that is not ours is a bug, and EIO."""
    for family, number in ERRNOS:
        if isinstance(error, family):
            return number
    return errno.EIO
