"""Mounts for a command that has more to do: by a child, forked while there was one thread.

    command ── fork ──▶ child: imports what lacks, waits
       │ a connection per mount ──────────────▶ │ ── fork ──▶ does what ``lazyfs mount`` does
       └ end of the block: the child ends, and what is in the making is undone

A process with threads must not fork a server, so the child is made before there are any.  It reads
nothing but connections.  What it forks for one of them says hello, and is
asked as a child of ``lazyfs serve`` is; which does it where it listens.
"""

import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from _socket import socket as Connection  # what socket.socket is made of
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec

from lazyfs.interrupts import REQUESTS
from lazyfs.service.processes.failures import ServerLost
from lazyfs.service.processes.handover import (
    CONTROL_SOCKET,
    PATIENCE_SECONDS,
    Lost,
    TurnedAway,
    connect,
    converse,
)
from lazyfs.service.processes.standing import build
from lazyfs.service.processes.streams import open_standard_streams
from lazyfs.service.processes.supervise import wait_ended
from lazyfs.service.processes.warm import be_child

TAKE = b"m"
IMPORT_SECONDS = 60.0  # for the child; its end is seen at once
END_SECONDS = 10.0
TASKS = Path("/proc/self/task")  # threads of any kind


class Maker(msgspec.Struct, frozen=True):
    """How mounts are made: *work* is ``warm``'s, and is told what is *prepared*, if anything is.

    *needed* are modules to import for that; *folder*, a runtime directory, may have a service.
    """

    work: Callable[..., int]
    needed: Sequence[str]
    folder: Path | None


class Forks:
    """Whoever makes mounts, as those see it that ask: *connect* leads there.  Threads share it."""

    def __init__(self, connect: Callable[[bytes | None], Connection], patience: float) -> None:
        self._connect = connect
        self._patience = patience
        self._lock = threading.Lock()
        self._open: set[Connection] = set()
        self._is_over = False

    def run(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        streams: Sequence[int],
        prepared: bytes | None = None,
    ) -> int:
        """Do what the command line *words* says; return its exit code.

        *streams* are descriptors, its standard ones.  Raises TurnedAway where nobody does it,
        ServerLost where that ends early, or ``give_up`` was called.
        """
        begun = time.monotonic()
        with self._lock:
            if self._is_over:
                raise ServerLost("mount: it was cancelled before it was live")
            connection = self._connect(prepared)
            self._open.add(connection)
        try:
            return converse(connection, words, environment, begun, streams, self._patience)
        except Lost as error:
            raise ServerLost(str(error)) from error
        finally:
            with self._lock:
                self._open.discard(connection)
                connection.close()

    def give_up(self) -> None:
        """Undo all that is in the making, and make no more; who waits is told."""
        with self._lock:
            self._is_over = True
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)


@contextmanager
def forking(maker: Maker) -> Iterator[Forks | None]:
    """Have somebody who makes mounts within the block: the service where it listens, or a child.

    None where this process has threads by now.
    """
    if maker.folder is not None and (maker.folder / CONTROL_SOCKET).exists():
        folder = str(maker.folder)
        forks = Forks(lambda prepared: connect(folder), PATIENCE_SECONDS)
        try:
            yield forks
        finally:
            forks.give_up()
        return
    if not _has_one_thread():
        yield None
        return
    open_standard_streams()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _be_forker(theirs, maker)
    theirs.close()
    forks = Forks(partial(_connect_child, ours), IMPORT_SECONDS)
    try:
        yield forks
    finally:
        forks.give_up()
        ours.close()
        wait_ended(pid, END_SECONDS)


def _connect_child(control: socket.socket, prepared: bytes | None) -> Connection:
    ours, theirs = socket.socketpair()
    descriptors = [theirs.fileno()]
    try:
        with theirs, ExitStack() as stack:
            if prepared is not None:
                file = stack.enter_context(open(os.memfd_create("prepared"), "wb", buffering=0))
                file.write(prepared)
                descriptors.append(file.fileno())
            socket.send_fds(control, [TAKE], descriptors)
    except BaseException as error:
        ours.close()
        if isinstance(error, OSError):  # it has ended
            raise TurnedAway(str(error)) from error
        raise
    return ours


def _has_one_thread() -> bool:
    try:
        return len(os.listdir(TASKS)) == 1
    except OSError:
        return False


def _be_forker(control: socket.socket, maker: Maker) -> NoReturn:
    """Give each connection that comes a child, until the parent closes its end or is gone."""
    code = 1
    try:
        os.setsid()  # Ctrl-C is the parent's, which tells who is concerned
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for number in REQUESTS:  # the parent holds them
            signal.signal(number, signal.SIG_DFL)
        keep = control.fileno()
        limit = os.sysconf("SC_OPEN_MAX")
        os.closerange(3, keep)  # locks among them
        os.closerange(keep + 1, limit if 0 < limit < 1 << 20 else 1 << 20)
        sys.stdin = os.fdopen(0, closefd=False)  # without what the parent's has read ahead
        gc.disable()
        for name in maker.needed:
            importlib.import_module(name)
        gc.freeze()  # a collection in a child would copy every page that it visits
        born = build()
        while True:
            word, descriptors, _, _ = socket.recv_fds(control, len(TAKE), 2)
            if not word:
                break
            if os.fork() == 0:
                control.close()
                connection = socket.socket(fileno=descriptors.pop(0))
                prepared = [_content(each) for each in descriptors]
                work = partial(maker.work, prepared=prepared[0] if prepared else None)
                be_child(connection, born, work)
            for each in descriptors:
                os.close(each)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _content(descriptor: int) -> bytes:
    """Return what a file holds that was handed to us, and close it."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
