"""What a server is told when it starts."""

from pathlib import Path

import msgspec

from lazyfs.mount.options import MountOptions
from lazyfs.registry.source import AccessOptions
from lazyfs.store.upkeep.budget import DEFAULT_BUDGET, Budget

FOREGROUND_LOG = Path("/dev/stderr")


class MountSettings(msgspec.Struct, frozen=True):
    """What the command line asked for; all paths absolute.

    ``background_limit`` is in bytes a second, 0 for none.  ``patience`` is how many seconds readers
    wait for a registry that is away.  ``begun`` is when the command began, in
    seconds of the monotonic clock.  ``says_statistics``: at the end, on standard error.
    ``verbosity`` and ``is_log_json`` are how the server logs.
    """

    mountpoint: str
    mount_id: str
    cache_dir: Path
    runtime_dir: Path
    log_path: Path
    access: AccessOptions
    options: MountOptions
    prefetch: str = "none"
    driver: str = "auto"
    working_directory: str = "/"
    cache_size: Budget = DEFAULT_BUDGET
    background_limit: int = 0
    patience: float = 0.0
    begun: float | None = None
    says_statistics: bool = False
    verbosity: int = 0
    is_log_json: bool = False

    @property
    def is_foreground(self) -> bool:
        """Say whether somebody waits for the server's end, on a terminal or as a supervisor."""
        return self.log_path == FOREGROUND_LOG
