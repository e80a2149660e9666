"""A server's side of its keeper: starting one, talking to it, and starting another if it dies.

What has to be handed over is a document in a file without a name, which only this user's processes
can open: among the settings are credentials.
"""

import json
import logging
import os
import socket
import subprocess
import sys
from typing import Any

import msgspec
import trio

from lazyfs.environment import of_interpreter
from lazyfs.image.open import OpenImage
from lazyfs.image.prepare import Prepared
from lazyfs.mount.connection import Connection
from lazyfs.mount.session import PyfuseSession
from lazyfs.service.processes import keeper as program
from lazyfs.service.processes.interpreter import interpreter_command
from lazyfs.service.processes.settings import MountSettings

LIMIT_VARIABLE = "LAZYFS_SUCCESSORS"  # so many in a minute; the soak wants more
LIMIT = 5
KEEPERS = 5
LEAVE_SECONDS = 5.0
LINK_KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)

log = logging.getLogger(__name__)


class Legacy(msgspec.Struct, frozen=True):
    """What a server leaves to its successor; ``pins`` are descriptors that keep layers in use."""

    settings: MountSettings
    prepared: Prepared
    connection: Connection
    pins: tuple[int, ...]
    started: str

    def encode(self) -> bytes:
        """Return the JSON form."""
        # Not msgspec's own: names on disk need not be UTF-8, and come as lone surrogates
        return json.dumps(msgspec.to_builtins(self, enc_hook=str)).encode()

    @staticmethod
    def decode(data: bytes) -> "Legacy":
        """Return what ``encode`` made of it."""
        return msgspec.convert(
            json.loads(data), type=Legacy, dec_hook=lambda kind, text: kind(text)
        )


class Keeping:
    """Sees to it that a mount has a keeper, as long as ``run`` runs.

    *link* is the socket to a keeper that is there already; *is_outdated*: it holds descriptors that
    are no longer those of the connection.  *history* is the keeper's, how many servers the mount
    had before this one and when.
    """

    def __init__(
        self,
        settings: MountSettings,
        prepared: Prepared,
        session: PyfuseSession,
        image: OpenImage,
        *,
        link: int | None = None,
        history: str = "0",
        is_outdated: bool = False,
    ) -> None:
        self._history = history
        self._started = ""
        self._is_outdated = is_outdated
        self.pid: int | None = None
        self.note = _why_not(settings, prepared, session)
        self._settings = settings
        self._prepared = prepared
        self._session = session
        self._image = image
        self._link = None if link is None else trio.socket.fromfd(link, *LINK_KIND)
        if link is not None:
            os.close(link)

    @property
    def is_kept(self) -> bool:
        """Say whether somebody would start a successor if this server died now."""
        return self.pid is not None

    def facts(self) -> dict[str, Any]:
        """Return what a status says of it."""
        return {
            "keeperPid": self.pid,
            "keeperNote": self.note,
            "successions": int(self._history.split(",")[0]),
        }

    async def begin(self, started: str) -> None:
        """Have a keeper, unless there is to be none; *started* is since when the mount is there."""
        self._started = started
        if self._is_outdated:
            await self.end()
        if self._link is None and not self.note:
            self._start()

    async def run(self) -> None:
        """Talk to the keeper; when it dies, have another one."""
        for _ in range(KEEPERS):
            if self._link is None:
                return
            await self._watch(self._link)
            log.warning("%s: the keeper died; starting another", self._session.mountpoint)
            self._forget()
            self._start()
        await self.end()
        self.note = f"{KEEPERS} keepers have died"

    async def plan_succession(self) -> None:
        """Tell the keeper that this server ends now, and another one is wanted."""
        if self._link is not None:
            await self._link.send(program.PLANNED)

    async def end(self) -> None:
        """Tell the keeper to end, and wait until it has."""
        if self._link is None:
            return
        with trio.move_on_after(LEAVE_SECONDS):
            try:
                process = None if self.pid is None else os.pidfd_open(self.pid)
                try:
                    await self._link.send(program.END)
                    while await self._link.recv(16):
                        pass
                    if process is not None:  # its link is not the last descriptor that it closes
                        await trio.lowlevel.wait_readable(process)
                finally:
                    if process is not None:
                        os.close(process)
            except OSError:
                pass  # it is dead already
        self._forget()

    async def _watch(self, link: trio.socket.SocketType) -> None:
        """Talk to a keeper until it has died."""
        try:
            first = await link.recv(16)
            self.pid = int(first) if first.isdigit() else None
            await link.send(program.SERVING)
            while await link.recv(16):
                pass
        except OSError:
            pass

    def _forget(self) -> None:
        self.pid = None
        if self._link is not None:
            self._link.close()
            self._link = None

    def _start(self) -> None:
        """Start a keeper.  It holds the descriptors as soon as it exists, whatever it does yet."""
        connection = self._session.connection()
        assert connection is not None, "a keeper for a driver that cannot have a successor"
        # The keeper's end blocks: it has nothing else to do
        ours, theirs = socket.socketpair(*LINK_KIND)
        pins: list[int] = []
        state = -1
        try:
            for device in self._image.devices:
                pin = device.content.open_pin()
                pins += [pin] if pin >= 0 else []
            legacy = Legacy(self._settings, self._prepared, connection, tuple(pins), self._started)
            state = os.memfd_create("lazyfs-legacy")
            os.write(state, legacy.encode())
            process = _run_keeper(
                theirs.fileno(),
                connection.descriptors[0],
                self._history,
                self._session.mountpoint,
                state,
                (theirs.fileno(), state, *connection.descriptors, *pins),
            )
        except OSError as error:
            ours.close()
            self.note = f"the keeper could not be started: {error}"
            log.warning("the keeper could not be started: %s", error)
            return
        finally:
            theirs.close()
            for descriptor in (state, *pins):
                if descriptor >= 0:
                    os.close(descriptor)
        self.pid = process.pid
        self._link = trio.socket.from_stdlib_socket(ours)


def _why_not(settings: MountSettings, prepared: Prepared, session: PyfuseSession) -> str:
    if settings.is_foreground:
        return "a mount in the foreground has none: its caller watches the server"
    if not session.has_successor:
        return f"driver {session.driver} cannot hand its mount to a new server" + (
            f": {session.note}" if session.note else ""
        )
    if settings.options.auto_unmount:
        return "with auto_unmount the mount ends with its server"
    if prepared.is_volatile:
        return "the store is full, so nothing of the image is on disk"
    return ""


def _run_keeper(
    link: int,
    fuse: int,
    history: str,
    mountpoint: str,
    state: int,
    descriptors: tuple[int, ...],
) -> "subprocess.Popen[bytes]":
    limit = os.environ.get(LIMIT_VARIABLE, "")
    command = [*interpreter_command("lazyfs.cli.mounts.successor"), str(state)]
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", program.__file__),
            *(str(link), str(fuse), limit if limit.isdigit() else str(LIMIT)),
            *(history, mountpoint),
            *command,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,
        env=of_interpreter(os.environ),
    )
