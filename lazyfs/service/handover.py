"""Handing a mount over to ``lazyfs serve``: the asking side, which imports next to nothing.

One connection per mount, one JSON object per line:

    command                                             child of the service
       │ ◀────────────────────────── hello: build, standing │
       │ mount: arguments, environment, umask;              │
       │   descriptors: working directory, stderr ────────▶ │ becomes what the command would be
       │ ◀────────────────── live: mountpoint, or an error  │
       └ exit

Until it has asked, the command may turn away and do the work itself; so it does when nobody
listens, when the service is another user's, another version or stands elsewhere, and when it says
nothing for PATIENCE_SECONDS.  Afterwards the command only waits; when it goes away, its connection
closes and the mount is undone.  It asks nobody who has not said hello: what waits unread in a
socket's queue would keep the command's standard error open.
"""

import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lazyfs.service.control import decode_message, encode_message, short_path
from lazyfs.service.failures import ServerLost, error_of
from lazyfs.service.standing import build, creation_mask, standing
from lazyfs.service.streams import open_standard_streams

CONTROL_SOCKET = "control.sock"
PATIENCE_SECONDS = 2.0
"""Enough for a service that socket activation has to start first, which takes 0.3 s and more."""
LEAVE_SECONDS = 10.0
MAX_MESSAGE_SIZE = 4 << 20
"""An environment is at most a quarter of the stack's 8 MiB."""
CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

log = logging.getLogger(__name__)


class TurnedAway(Exception):
    """The service does not take the mount; nothing has happened yet."""


def hand_over(
    folder: Path, arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> str | None:
    """Have the service of *folder*, a runtime directory, make a mount.

    Returns the mountpoint when the mount is live, or None when nobody took it.  Raises what the
    service's child met, or ServerLost.
    """
    open_standard_streams()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
        connection.makefile("rb") as stream,
    ):
        try:
            try:
                _meet(connection, stream, folder / CONTROL_SOCKET)
                _ask(connection, arguments, environment)
            except (OSError, TurnedAway) as error:
                log.debug("not through the service: %s", error)
                return None
            connection.settimeout(None)
            answer = receive_message(stream)
        except KeyboardInterrupt:
            _wait_undone(connection)
            raise
        except OSError as error:
            raise ServerLost(f"service: got {error}, expected a live mount") from error
    if answer is not None and answer["type"] == "live":
        return str(answer["mountpoint"])
    if answer is not None and answer["type"] == "error":
        raise error_of(answer)
    raise ServerLost("service: got its end, expected a live mount")


def peer_uid(connection: socket.socket) -> int:
    """Return the user at the other end: whoever connected, or whoever began to listen."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    _, uid, _ = CREDENTIALS.unpack(data)
    return int(uid)


def receive_message(stream: BinaryIO, begun: bytes = b"") -> dict[str, Any] | None:
    """Return the message that *begun* begins, or None if what comes is none.  Raises OSError."""
    if not begun.endswith(b"\n"):
        begun += stream.readline(MAX_MESSAGE_SIZE)
    return decode_message(begun) if begun.endswith(b"\n") else None


def _meet(connection: socket.socket, stream: BinaryIO, path: Path) -> None:
    """Connect, and see that whoever answers can do our work; raises TurnedAway or OSError."""
    connection.settimeout(PATIENCE_SECONDS)
    with short_path(path) as name:
        connection.connect(name)
    uid = peer_uid(connection)
    if uid != os.geteuid():  # it would get our credentials
        raise TurnedAway(f"{path} is user {uid}'s")
    hello = receive_message(stream)
    if hello is None or hello["type"] != "hello":
        raise TurnedAway("it did not say hello")
    if hello.get("build") != build():
        raise TurnedAway(f"it is another version: {hello.get('build')}")
    ours, theirs = standing(), hello.get("standing")
    if ours != theirs:
        found = theirs if isinstance(theirs, dict) else {}
        different = [name for name in ours if found.get(name) != ours[name]]
        raise TurnedAway(f"it has another {', '.join(different)}")


def _ask(
    connection: socket.socket, arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    """Send the request; raises TurnedAway or OSError."""
    message = encode_message(
        {
            "type": "mount",
            "arguments": arguments,
            "environment": dict(environment),
            "umask": creation_mask(),
        }
    )
    if len(message) > MAX_MESSAGE_SIZE:
        raise TurnedAway(f"the request has {len(message)} bytes")
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sent = socket.send_fds(connection, [message], [here, 2])
    finally:
        os.close(here)
    if sent < len(message):  # or else it may have answered and left already
        connection.sendall(message[sent:])


def _wait_undone(connection: socket.socket) -> None:
    """Say that nobody waits for the mount any more, and wait until nothing is left of it."""
    try:
        connection.settimeout(LEAVE_SECONDS)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass
    except OSError:
        pass  # it is gone, or takes its time
