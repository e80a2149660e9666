"""Control sockets that gVisor leaves behind when a sandbox is saved or killed.

It looks for a free name in its own folder, then in folders that all sandboxes share; where there is
none left, the sandbox is not started.
"""

import socket
import stat
from contextlib import suppress
from pathlib import Path

SHARED = (Path("/var/run"), Path("/run"), Path("/tmp"))  # gVisor's choice


def remove_dead_sockets(state_dir: Path, container_id: str) -> None:
    """Remove the sockets of a container that has ended, wherever they are.

    One that somebody listens on is left: it is of another sandbox, which has the same name.
    """
    for folder in (state_dir, *SHARED):
        path = folder / f"runsc-{container_id}.sock"
        with suppress(OSError):
            if stat.S_ISSOCK(path.lstat().st_mode) and not _is_listened_to(path):
                path.unlink()


def _is_listened_to(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.setblocking(False)
        try:
            asker.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # its backlog is full, or it may not be asked
    return True
