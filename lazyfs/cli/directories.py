"""Where lazyfs keeps its files: the only place that reads the variables for directories.

| what    | user                       | root, system service                      |
|---------|----------------------------|-------------------------------------------|
| cache   | ``$XDG_CACHE_HOME/lazyfs`` | ``$CACHE_DIRECTORY``, /var/cache/lazyfs   |
| state   | ``$XDG_STATE_HOME/lazyfs`` | ``$STATE_DIRECTORY``, /var/lib/lazyfs     |
| runtime | ``$XDG_RUNTIME_DIR/lazyfs``| /run/lazyfs                               |

``LAZYFS_CACHE_DIR``, ``LAZYFS_STATE_DIR`` and ``LAZYFS_RUNTIME_DIR`` come before all of them.
Without ``$XDG_RUNTIME_DIR`` the runtime directory is in the state directory.  Pure: environment
and user number in, absolute paths out.  Imports nothing: the thin client asks here for the socket.
"""

import os

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Mapping


def cache_directory(environment: "Mapping[str, str]", uid: int) -> str:
    """Return where images and contents are kept between mounts."""
    return _directory(environment, uid, "CACHE", ".cache", "/var/cache/lazyfs")


def state_directory(environment: "Mapping[str, str]", uid: int) -> str:
    """Return where logs are."""
    return _directory(environment, uid, "STATE", ".local/state", "/var/lib/lazyfs")


def runtime_directory(environment: "Mapping[str, str]", uid: int) -> str:
    """Return where records of mounts and control sockets are."""
    own = environment.get("LAZYFS_RUNTIME_DIR")
    if own:
        return _absolute(own)
    if uid == 0:
        return "/run/lazyfs"
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return os.path.join(runtime, "lazyfs")
    return os.path.join(state_directory(environment, uid), "run")


def _directory(
    environment: "Mapping[str, str]", uid: int, word: str, in_home: str, of_system: str
) -> str:
    own = environment.get(f"LAZYFS_{word}_DIR")
    if own:
        return _absolute(own)
    if uid == 0:
        # systemd gives a colon-separated list; the first is the unit's own
        return environment.get(f"{word}_DIRECTORY", "").split(":")[0] or of_system
    base = environment.get(f"XDG_{word}_HOME", "")
    if base.startswith("/"):  # the XDG specification: relative paths are to be ignored
        return os.path.join(base, "lazyfs")
    return os.path.join(environment.get("HOME") or "/", in_home, "lazyfs")


def _absolute(path: str) -> str:
    return path if path.startswith("/") else os.path.join(os.getcwd(), path)
