"""A server's control socket: takes questions, sends answers; control.py has the messages."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from lazyfs.service.processes.control import (
    MAX_QUESTION_SIZE,
    Status,
    answer_question,
    encode_message,
    short_path,
)
from lazyfs.service.record import BadRuntimeDirectory

QUESTION_SECONDS = 10.0
MAX_CLIENTS = 16


Answerer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Actions(msgspec.Struct, frozen=True):
    """What is done, by an answer's type, before it is sent and when it has been.

    ``instead`` makes another answer of it, and has so many seconds for that from then on.
    """

    before: Mapping[str, Callable[[], None]]
    after: Mapping[str, Callable[[], None]]
    instead: Mapping[str, tuple[Answerer, float]]


async def serve_control(
    path: Path,
    look: Callable[[], Status],
    actions: Actions,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """Answer questions on the socket *path*; one line each.  *look* returns what makes a status.

    Raises BadRuntimeDirectory where there can be no socket.
    """
    clients = trio.CapacityLimiter(MAX_CLIENTS)
    async with _listener(path) as listener:
        task_status.started()
        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(_answer_client, connection, clients, look, actions)


@asynccontextmanager
async def _listener(path: Path) -> AsyncIterator[trio.socket.SocketType]:
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        previous = os.umask(0o177)
        try:
            with short_path(path) as name:
                await listener.bind(name)
        except OSError as error:
            raise BadRuntimeDirectory(f"control socket {path}: {error.strerror}") from error
        finally:
            os.umask(previous)
        listener.listen(MAX_CLIENTS)
        yield listener
    finally:
        listener.close()


async def _answer_client(
    connection: trio.socket.SocketType,
    clients: trio.CapacityLimiter,
    look: Callable[[], Status],
    actions: Actions,
) -> None:
    with connection:
        async with clients:
            with trio.move_on_after(QUESTION_SECONDS) as scope:
                try:
                    await _answer_lines(connection, look, actions, scope)
                except OSError:
                    pass  # the client went away


async def _answer_lines(
    connection: trio.socket.SocketType,
    look: Callable[[], Status],
    actions: Actions,
    scope: trio.CancelScope,
) -> None:
    waiting = b""
    while len(waiting) <= MAX_QUESTION_SIZE:
        data = await connection.recv(4096)
        if not data:
            return
        waiting += data
        while b"\n" in waiting:
            line, _, waiting = waiting.partition(b"\n")
            document = await trio.to_thread.run_sync(answer_question, line, look())
            if document["type"] in actions.instead:
                make, seconds = actions.instead[document["type"]]
                scope.deadline = trio.current_time() + seconds
                document = await make(document)
            actions.before.get(document["type"], _nothing)()
            answer = memoryview(encode_message(document))
            while answer:
                answer = answer[await connection.send(answer) :]
            actions.after.get(document["type"], _nothing)()


def _nothing() -> None:
    """Do nothing."""
