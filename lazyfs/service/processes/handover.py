"""Handing a mount over to ``lazyfs serve``: the asking side, which imports next to nothing.

One connection per mount.  A message is its size in four bytes and fields that each end with NUL,
which neither arguments nor variables can hold:

    command                                             child of the service
       │ ◀───────────────────────── hello, build, standing  │
       │ mount, begun, umask, count of words, the words,    │
       │   then the environment; descriptors: the working   │
       │   directory and the standard streams ────────────▶ │ becomes what the command would be
       │ ◀─────────── done, exit code; or away, and why     │
       └ exit

Until it has asked, the command may turn away and do the work itself; so it does when nobody
listens, when the service is another user's, another version or stands elsewhere, and when it says
nothing for PATIENCE_SECONDS.  The child may turn away, too, when it has understood the words and
done nothing yet.  Afterwards the command only waits; when it goes away, its connection closes and
the mount is undone.  It asks nobody who has not said hello: what waits unread in a socket's queue
would keep the command's streams open.
"""

import os
import sys
from _socket import (  # what socket and json are made of, without what they import
    AF_UNIX,
    SCM_RIGHTS,
    SHUT_WR,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from lazyfs.service.processes.standing import build, creation_mask, standing
from lazyfs.service.processes.streams import open_standard_streams

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONTROL_SOCKET = "control.sock"
PATIENCE_SECONDS = 2.0
"""Enough for a service that socket activation has to start first, which takes 0.3 s and more."""
LEAVE_SECONDS = 10.0
MAX_MESSAGE_SIZE = 4 << 20
"""An environment is at most a quarter of the stack's 8 MiB."""
HEAD_SIZE = 4
NUMBER_SIZE = 4  # of a descriptor, and of each member of struct ucred: pid, uid, gid
STREAMS = (0, 1, 2)


class TurnedAway(Exception):
    """The service does not take the mount; nothing has happened yet."""


class Lost(Exception):
    """The service ended while it worked for us."""


def hand_over(
    folder: str, words: "Sequence[str]", environment: "Mapping[str, str]", begun: float
) -> int:
    """Have the service of *folder*, a runtime directory, do what the command line *words* says.

    Returns the exit code when that is done, and said.  *begun* is when the command began, by the
    monotonic clock, which is that of all processes.  Raises TurnedAway, or Lost.
    """
    connection = connect(folder)
    try:
        return converse(connection, words, environment, begun, STREAMS)
    finally:
        connection.close()


def connect(folder: str) -> socket:
    """Connect to this user's service of *folder*; raises TurnedAway."""
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        _connect(connection, folder)
    except OSError as error:
        connection.close()
        raise TurnedAway(str(error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def converse(
    connection: socket,
    words: "Sequence[str]",
    environment: "Mapping[str, str]",
    begun: float,
    streams: "Sequence[int]",
    patience: float = PATIENCE_SECONDS,
) -> int:
    """Do as ``hand_over`` on a connection, with other standard streams.

    *patience* is how many seconds the other side has to say hello.
    """
    open_standard_streams()
    try:
        connection.settimeout(patience)
        _meet(connection)
        _ask(connection, words, environment, begun, streams)
        connection.settimeout(None)
    except OSError as error:
        raise TurnedAway(str(error)) from error
    try:
        answer = receive_fields(connection)
    except KeyboardInterrupt:
        _wait_undone(connection)
        raise
    except OSError as error:
        raise Lost(f"service: the connection failed before the mount was live: {error}") from error
    if answer is not None and len(answer) == 2 and answer[0] == "done":
        return int(answer[1])
    if answer is not None and len(answer) == 2 and answer[0] == "away":
        raise TurnedAway(answer[1])
    raise Lost("service: it ended before the mount was live")


def peer_uid(connection: socket) -> int:
    """Return the user at the other end: whoever connected, or whoever began to listen."""
    data = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 3 * NUMBER_SIZE)
    return int.from_bytes(data[NUMBER_SIZE : 2 * NUMBER_SIZE], sys.byteorder)


def encode_fields(fields: "Iterable[str]") -> bytes:
    """Return a message of *fields*."""
    body = b"".join([os.fsencode(field) + b"\0" for field in fields])
    return len(body).to_bytes(HEAD_SIZE, "little") + body


def receive_fields(connection: socket, begun: bytes = b"") -> list[str] | None:
    """Return the message that *begun* begins, or None if what comes is none.  Raises OSError."""
    head = _receive(connection, begun, HEAD_SIZE)
    size = HEAD_SIZE + int.from_bytes(head[:HEAD_SIZE], "little")
    if len(head) < HEAD_SIZE or not HEAD_SIZE < size <= MAX_MESSAGE_SIZE:
        return None
    data = _receive(connection, head, size)
    if len(data) != size or not data.endswith(b"\0"):
        return None
    return [os.fsdecode(field) for field in data[HEAD_SIZE:-1].split(b"\0")]


def _receive(connection: socket, data: bytes, size: int) -> bytes:
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def _connect(connection: socket, folder: str) -> None:
    """Connect, and see that it is to one of ours; raises TurnedAway or OSError."""
    connection.settimeout(PATIENCE_SECONDS)
    # By way of its folder, since a socket's address is short
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{descriptor}/{CONTROL_SOCKET}")
    finally:
        os.close(descriptor)
    uid = peer_uid(connection)
    if uid != os.geteuid():  # it would get our credentials
        raise TurnedAway(f"{folder}/{CONTROL_SOCKET} belongs to user {uid}")


def _meet(connection: socket) -> None:
    """See that whoever answers can do our work; raises TurnedAway or OSError."""
    hello = receive_fields(connection)
    if hello is None or hello[0] != "hello" or len(hello) < 2:
        raise TurnedAway("it did not say hello")
    if hello[1] != build():
        raise TurnedAway(f"it is another version: {hello[1]}")
    ours, theirs = standing(), hello[2:]
    if ours != theirs:
        different = [text.partition(" ")[0] for text in ours if text not in theirs]
        raise TurnedAway(f"it has another {', '.join(different)}")


def _ask(
    connection: socket,
    words: "Sequence[str]",
    environment: "Mapping[str, str]",
    begun: float,
    streams: "Sequence[int]",
) -> None:
    """Send the request; raises TurnedAway or OSError."""
    message = encode_fields(
        [
            *("mount", str(begun), str(creation_mask()), str(len(words)), *words),
            *(f"{name}={value}" for name, value in environment.items()),
        ]
    )
    if len(message) > MAX_MESSAGE_SIZE:
        raise TurnedAway(f"the request is too large: {len(message)} bytes")
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rights = b"".join(
            [number.to_bytes(NUMBER_SIZE, sys.byteorder) for number in (here, *streams)]
        )
        sent = connection.sendmsg([message], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    finally:
        os.close(here)
    if sent < len(message):
        connection.sendall(message[sent:])


def _wait_undone(connection: socket) -> None:
    """Say that nobody waits for the mount any more, and wait until nothing is left of it."""
    try:
        connection.settimeout(LEAVE_SECONDS)
        connection.shutdown(SHUT_WR)
        while connection.recv(1 << 16):
            pass
    except OSError:
        pass  # it is gone, or takes its time
