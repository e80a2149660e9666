"""``lazyfs serve``: a process with everything imported that forks one child per mount.

The serving process is one blocking loop.  It runs no event loop, starts no thread and reads
nothing that a client sends, so that a fork copies nothing half done and nobody can hold it up.
Each connection gets a child, in a session of its own, which becomes what the command would have
been: its user's environment, working directory and standard error; then it does the same work,
and forks the mount's server as the command does.  So the end of the serving process, however it
comes, harms neither mounts nor those who wait for one.
"""

import fcntl
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lazyfs.environment import harden
from lazyfs.errors import StoreError
from lazyfs.service.processes.control import short_path
from lazyfs.service.processes.failures import is_interrupt
from lazyfs.service.processes.handover import STREAMS, encode_fields, peer_uid, receive_fields
from lazyfs.service.processes.standing import build, standing
from lazyfs.service.processes.streams import open_standard_streams

BACKLOG = 64
MAX_CHILDREN = 64
REQUEST_SECONDS = 5.0
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CRASHED = 1

log = logging.getLogger(__name__)


class AlreadyServing(StoreError):
    """Another process listens on the socket."""

    code = "E_ALREADY_SERVING"


class ClientGone(KeyboardInterrupt):
    """Nobody waits for the mount any more, as if whoever waited had pressed Ctrl-C."""


class Client:
    """Whom a child works for; ``begun`` is when that command began, by the monotonic clock."""

    def __init__(self, connection: socket.socket, begun: float) -> None:
        self._connection = connection
        self.begun = begun

    def confirm(self) -> None:
        """See that somebody still waits now that the work is done; raises ClientGone."""
        _interrupt_on_hangup(self._connection, on=False)
        if _is_gone(self._connection):
            raise ClientGone

    def turn_away(self, reason: str) -> NoReturn:
        """Leave the work to the client, who does it as if there were no service."""
        self._connection.sendall(encode_fields(["away", reason]))
        os._exit(0)


