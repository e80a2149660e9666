"""A server's control socket: takes questions, sends answers; control.py has the messages."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from lazyfs.service.control import (
    MAX_QUESTION_SIZE,
    Status,
    answer_question,
    encode_message,
    short_path,
)
from lazyfs.service.record import BadRuntimeDirectory

QUESTION_SECONDS = 10.0
MAX_CLIENTS = 16


class Actions(msgspec.Struct, frozen=True):
    """What is done, by an answer's type, before it is sent and when it has been."""

    before: Mapping[str, Callable[[], None]]
    after: Mapping[str, Callable[[], None]]


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
            with trio.move_on_after(QUESTION_SECONDS):
                try:
                    await _answer_lines(connection, look, actions)
                except OSError:
                    pass  # the client went away


async def _answer_lines(
    connection: trio.socket.SocketType, look: Callable[[], Status], actions: Actions
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
            actions.before.get(document["type"], _nothing)()
            answer = memoryview(encode_message(document))
            while answer:
                answer = answer[await connection.send(answer) :]
            actions.after.get(document["type"], _nothing)()


def _nothing() -> None:
    """Do nothing."""
