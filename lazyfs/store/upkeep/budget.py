"""How much of a disk the store may occupy."""

import os
from pathlib import Path

import msgspec

from lazyfs.store.paths import store_error


class Budget(msgspec.Struct, frozen=True):
    """A size in bytes, or else a share (0 to 1) of the filesystem that holds the store."""

    size: int | None = None
    share: float = 0.2

    def size_in(self, folder: Path) -> int:
        """Return the budget in bytes of a store in *folder*, as large as its filesystem is now.

        The folder may be missing.
        """
        if self.size is not None:
            return self.size
        while not os.path.exists(folder) and folder != folder.parent:  # which never raises
            folder = folder.parent
        try:
            status = os.statvfs(folder)
        except OSError as exc:
            raise store_error(folder, exc) from exc
        return int(status.f_blocks * status.f_frsize * self.share)


DEFAULT_BUDGET = Budget()
