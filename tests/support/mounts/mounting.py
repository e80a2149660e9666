"""Real mounts in tests: when they are possible, and that nothing of them is left."""

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import LazyfsError
from lazyfs.mount.kernel import check_erofs
from lazyfs.mount.point import load_mountinfo

ROOT = Path(__file__).parents[3]
SECONDS = 30
PAUSE = 0.002
FUSE = Path("/dev/fuse")
FOR_ALL = Path(tempfile.gettempdir()) / "lazyfs-tests-fuse-for-all.json"


def why_no_mounts() -> str | None:
    """Return why this machine cannot mount, or None."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return None


needs_fuse = [
    pytest.mark.fuse,
    pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts())),
]
needs_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="not root"),
]


def available_drivers() -> list[str]:
    """Return the names of the drivers that were built."""
    return ["pyfuse3", *(["native"] if find_spec("lazyfs._native") else [])]


def why_no_erofs() -> str | None:
    """Return why the kernel's EROFS cannot be mounted here, or None."""
    try:
        check_erofs(os.uname().release)
    except LazyfsError as error:
        return error.message
    return None


needs_erofs = [
    *needs_fuse,
    pytest.mark.root,
    pytest.mark.skipif(why_no_erofs() is not None, reason=str(why_no_erofs())),
]


def is_mounted(path: str | Path) -> bool:
    """Say whether something is mounted exactly on *path*."""
    return any(entry.mountpoint == os.fsencode(path) for entry in load_mountinfo())


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """Give a new folder that other users can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="lazyfs-test-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fuse_for_all() -> Iterator[None]:
    """Let all users open /dev/fuse for the time of the block; the last one out puts it back.

    A file has its mode and who is in: other processes of tests may be in such a block, too.
    """
    with _fuse_users() as users:
        users["in"].append(os.getpid())
        FUSE.chmod(0o666)
    try:
        yield
    finally:
        with _fuse_users() as users:
            users["in"].remove(os.getpid())
            if not users["in"]:
                FUSE.chmod(users["mode"])


@contextmanager
def _fuse_users() -> Iterator[dict[str, Any]]:
    """Give what ``FOR_ALL`` has, which nobody else reads or writes meanwhile."""
    with FOR_ALL.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        users = json.loads(file.read() or "{}") or {"in": []}
        # Who was killed in the block left its mode behind, not the one to put back.
        users.setdefault("mode", stat.S_IMODE(FUSE.stat().st_mode))
        users["in"] = [pid for pid in users["in"] if Path(f"/proc/{pid}").exists()]
        yield users
        file.truncate(0)
        file.write(json.dumps(users if users["in"] else {}))


def force_unmount(path: str | Path) -> None:
    """Get rid of whatever is mounted on *path*, dead or alive."""
    for _ in range(10):
        if not is_mounted(path):
            return
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*command, str(path)], timeout=SECONDS, check=False, capture_output=True)
    raise AssertionError(f"{path} is still mounted")


def run(*command: object, **options) -> subprocess.CompletedProcess:
    """Run a program to its end; its output is captured, its exit code is the caller's to check."""
    defaults = {"capture_output": True, "text": True, "timeout": SECONDS, "check": False}
    return subprocess.run([str(word) for word in command], **(defaults | options))


def wait_until(condition, seconds: float = SECONDS) -> None:
    """Ask again and again until *condition* holds; for what another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"gave up after {seconds} s waiting for {condition}")
        time.sleep(PAUSE)  # the processor is for the one who is waited for


class Commanded:
    """A process of ``serve_made.py``."""

    def __init__(self, mountpoint: Path, options: Sequence[str], log: Path) -> None:
        self.mountpoint = mountpoint
        words = [word.removeprefix("driver=") for word in options if word.startswith("driver=")]
        self.driver = words[0] if words else "pyfuse3"
        self.log_path = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.support.mounts.serve_made",
                    str(mountpoint),
                    *options,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
            )

    def wait_ready(self) -> None:
        assert self.process.stdout.readline() == "ready\n", self.log_path.read_text()

    def do(self, what: str, **arguments: object) -> object:
        """Give a command, and return the answer."""
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def wait_waiting(self, count: int) -> None:
        """Wait until *count* readers wait for contents."""
        wait_until(lambda: self.do("waiting") >= count)

    def end(self) -> int:
        """End the server as an operator does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)
        self.process.stdin.close()
        self.process.stdout.close()
        force_unmount(self.mountpoint)


@contextmanager
def serving_made(mountpoint: Path, *options: str) -> Iterator[Commanded]:
    """Mount the sample image on *mountpoint* for the time of the block."""
    server = Commanded(mountpoint, options, mountpoint.with_name(mountpoint.name + ".log"))
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()
