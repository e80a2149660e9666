"""Run a program in a mounted image for a while, to see what it reads.

Not a sandbox to rely on: the image cannot be changed, /tmp and its like are fresh, and processes
are its own, but the network and the kernel are this machine's.  bubblewrap does it for everybody;
without it, root changes the root, and others do so in a user namespace.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lazyfs.errors import LazyfsError, NotFound, UsageError
from lazyfs.interrupts import uninterrupted

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FRESH = ("/tmp", "/run", "/var/tmp")
GRACE_SECONDS = 5.0


class WorkloadFailed(LazyfsError):
    """The program that was to be watched did not do its work."""

    code = "E_WORKLOAD_FAILED"


class NoWayIn(NotFound):
    """Nothing on this machine can start a program in an image."""

    code = "E_NO_WAY_IN"


def words_of(config: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """Return what to run: *words*, or what the image's config starts."""
    inner = config.get("config")
    inner = inner if isinstance(inner, dict) else {}
    found = list(words) or [*_texts(inner.get("Entrypoint")), *_texts(inner.get("Cmd"))]
    if not found:
        raise UsageError(
            "optimize: got no command and an image that names none, expected one",
            hint="write it after --",
        )
    return found


def build_command(
    root: Path, config: Mapping[str, Any], words: Sequence[str], *, programs: Mapping[str, str]
) -> list[str]:
    """Return the command line that runs *words* with *root* as its root.

    *programs* says where bwrap, chroot and unshare are, as far as they are there.
    """
    inner = config.get("config")
    inner = inner if isinstance(inner, dict) else {}
    variables = {"PATH": DEFAULT_PATH}
    variables |= dict(text.partition("=")[::2] for text in _texts(inner.get("Env")))
    folder = inner.get("WorkingDir")
    folder = folder if isinstance(folder, str) and folder.startswith("/") else "/"
    if "bwrap" in programs:
        line = [programs["bwrap"], "--ro-bind", str(root), "/"]
        for option, target in (("--dev", "/dev"), ("--proc", "/proc")):
            if _is_folder(root, target):
                line += [option, target]
        for target in FRESH:
            if _is_folder(root, target):
                line += ["--tmpfs", target]
        for target in ("/etc/resolv.conf", "/etc/hosts"):
            if os.path.isfile(target) and _is_file(root, target):
                line += ["--ro-bind", target, target]
        line += ["--unshare-pid", "--unshare-ipc", "--die-with-parent", "--new-session"]
        line += ["--clearenv"]
        for name, value in variables.items():
            line += ["--setenv", name, value]
        if _is_folder(root, folder):
            line += ["--chdir", folder]
        return [*line, "--", *words]
    if "chroot" not in programs or (os.geteuid() and "unshare" not in programs):
        raise NoWayIn(
            "optimize: got neither bwrap nor chroot, expected one of them",
            hint="install the package bubblewrap",
        )
    line = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
    if os.geteuid():
        line += [programs["unshare"], "--user", "--map-root-user"]
    return [*line, programs["chroot"], str(root), *words]


def find_programs() -> dict[str, str]:
    """Return where the programs are that build_command can use."""
    path = os.environ.get("PATH", "") + ":" + DEFAULT_PATH
    found = {name: shutil.which(name, path=path) for name in ("bwrap", "chroot", "unshare")}
    return {name: where for name, where in found.items() if where}


def run_for(line: Sequence[str], seconds: float) -> bool:
    """Run *line* with our output and no input; end it when the time is up.

    Returns whether it ended by itself.  Raises WorkloadFailed if it did, but not well.
    """
    with uninterrupted() as held:
        try:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, start_new_session=True, stdout=2
            )
        except (OSError, ValueError) as exc:
            raise WorkloadFailed(f"{line[0]}: got {exc}, expected it to start") from exc
        try:
            with held.opened():
                status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
    if status:
        got = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise WorkloadFailed(
            f"command: got {got}, expected 0",
            hint="it runs in the image without the right to change it; only /tmp, /run and the"
            " like can be written",
        )
    return True


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program and all of its session: asked first, then killed."""
    deadline = time.monotonic() + GRACE_SECONDS
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _is_folder(root: Path, target: str) -> bool:
    path = str(root) + target
    return os.path.isdir(path) and not os.path.islink(path)


def _is_file(root: Path, target: str) -> bool:
    path = str(root) + target
    return os.path.isfile(path) and not os.path.islink(path)