Work = Callable[[Sequence[str], Client], int]
"""Does what a command line says, and says on the standard streams what there is to say; returns
the exit code.  Confirms when a mount is live."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on *path*, for this user only, and remove it at the end.

    What a dead process left there is removed.  Raises AlreadyServing or StoreError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            with _alone(path.parent), short_path(path) as name:
                _remove_stale(name, path)
                previous = os.umask(0o177)
                try:
                    listener.bind(name)
                finally:
                    os.umask(previous)
                listener.listen(BACKLOG)
                ours = os.stat(name).st_ino
        except OSError as error:
            raise StoreError(f"socket {path}: {error.strerror}") from error
        try:
            yield listener
        finally:
            with _alone(path.parent), short_path(path) as name:
                try:
                    if os.stat(name).st_ino == ours:
                        os.unlink(name)
                except FileNotFoundError:
                    pass


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep others from binding and removing sockets in *folder* meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(name: str, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.setblocking(False)
            probe.connect(name)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(name)
            return
        except BlockingIOError:
            pass  # its queue is full: somebody listens
    raise AlreadyServing(
        f"socket {path} is in use: another process listens on it",
        hint="run one `lazyfs serve` per user",
    )


class WarmService:
    """The serving process's loop."""

    def __init__(
        self,
        listener: socket.socket,
        work: Work,
        *,
        idle_seconds: float | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """*say* gets a line about what goes on, for whoever watches."""
        self._listener = listener
        self._work = work
        self._idle_seconds = idle_seconds
        self._say = say
        self._build = build()
        self._children: set[int] = set()
        self._mounts = 0

    def run(self) -> None:
        """Serve until a signal ends it, nobody asks any more, or lazyfs has been replaced."""
        self._listener.setblocking(False)
        with _signal_descriptor() as signals:
            while True:
                self._say(f"{self._mounts} mounts made, {len(self._children)} being made")
                ready = self._wait(signals)
                ending = set(_drain(signals)) & set(ENDING_SIGNALS)
                self._reap()
                if ending:
                    log.info("ending on signal %d", min(ending))
                    return
                if not ready and not self._children:
                    log.info("ending: no request for %g s", self._idle_seconds)
                    return
                if self._listener.fileno() in ready and not self._accept(signals):
                    log.info("ending: lazyfs has been replaced by another version")
                    return

    def _wait(self, signals: int) -> list[int]:
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        if len(self._children) < MAX_CHILDREN:
            poll.register(self._listener, select.POLLIN)
        timeout = None
        if self._idle_seconds is not None and not self._children:
            timeout = self._idle_seconds * 1000
        return [descriptor for descriptor, _ in poll.poll(timeout)]

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.discard(pid)
                self._mounts += status == 0

    def _accept(self, signals: int) -> bool:
        """Give the next connection a child; say whether this process is still of any use."""
        try:
            is_current = build() == self._build
        except OSError:
            is_current = False  # removed
        if not is_current:
            return False  # the connection stays in the queue, for whom systemd starts next
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return True  # it has turned away
        with connection:
            uid = peer_uid(connection)
            if uid != os.geteuid():
                log.warning("refused a connection of user %d", uid)
                return True
            try:
                pid = os.fork()
            except OSError as error:
                log.error("cannot fork: %s", error.strerror)
                return True
            if pid == 0:
                signal.set_wakeup_fd(-1)
                os.close(signals)
                self._listener.close()
                be_child(connection, self._build, self._work)
            self._children.add(pid)
        return True


@contextmanager
def _signal_descriptor() -> Iterator[int]:
    """Give a descriptor from which the numbers of signals can be read as they arrive."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    previous = signal.set_wakeup_fd(writer)
    for number in (*ENDING_SIGNALS, signal.SIGCHLD):
        signal.signal(number, _note)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(previous)
        os.close(reader)
        os.close(writer)


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: the number has been written to the descriptor."""


def _drain(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def be_child(connection: socket.socket, born: str, work: Work) -> NoReturn:
    """Be the child of one connection: do its work, in a session of its own, and end."""
    code = CRASHED
    try:
        os.setsid()
        for number in (*ENDING_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        connection.settimeout(REQUEST_SECONDS)
        taken = _take(connection, born)
        if taken is not None:
            connection.settimeout(None)
            words, client = taken
            _interrupt_on_hangup(connection, on=True)
            code = work(words, client)
            _interrupt_on_hangup(connection, on=False)
            connection.sendall(encode_fields(["done", str(code)]))
    except (OSError, ClientGone):
        pass  # the client went away: nobody is there to be told
    except BaseException as error:
        if not is_interrupt(error):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _take(connection: socket.socket, born: str) -> tuple[list[str], Client] | None:
    """Take the client's request and its place; return its words, or None: it turned away."""
    connection.sendall(encode_fields(["hello", born, *standing()]))
    begun, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 1 + len(STREAMS))
    if not begun or len(descriptors) != 1 + len(STREAMS):
        return None
    request = receive_fields(connection, begun)
    if request is None or request[0] != "mount":
        return None
    try:
        start, mask, count = float(request[1]), int(request[2]), int(request[3])
    except (IndexError, ValueError):
        return None
    words, variables = request[4 : 4 + count], request[4 + count :]
    os.fchdir(descriptors[0])
    for descriptor, stream in zip(descriptors[1:], STREAMS, strict=True):
        os.dup2(descriptor, stream)
    for descriptor in set(descriptors) - set(STREAMS):
        os.close(descriptor)
    open_standard_streams()
    os.environ.clear()
    for variable in variables:
        name, _, value = variable.partition("=")
        os.environ[name] = value
    harden(os.environ)
    time.tzset()
    os.umask(mask)
    return words, Client(connection, start)


def _interrupt_on_hangup(connection: socket.socket, *, on: bool) -> None:
    """Have this process interrupted, as by Ctrl-C, when the client goes away.

    The kernel sends SIGIO for whatever happens on the connection; its client sends nothing more.
    """

    def look(number: int, frame: FrameType | None) -> None:
        if _is_gone(connection):
            signal.signal(signal.SIGIO, signal.SIG_IGN)  # once is enough
            signal.raise_signal(signal.SIGINT)

    flags = fcntl.fcntl(connection, fcntl.F_GETFL) & ~os.O_ASYNC
    if not on:
        fcntl.fcntl(connection, fcntl.F_SETFL, flags)
        return
    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)
    if _is_gone(connection):
        raise ClientGone


def _is_gone(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
