"""``lazyfs serve`` in tests: started, asked for its children, ended."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import SECONDS, wait_until

# Starts a program as systemd does: a socket on descriptor 3, and the variables that say so.
ACTIVATE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3);"
    "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def activated(listener: socket.socket, *command: str) -> dict[str, object]:
    """Return what Popen needs to start *command* with *listener* as systemd passes it."""
    words = [sys.executable, "-c", ACTIVATE, str(listener.fileno()), *command]
    return {"args": words, "pass_fds": [listener.fileno()]}


def control_socket(lazyfs: Lazyfs) -> Path:
    return lazyfs.folder / "run/control.sock"


def is_listened_to(path: Path) -> bool:
    """Say whether a connection to *path* would be accepted; makes none that has to be served."""
    with open("/proc/net/unix") as table:
        lines = [line.split() for line in table]
    listening = 0x10000  # the flag of a socket that accepts
    return any(line[-1] == str(path) and int(line[3], 16) & listening for line in lines[1:])


def is_ready(process: subprocess.Popen) -> bool:
    """Say whether ``lazyfs serve`` looks at who connects: it listens before it imports its needs.

    It catches signals then.  A command waits for it for two seconds, too few on a busy machine.
    """
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("\nSigCgt:")[2].split()[0], 16) & 1 << signal.SIGTERM - 1)


@contextmanager
def serving(lazyfs: Lazyfs, *words: str, **options) -> Iterator[subprocess.Popen]:
    """Run ``lazyfs serve`` for the time of the block."""
    log = lazyfs.folder / "serve.log"
    with log.open("ab") as stderr:
        process = lazyfs.start("-v", "serve", *words, stderr=stderr, **options)
    try:
        wait_until(lambda: process.poll() is not None or is_listened_to(control_socket(lazyfs)))
        wait_until(lambda: process.poll() is not None or is_ready(process))
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(SECONDS)
        process.stdout.close()


def children_of(pid: int) -> set[int]:
    """Return the processes whose parent is *pid*; what has ended and waits to be reaped is none."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    found.add(int(name))
        except OSError:
            continue
    return found


def log_of(lazyfs: Lazyfs) -> str:
    return (lazyfs.folder / "serve.log").read_text()


def records(lazyfs: Lazyfs) -> list[dict]:
    """Return the records of mounts."""
    return [json.loads(path.read_text()) for path in lazyfs.records() if path.suffix == ".json"]
