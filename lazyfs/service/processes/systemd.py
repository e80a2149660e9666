"""What systemd says to a service, and what a service says to it: sd_listen_fds(3), sd_notify(3)."""

import os
import socket
from collections.abc import Mapping, MutableMapping

FIRST_DESCRIPTOR = 3


def take_listener(environment: MutableMapping[str, str]) -> socket.socket | None:
    """Return the listening socket that this process was started with, or None.

    The variables are removed: they are for this process only.  Further sockets are ignored.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit() or int(count) < 1:
        return None
    os.set_inheritable(FIRST_DESCRIPTOR, False)
    return socket.socket(fileno=FIRST_DESCRIPTOR)


def notify(environment: Mapping[str, str], *words: str) -> bool:
    """Tell the service manager *words* (``READY=1``); say whether there is one who listens."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.connect("\0" + address[1:] if address[0] == "@" else address)
            connection.sendall("\n".join(words).encode())
        except OSError:
            return False  # nobody to tell is no reason to fail
    return True
