"""Starting a server: two processes, a channel between them, and nothing left over when it fails.

A mount needs two jobs: *preparing* an image (the network, building the index; much memory, once)
and *serving* it (little memory, for long).  Each gets a process, forked from the command before
either has imported what only it needs, so that they import side by side, and so that the memory
of preparing goes away with its process.

In the background the command prepares and its child serves:

    command ── fork ──▶ server: detach, import, wait
       │ ── once the manifest is known: it ──▶ connect, ask for what a profile names
       │ prepare (errors and progress go to the terminal)
       │ ───────────── prepared ─────────────▶ open, mount
       │ ◀──────── ready, or an error ──────── serve
       └ exit

In the foreground the child prepares and the command serves.  If the command ends early, for
whatever reason, the channel closes, and the server ends without a mount.  Where ``lazyfs serve``
took the mount over, its child does all that the command does here.
"""

import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import NoReturn

from lazyfs.errors import LazyfsError
from lazyfs.interrupts import uninterrupted
from lazyfs.service.processes.failures import ServerLost, document_of, error_of, is_interrupt
from lazyfs.service.processes.streams import open_standard_streams

HEADER = struct.Struct(">cI")
MAX_MESSAGE_SIZE = 64 << 20
LEAVE_SECONDS = 10.0
CRASHED = 1
PR_SET_PDEATHSIG = 1
INTERRUPTED = 130


class Word(Enum):
    """What a message on the channel says."""

    FORESEEN = b"F"
    PREPARED = b"P"
    READY = b"R"
    ERROR = b"E"


class ChannelClosed(Exception):
    """The other process is gone."""


class Channel:
    """Messages between the two processes: one byte of meaning, four of length, a payload."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, word: Word, payload: bytes = b"") -> None:
        """Send a message; raises ChannelClosed."""
        try:
            self._connection.sendall(HEADER.pack(word.value, len(payload)) + payload)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self) -> tuple[Word, bytes]:
        """Wait for a message; raises ChannelClosed."""
        code, size = HEADER.unpack(self._exactly(HEADER.size))
        if size > MAX_MESSAGE_SIZE:
            raise ChannelClosed(f"channel: a message of {size} bytes is too large")
        return Word(code), self._exactly(size)

    def expect(self, word: Word) -> bytes:
        """Wait for the message *word* and return its payload; raise what the other side raised."""
        return expected(word, *self.receive())

    def fileno(self) -> int:
        """Return what can be read from when a message has come."""
        return self._connection.fileno()

    def leave(self) -> Word | None:
        """Take nothing more, which the other side notices; return the word that is here already."""
        try:
            self._connection.shutdown(socket.SHUT_RD)
            return self.receive()[0]
        except (OSError, ChannelClosed):
            return None

    def close(self) -> None:
        """Close this side; the other one notices."""
        self._connection.close()

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            try:
                piece = self._connection.recv(min(size, 1 << 20))
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not piece:
                raise ChannelClosed("channel: the other side has closed it")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def expected(word: Word, got: Word, payload: bytes) -> bytes:
    """Return the payload of *word*; raise what the other side raised, if it *got* that."""
    if got is Word.ERROR:
        raise error_of(json.loads(payload))
    if got is not word:
        raise ChannelClosed(f"channel: got {got.name}, expected {word.name}")
    return payload


class Link:
    """What a server sees of the process that started it."""

    def __init__(self, channel: Channel, announce: Callable[[], None] | None = None) -> None:
        self._channel = channel
        self._announce = announce
        self._waiting: list[tuple[Word, bytes]] = []

    def fileno(self) -> int:
        """Return what can be read from when something has been said."""
        return self._channel.fileno()

    def wait_foreseen(self) -> bytes | None:
        """Wait for the first message; return what is known of the image before it is prepared.

        None if the message is another one, which is kept.  Raises ChannelClosed.
        """
        word, payload = self._channel.receive()
        if word is Word.FORESEEN:
            return payload
        self._waiting.append((word, payload))
        return None

    def wait_prepared(self) -> bytes:
        """Wait for what the preparing process made; raises ChannelClosed, or its error."""
        while True:
            word, payload = self._waiting.pop() if self._waiting else self._channel.receive()
            if word is not Word.FORESEEN:
                return expected(Word.PREPARED, word, payload)

    def announce_ready(self) -> None:
        """Say that the mount is live; raises ChannelClosed when nobody wants it any more."""
        if self._announce is not None:
            self._announce()
        else:
            self._channel.send(Word.READY)
        self._channel.close()


Tell = Callable[[bytes], None]
Prepare = Callable[[Tell], bytes]
"""Prepares an image; tells the server what it may begin with meanwhile."""
Serve = Callable[[Link], None]


def run_in_background(
    prepare: Prepare, serve: Serve, log_path: Path, confirm: Callable[[], None] | None = None
) -> None:
    """Prepare here and serve in a child; return when the mount is live.

    *confirm* is called then; if it raises, nobody wants the mount any more, and it is undone.
    Raises what any of them raised, or ServerLost.
    """
    open_standard_streams()
    ours, theirs = socket.socketpair()
    with uninterrupted() as held:
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_server(serve, theirs, log_path)
        theirs.close()
        channel = Channel(ours)
        is_live = False
        try:
            with held.opened():
                _prepare_for(channel, prepare, log_path)
                is_live = True
                if confirm is not None:
                    confirm()
        except BaseException:
            is_live = is_live or channel.leave() is Word.READY
            channel.close()
            if is_live:  # it has stopped listening to us
                os.kill(pid, signal.SIGTERM)
            wait_ended(pid, LEAVE_SECONDS)
            raise
        channel.close()


def _prepare_for(channel: Channel, prepare: Prepare, log_path: Path) -> None:
    """Prepare what the server behind *channel* is to serve; return when the mount is live."""
    channel_error: ChannelClosed | None = None
    payload = prepare(partial(_foresee, channel))
    try:
        channel.send(Word.PREPARED, payload)
    except ChannelClosed as error:
        channel_error = error  # it may have said why before it went
    try:
        channel.expect(Word.READY)
    except ChannelClosed as error:
        raise ServerLost(
            f"the server ended before the mount was live ({channel_error or error})",
            hint=f"see its log: {log_path}",
        ) from error


def run_in_foreground(prepare: Prepare, serve: Serve, announce: Callable[[], None]) -> None:
    """Serve here and prepare in a child; return when the mount is gone.

    *announce* is called when the mount is live.
    """
    open_standard_streams()
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    with uninterrupted() as held:
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_preparer(prepare, theirs, parent, held)
        theirs.close()
        channel = Channel(ours)
        try:
            with held.opened():
                serve(Link(channel, announce))
        except ChannelClosed as error:
            raise ServerLost("the process that prepares the image ended early") from error
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGTERM)  # a terminal has told it, others have not
            raise
        finally:
            channel.close()
            wait_ended(pid, LEAVE_SECONDS)


def wait_ended(pid: int, seconds: float) -> bool:
    """Wait for the child *pid* to end; tell it to after *seconds*, and say whether it had ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended = bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
    if not ended:
        os.kill(pid, signal.SIGTERM)
        return False
    os.waitpid(pid, 0)
    return True


