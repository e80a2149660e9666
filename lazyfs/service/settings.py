"""What a server is told when it starts."""

from dataclasses import dataclass
from pathlib import Path

from lazyfs.mount.options import MountOptions
from lazyfs.registry.source import AccessOptions

FOREGROUND_LOG = Path("/dev/stderr")


@dataclass(frozen=True, slots=True)
class MountSettings:
    """What the command line asked for; all paths absolute.

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
    verbosity: int = 0
    is_log_json: bool = False

    @property
    def is_foreground(self) -> bool:
        """Say whether somebody waits for the server's end, on a terminal or as a supervisor."""
        return self.log_path == FOREGROUND_LOG
