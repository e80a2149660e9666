"""A temporary file for a chunk that is too large for memory, until it is verified.

On the store's disk, or in memory where that takes nothing (any more): such a chunk is served all
the same, and not kept.
"""

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lazyfs.store.content.whole import write_whole

if TYPE_CHECKING:
    from typing_extensions import Buffer

PIECE_SIZE = 1 << 20


class Spool(io.FileIO):
    """A file without a name that takes what it is given."""

    def write(self, data: "Buffer", /) -> int:
        """Write all of *data*, unlike a raw file, which may take a part; return its size."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += self._take(view[done:])
            except OSError:
                if self._is_in_memory:
                    raise
                self._move()
        return len(view)

    _is_in_memory = False

    def _take(self, data: memoryview) -> int:
        """Write some of *data*; return how much; raises OSError."""
        return super().write(data) or 0

    def _move(self) -> None:
        """Go on in memory, under the same descriptor."""
        own = self.fileno()
        memory = os.memfd_create("lazyfs-spool")
        try:
            size, start = os.lseek(own, 0, os.SEEK_CUR), 0
            # What is here has been hashed on its way: nothing of it may be lost unseen.
            while start < size:
                piece = os.pread(own, min(PIECE_SIZE, size - start), start)
                if not piece:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                write_whole(memory, piece, start)
                start += len(piece)
            os.lseek(memory, size, os.SEEK_SET)
            os.dup2(memory, own, inheritable=False)  # the position comes with it
        finally:
            os.close(memory)
        self._is_in_memory = True


def open_spool(folder: Path) -> Spool:
    """Open a spool on the disk that *folder* is on."""
    try:
        fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:  # a filesystem without O_TMPFILE, a full one, or none any more
        fd = os.memfd_create("lazyfs-spool")
    return Spool(fd, "w+")
