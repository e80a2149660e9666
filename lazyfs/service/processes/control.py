"""The control socket's messages, and asking a server.

One JSON object per line each way.  ``{"type": "ping"}`` is answered with ``{"type": "pong"}``,
``{"type": "status"}`` with a status (docs/reference/json.md), ``{"type": "save-profile"}`` with
``{"type": "profile-saved"}`` when what was read first is in the store, ``{"type": "dropped",
"layers": …}`` (dropped.py) with ``{"type": "invalidated"}``, anything else with
``{"type": "error", "message": …}``.  This side is plain sockets, so that asking needs no event
loop; the server's own loop reads and writes.
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lazyfs.errors import Unavailable

log = logging.getLogger(__name__)

MAX_QUESTION_SIZE = 1 << 16
MAX_ANSWER_SIZE = 16 << 20
MAX_SOCKET_PATH = 100  # the kernel takes 107 bytes
ASK_SECONDS = 5.0

Status = Callable[[], dict[str, Any]]
"""Looks at a server, and takes its time."""


class ServerSilent(Unavailable):
    """A mount's server does not answer."""


def encode_message(message: dict[str, Any]) -> bytes:
    """Return *message* as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode_message(line: bytes) -> dict[str, Any] | None:
    """Return the object on *line*, or None if there is none with a type."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        return None
    return message


def answer_question(line: bytes, status: Status) -> dict[str, Any]:
    """Return the answer to one line from a client."""
    question = decode_message(line)
    if question is None:
        return {"type": "error", "message": "question is not a JSON object with a type"}
    if question["type"] == "ping":
        return {"type": "pong"}
    if question["type"] == "status":
        try:
            return status()
        except Exception as error:  # a client must not end the mount
            log.exception("status failed")
            return {"type": "error", "message": f"status: {type(error).__name__}"}
    if question["type"] == "save-profile":
        return {"type": "profile-saved"}
    if question["type"] == "dropped":
        return question  # the server does what is to be done
    if question["type"] == "restart":
        if status()["keeperPid"] is None:
            return {
                "type": "error",
                "message": "restart: the mount has no keeper to start a new server",
            }
        return {"type": "restarting"}
    return {"type": "error", "message": f"question has an unknown type: {question['type']!r}"}


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a name of *path* that fits into a socket address, however deep its directory is."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(path: Path, message: dict[str, Any], *, seconds: float = ASK_SECONDS) -> dict[str, Any]:
    """Send *message* to the server whose control socket is at *path*; return its answer.

    Raises ServerSilent.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            with short_path(path) as name:
                connection.connect(name)
            connection.sendall(encode_message(message))
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_ANSWER_SIZE)
        except OSError as error:
            raise ServerSilent(f"control socket {path}: {error}") from error
    answer = decode_message(line)
    if answer is None:
        raise ServerSilent(f"control socket {path}: the answer {line[:80]!r} is not a JSON object")
    return answer