def _be_server(serve: Serve, connection: socket.socket, log_path: Path) -> NoReturn:
    code = CRASHED
    channel = Channel(connection)
    try:
        detach(connection.fileno(), log_path)
        serve(Link(channel))
        code = 0
    except ChannelClosed:
        pass  # the command was interrupted: nobody is there to be told
    except BaseException as error:
        _report(channel, error)
        if not isinstance(error, LazyfsError):
            _log_traceback()
    finally:
        os._exit(code)


def _be_preparer(
    prepare: Prepare, connection: socket.socket, parent: int, held: uninterrupted
) -> NoReturn:
    code = CRASHED
    channel = Channel(connection)
    try:
        held.release()
        die_with_parent(parent)
        channel.send(Word.PREPARED, prepare(partial(_foresee, channel)))
        code = 0
    except ChannelClosed:
        pass
    except BaseException as error:
        if is_interrupt(error):
            code = INTERRUPTED
        _report(channel, error)
        if code != INTERRUPTED and not isinstance(error, LazyfsError):
            _log_traceback()
    finally:
        os._exit(code)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process with *parent*, its parent, however that one ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise ChannelClosed("the parent process has ended")


def _foresee(channel: Channel, payload: bytes) -> None:
    try:
        channel.send(Word.FORESEEN, payload)
    except ChannelClosed:
        pass  # whoever waits for it to serve will notice


def _report(channel: Channel, error: BaseException) -> None:
    try:
        channel.send(Word.ERROR, json.dumps(document_of(error)).encode())
    except ChannelClosed:
        pass


def _log_traceback() -> None:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.stderr.write(f"{when} {traceback.format_exc()}")
    sys.stderr.flush()


def detach(keep: int, log_path: Path) -> None:
    """Leave the terminal: a session of our own, standard streams on /dev/null and the log.

    Descriptors of whoever called the command are closed, except *keep*: a shell that waits for
    the end of a pipe must not wait for the server.
    """
    os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the server handles it
    null = os.open(os.devnull, os.O_RDWR)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log = os.open(log_path, flags, 0o600)
    for descriptor, stream in ((null, 0), (null, 1), (log, 2)):
        os.dup2(descriptor, stream)
    limit = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, keep)
    os.closerange(keep + 1, limit if 0 < limit < 1 << 20 else 1 << 20)
