"""Run a program in a mounted image for a while, to see what it reads.

It is confined as a sandbox of ``lazyfs run --runtime bwrap`` is: system calls, privileges, keys,
devices, hidden paths.  The image cannot be changed, /tmp and its like are fresh; the network is
this machine's, since servers and their clients look for one.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.documents.template import Container, Template
from lazyfs.errors import LazyfsError, NotFound, UsageError
from lazyfs.interrupts import uninterrupted
from lazyfs.sandbox.runtimes.bubblewrap import bounded, build_options, seccomp_program
from lazyfs.sandbox.runtimes.runtimes import SYSTEM_PATH
from lazyfs.sandbox.runtimes.staged import AS_ROOT, UNSHARE
from lazyfs.sandbox.specs.keyring import with_new_keyring
from lazyfs.sandbox.specs.spec import build_spec

FRESH = ("/tmp", "/run", "/var/tmp")
FRESH_SIZE = "size=25%"
SHARED = ("/etc/resolv.conf", "/etc/hosts")
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
            "optimize: no command was given, and the image names none",
            hint="give the command after --",
        )
    return found


class Command(msgspec.Struct, frozen=True):
    """How a program is started: words before and after bwrap's option for *filter*, a program of
    BPF.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    filter: bytes | None = None


def build_command(
    root: Path, config: Mapping[str, Any], words: Sequence[str], *, bwrap: Path | None
) -> Command:
    """Return how *words* are run with *root* as their root, by *bwrap*.

    Raises NoWayIn without one, Unsupported for a machine on which it cannot confine.
    """
    if bwrap is None:
        raise NoWayIn(
            "optimize: bwrap, which confines the command, is not installed",
            hint="install the package bubblewrap; or run the image with `lazyfs run`, save what "
            "was read with `lazyfs profile`, and convert with `lazyfs convert --profile`",
        )
    container = Container(name="main", image="scratch", command=tuple(words), user="0")
    spec = build_spec(
        container,
        config,
        Template(name="optimize", containers=(container,)),
        is_root=True,
        sandbox_id="optimize",
        runtime_name="bwrap",
        network="host",
    )
    spec["root"]["path"] = str(root)
    mounts = [each for each in spec["mounts"] if _is_folder(root, each["destination"])]
    mounts = [each for each in mounts if each["type"] != "sysfs"]  # it is the machine's
    for target in FRESH:
        if _is_folder(root, target):
            mounts.append({"destination": target, "type": "tmpfs", "options": [FRESH_SIZE]})
    for target in SHARED:
        if os.path.isfile(target) and _is_file(root, target):
            options = ["rbind", "ro"]
            mounts.append(
                {"destination": target, "type": "bind", "source": target, "options": options}
            )
    spec["mounts"] = mounts
    hidden = {each["destination"] for each in mounts}
    for key in ("maskedPaths", "readonlyPaths"):
        paths = spec["linux"][key]
        spec["linux"][key] = [each for each in paths if f"/{each.split('/')[1]}" in hidden]
    if not _is_folder(root, spec["process"]["cwd"]):
        spec["process"]["cwd"] = "/"
    # As on a stage: whoever it is, he is root of what he is in.
    start = [] if os.geteuid() == 0 else [*UNSHARE, *AS_ROOT]
    options = build_options(spec, root.parent, is_root=True, is_writable=False)
    return Command(
        before=(*start, *bounded(spec), str(bwrap), "--die-with-parent"),
        after=tuple(options),
        filter=seccomp_program(spec),
    )


def find_bwrap() -> Path | None:
    """Return where bwrap is, None where there is none."""
    for folders in (os.environ.get("PATH", ""), SYSTEM_PATH):
        if found := shutil.which("bwrap", path=folders):
            return Path(found)
    return None


def run_for(command: Command, seconds: float) -> bool:
    """Run *command* with our output, no input and no keys of ours; end it when the time is up.

    Returns whether it ended by itself.  Raises WorkloadFailed if it did, but not well.
    """
    with uninterrupted() as held:
        try:
            with _filter_words(command.filter) as (words, descriptors):
                line = [*command.before, *words, *command.after]
                process = with_new_keyring(
                    lambda: subprocess.Popen(
                        line,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                        stdout=2,
                        pass_fds=descriptors,
                    )
                )
        except (OSError, ValueError) as exc:
            raise WorkloadFailed(f"cannot start {command.before[0]}: {exc}") from exc
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
            f"the command failed with {got}",
            hint="the image is read-only for the command; only /tmp, /run and the like can be"
            " written",
        )
    return True


@contextmanager
def _filter_words(program: bytes | None) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Give bwrap's words for a program of BPF, and the descriptors to pass on."""
    if program is None:
        yield [], ()
        return
    with open(os.memfd_create("lazyfs-seccomp"), "w+b", buffering=0) as file:
        file.write(program)
        file.seek(0)
        yield ["--seccomp", str(file.fileno())], (file.fileno(),)


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
