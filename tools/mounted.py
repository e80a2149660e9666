"""Run the ``lazyfs`` command as a user would, in directories of its own; clean up after it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120


class CommandFailed(RuntimeError):
    """``lazyfs`` ended with an exit code that was not expected; the message holds what it said."""


class Workspace:
    """A folder with a cache, logs and control sockets that no other mount of this user shares."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mountpoint = folder / "mnt"
        self.environment = {
            **os.environ,
            "LAZYFS_CACHE_DIR": str(folder / "cache"),
            "LAZYFS_STATE_DIR": str(folder / "state"),
            "LAZYFS_RUNTIME_DIR": str(folder / "run"),
        }
        self.mountpoint.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run ``lazyfs`` with *arguments*; return its stdout, or raise if it ends otherwise."""
        done = subprocess.run(
            [command(), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if done.returncode != code:
            raise CommandFailed(
                f"lazyfs {' '.join(arguments)}: ended with {done.returncode}\n{done.stderr}"
            )
        return done.stdout

    def forget(self) -> None:
        """Empty the cache: the next mount is a cold one."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)


class Mounted:
    """An image mounted in a workspace; a context manager that leaves no mount and no server.

    ``ready_seconds`` is what the mount command took from a bare command line.
    """

    def __init__(self, workspace: Workspace, reference: str, *options: str) -> None:
        self.workspace = workspace
        self.path = workspace.mountpoint
        started = time.perf_counter()
        workspace.run("mount", *options, reference, str(self.path))
        self.ready_seconds = time.perf_counter() - started
        self.pid: int = self.status()["pid"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.workspace.run("umount", str(self.path))
        except (CommandFailed, subprocess.TimeoutExpired):
            detach(self.path)
            if error is None:
                raise

    def status(self) -> dict[str, Any]:
        """Return this mount's part of ``lazyfs status --json``."""
        document = json.loads(self.workspace.run("status", "--json", str(self.path)))
        entry: dict[str, Any] = document["mounts"][0]
        return entry

    def peak_memory_size(self) -> int:
        """Return the most resident memory that the server has had, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        raise LookupError(f"process {self.pid}: no VmHWM")


def command() -> str:
    """Return the ``lazyfs`` command that belongs to this Python."""
    beside = Path(sys.executable).parent / "lazyfs"
    return str(beside) if beside.exists() else "lazyfs"


def detach(mountpoint: Path) -> None:
    """Take a mount away whatever its state."""
    lines = [["fusermount3", "-u", "-z", str(mountpoint)], ["umount", "-l", str(mountpoint)]]
    for line in lines if os.geteuid() else reversed(lines):
        if not is_mounted(mountpoint):
            return
        subprocess.run(line, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS)


def is_mounted(mountpoint: Path) -> bool:
    """Say whether something is mounted on *mountpoint*, without touching it."""
    with open("/proc/self/mounts") as mounts:
        return any(line.split()[1] == str(mountpoint) for line in mounts)
