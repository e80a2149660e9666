"""Where lazyfs keeps what: the only place that reads the variables for directories.

| what    | user                       | root, system service                      |
|---------|----------------------------|-------------------------------------------|
| cache   | ``$XDG_CACHE_HOME/lazyfs`` | ``$CACHE_DIRECTORY``, /var/cache/lazyfs   |
| state   | ``$XDG_STATE_HOME/lazyfs`` | ``$STATE_DIRECTORY``, /var/lib/lazyfs     |
| runtime | ``$XDG_RUNTIME_DIR/lazyfs``| /run/lazyfs                               |

``LAZYFS_CACHE_DIR``, ``LAZYFS_STATE_DIR`` and ``LAZYFS_RUNTIME_DIR`` come before all of them.
Without ``$XDG_RUNTIME_DIR`` the runtime directory is in the state directory.  Pure: environment
and user number in, paths out.
"""

from collections.abc import Mapping
from pathlib import Path


def cache_directory(environment: Mapping[str, str], uid: int) -> Path:
    """Return where images and contents are kept between mounts."""
    return _directory(environment, uid, "CACHE", ".cache", "/var/cache/lazyfs")


def state_directory(environment: Mapping[str, str], uid: int) -> Path:
    """Return where logs are."""
    return _directory(environment, uid, "STATE", ".local/state", "/var/lib/lazyfs")


def runtime_directory(environment: Mapping[str, str], uid: int) -> Path:
    """Return where records of mounts and control sockets are."""
    own = environment.get("LAZYFS_RUNTIME_DIR")
    if own:
        return Path(own).absolute()
    if uid == 0:
        return Path("/run/lazyfs")
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return Path(runtime) / "lazyfs"
    return state_directory(environment, uid) / "run"


def _directory(
    environment: Mapping[str, str], uid: int, word: str, in_home: str, of_system: str
) -> Path:
    own = environment.get(f"LAZYFS_{word}_DIR")
    if own:
        return Path(own).absolute()
    if uid == 0:
        # systemd gives a colon-separated list; the first is the unit's own
        return Path(environment.get(f"{word}_DIRECTORY", "").split(":")[0] or of_system)
    base = environment.get(f"XDG_{word}_HOME", "")
    if base.startswith("/"):  # the XDG specification: relative paths are to be ignored
        return Path(base) / "lazyfs"
    return Path(environment.get("HOME") or "/", in_home, "lazyfs")
