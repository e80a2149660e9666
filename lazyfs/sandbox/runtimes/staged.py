"""Containers of one program each, in a mount namespace of their own: what crun, runc, bwrap share.

The namespace is the stage: there the image, which cannot be written, is the lower layer of an
overlay, whose upper one is in memory and goes with the namespace.  Without root it belongs to a
new user namespace, so the same config.json serves root and everybody else.

A shell waits for the program and writes its exit status down.  What is known of a container is a
file below ``state_dir``: nothing of it depends on who started it.
"""

import os
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.own import is_lost
from lazyfs.documents.plans import ContainerPlan, RuntimeFacts, SandboxPlan
from lazyfs.interrupts import uninterrupted
from lazyfs.sandbox.runtimes.log_writer import wait_written
from lazyfs.sandbox.runtimes.logs import (
    container_output,
    last_lines,
    log_size,
    make_folder,
    writer_record,
)
from lazyfs.sandbox.runtimes.probe import probe_program
from lazyfs.sandbox.runtimes.programs import (
    Spawning,
    kill_processes,
    reap,
    run_on_terminal,
    spawn_background,
    start_time,
    wait_gone,
)
from lazyfs.sandbox.runtimes.runtime import ContainerState
from lazyfs.sandbox.specs.bundle import load_bundle, rootfs_of, write_bundle
from lazyfs.sandbox.specs.cgroups import PERIOD, entering, make_groups, remove_groups
from lazyfs.sandbox.specs.keyring import with_new_keyring, with_own_keyring
from lazyfs.sandbox.specs.spec import HOST, KEYRING

START_SECONDS = 60
LONG = 1e6  # seconds, as long as poll(2) can be told to wait
POLL_SECONDS = 0.01

STORAGE = "25%"  # of the memory of this machine: what a root in memory may grow by

UNSHARE = ("unshare", "--mount")
AS_ROOT = ("--user", "--map-root-user")
# Arguments: rootfs, folder for the upper layer or "", the size that it may have in memory or "" for
# one on disk, overlay's further options, "cgroup2" where only that is wanted, file for the exit
# status or "".  No device node of an image can be opened: what is mounted nodev stays so in the
# user namespace that root's containers get, and in those that belong to one all is.
STAGE = r"""
set -e
rootfs=$1 scratch=$2 size=$3 options=$4 cgroups=$5 status_file=$6
shift 6
if [ -n "$scratch" ]; then
    if [ -n "$size" ]; then
        mount -t tmpfs -o "nosuid,nodev,mode=0700,size=$size" tmpfs "$scratch"
    fi
    cd "$scratch"
    mkdir -p lower upper work
    mount --bind "$rootfs" lower
    mount -t overlay -o "nodev,lowerdir=lower,upperdir=upper,workdir=work$options" \
        overlay "$rootfs"
    cd /
elif [ -z "$options" ]; then
    mount --bind "$rootfs" "$rootfs"
    mount -o remount,bind,ro,nodev "$rootfs"
fi
if [ -n "$cgroups" ] && [ -d /sys/fs/cgroup/unified ]; then
    mount --rbind /sys/fs/cgroup/unified /sys/fs/cgroup
fi
if [ -z "$status_file" ]; then exec "$@"; fi
status=0
"$@" || status=$?
echo "$status" >"$status_file.tmp"
mv "$status_file.tmp" "$status_file"
exit "$status"
"""


class _Known(msgspec.Struct, rename="camel"):
    """What is kept of a container: the shell's process and its own, with their start times."""

    shell: int
    shell_start: int
    pid: int = 0
    pid_start: int = 0


@dataclass
class Staged:
    """A runtime whose program at *path* runs one container, in the foreground."""

    path: Path
    cache_dir: Path | None = None
    start_seconds: float = START_SECONDS
    name: str = ""

    @abstractmethod
    def _command(
        self, plan: SandboxPlan, container: ContainerPlan, *, attached: bool
    ) -> list[str | Path]:
        """Return the program's words."""

    @abstractmethod
    def _load_pid(self, plan: SandboxPlan, container: ContainerPlan) -> int:
        """Return the number of the container's first process, 0 while it has none."""

    def _forget(self, plan: SandboxPlan, container: ContainerPlan) -> None:
        """Let the program forget a container whose processes have ended."""

    needs_cgroup2 = False

    def probe(self) -> RuntimeFacts:
        """Ask the program what it can do."""
        return probe_program(self.path, self.cache_dir)

    def start(self, plan: SandboxPlan) -> None:
        """Start the container in the background; its output goes to ``log_dir``."""
        container = self._check(plan)
        make_folder(plan.state_dir)
        status_path = _path(plan, container, "status")
        words = self._stage(plan, container, status_path)
        words += self._command(plan, container, attached=False)
        said_before = log_size(plan.log_dir / f"{container.name}.log")
        words = [*entering(make_groups(plan)), *words]
        with uninterrupted():  # until it is known what runs
            with container_output(plan, container) as output:
                shell = self._spawning(container)(lambda: spawn_background(words, output))
            known = _Known(shell, start_time(shell) or 0)
            _save(plan, container, known)
        pid = self._wait_pid(plan, container, shell)
        if pid is None:
            self._end(plan, container, known)
            reason = last_lines(plan.log_dir / f"{container.name}.log", said_before)
            self.delete(plan)
            raise RuntimeFailed(
                f"{self.name}: {reason or 'it ended before the container began'}",
                hint=f"its full output is in {plan.log_dir}",
            )
        known.pid, known.pid_start = pid, start_time(pid) or 0
        _save(plan, container, known)

    def run_attached(self, plan: SandboxPlan) -> int:
        """Run a sandbox of one container on this terminal; return its exit status."""
        container = self._check(plan)
        make_folder(plan.state_dir)
        words = self._stage(plan, container, None) + self._command(plan, container, attached=True)
        words = [*entering(make_groups(plan)), *words]
        return run_on_terminal(words, spawning=self._spawning(container))

    def checkpoint(self, plan: SandboxPlan, image_dir: Path) -> None:
        """Raise Unsupported: only runsc can."""
        raise self._cannot("checkpoint")

    def restore(self, plan: SandboxPlan, image_dir: Path) -> Callable[[], None]:
        """Raise Unsupported: only runsc can."""
        raise self._cannot("restore")

    def states(self, plan: SandboxPlan) -> dict[str, ContainerState]:
        """Return each container's state, by its name."""
        found = {}
        for container in plan.containers:
            known = _load(plan, container)
            if known is None:
                state = ContainerState.ABSENT
            elif _path(plan, container, "status").exists():
                state = ContainerState.STOPPED  # its process may take a moment longer to go
            elif known.pid and start_time(known.pid) == known.pid_start:
                state = ContainerState.RUNNING
            else:
                state = ContainerState.STOPPED
            found[container.name] = state
        return found

    def wait(self, plan: SandboxPlan, seconds: float | None) -> int | None:
        """Return the exit status of the container, None if it goes on."""
        container = plan.containers[-1]
        known = _load(plan, container)
        if known is None:
            raise RuntimeFailed(
                f"{self.name} wait: container {container.container_id} does not exist"
            )
        limit = LONG if seconds is None else min(seconds, LONG)
        while start_time(known.shell) == known.shell_start:
            if not wait_gone([known.shell], limit) and seconds is not None:
                return None
        wait_written(writer_record(plan, container))
        try:
            return int(_path(plan, container, "status").read_text())
        except (OSError, ValueError) as exc:
            raise RuntimeFailed(
                f"{self.name} wait: {container.container_id}: the exit status is not known: the "
                "container, or the shell that waited for it, was killed"
            ) from exc

    def delete(self, plan: SandboxPlan) -> None:
        """Kill what runs and forget it; nothing to do where nothing is known."""
        for container in plan.containers:
            known = _load(plan, container)
            if known is not None:
                self._end(plan, container, known)
            if plan.state_dir.is_dir():
                self._forget(plan, container)
            for word in ("status", "status.tmp", "pid", "json", "seccomp"):
                _path(plan, container, word).unlink(missing_ok=True)
            writer_record(plan, container).unlink(missing_ok=True)
            shutil.rmtree(_path(plan, container, "bundle"), ignore_errors=True)
        remove_groups(plan)

    # Within

    def _kill(self, plan: SandboxPlan, container: ContainerPlan, known: _Known) -> None:
        pid = known.pid or self._load_pid(plan, container)
        processes = {known.shell: known.shell_start, pid: known.pid_start}
        alive = [
            number
            for number, start in processes.items()
            if number > 0
            and (found := start_time(number)) is not None
            and (found == start or (number == pid and not known.pid))
        ]
        if not kill_processes(alive):
            raise RuntimeFailed(f"{self.name} delete: processes {alive} are still running")
        reap(known.shell)

    def _end(self, plan: SandboxPlan, container: ContainerPlan, known: _Known) -> None:
        """Kill what runs; all that it has said is in its log then."""
        self._kill(plan, container, known)
        wait_written(writer_record(plan, container))

    @staticmethod
    def _spawning(container: ContainerPlan) -> Spawning:
        """Return what starts a program with the keys that the container may have: none."""
        annotations = load_bundle(container.bundle).get("annotations") or {}
        return with_own_keyring if annotations.get(KEYRING) == HOST else with_new_keyring

    def _cannot(self, what: str) -> Unsupported:
        return Unsupported(
            f"{self.name} cannot {what}",
            hint="start the sandbox with --runtime runsc (gVisor), which can",
        )

    def _check(self, plan: SandboxPlan) -> ContainerPlan:
        if len(plan.containers) != 1:
            raise Unsupported(
                f"{self.name} cannot run {len(plan.containers)} containers in one sandbox, only 1",
                hint="use --runtime runsc, or a template of one container without pauseImage",
            )
        container = plan.root
        if shutil.which(UNSHARE[0]) is None:
            raise Unsupported(f"{self.name}: unshare (util-linux) is not installed")
        if _load(plan, container) is not None:
            raise RuntimeFailed(
                f"{self.name}: container {container.container_id} already exists",
                hint=f"lazyfs delete {plan.sandbox_id}",
            )
        return container

    def _stage(
        self, plan: SandboxPlan, container: ContainerPlan, status_path: Path | None
    ) -> list[str | Path]:
        is_root = os.geteuid() == 0
        spec = load_bundle(container.bundle)
        words: list[str | Path] = [*UNSHARE]
        if not is_root:
            words += AS_ROOT
            if _wants_lent_ids(spec):
                words.append("--map-auto")
        where, _, medium = plan.overlay.partition(":")
        scratch: Path | str = ""
        if plan.overlay != "none":
            folder = medium.removeprefix("dir=")
            if where not in ("root", "all") or not (medium == "memory" or folder.startswith("/")):
                raise Unsupported(
                    f"{self.name}: overlay must be root:memory, root:dir=PATH or none, "
                    f"not {plan.overlay!r}"
                )
            scratch = plan.state_dir / "stage" if medium == "memory" else Path(folder)
            make_folder(Path(scratch))
        words += ["sh", "-c", STAGE, "lazyfs-stage", rootfs_of(container.bundle, spec), scratch]
        size = plan.limits.storage or STORAGE
        if plan.limits.storage is not None and medium != "memory":
            raise Unsupported(
                f"limits: storage cannot be limited with overlay {plan.overlay}",
                hint="use --overlay root:memory, or leave the limit out",
            )
        words += [str(size) if medium == "memory" else "", "" if is_root else ",userxattr"]
        words += ["cgroup2" if self.needs_cgroup2 else "", status_path or ""]
        return words

    def _wait_pid(self, plan: SandboxPlan, container: ContainerPlan, shell: int) -> int | None:
        """Return the container's process once it has one; None if the shell ended without."""
        deadline = time.monotonic() + self.start_seconds
        while True:
            has_ended = start_time(shell) is None  # asked first: the file may come with the end
            if pid := self._load_pid(plan, container):
                return pid
            if has_ended or time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS)


def write_stage_bundle(
    plan: SandboxPlan, container: ContainerPlan, *, limits: bool = False
) -> Path:
    """Write the bundle as it is to be on the stage; return its folder.

    The same but for the user namespace that the stage has made, and the path of the rootfs.  With
    *limits* it says those too, for a runtime that makes groups of its own.
    """
    spec = load_bundle(container.bundle)
    linux = spec.get("linux") or {}
    kept = dict(linux)
    if os.geteuid() != 0:  # the stage is in one already
        kept = {key: linux[key] for key in linux.keys() - {"uidMappings", "gidMappings"}}
        kept["namespaces"] = [
            each for each in linux.get("namespaces") or () if each.get("type") != "user"
        ]
    root = (spec.get("root") or {}) | {"path": str(rootfs_of(container.bundle, spec))}
    if limits and os.geteuid() == 0:
        kept["resources"] = (linux.get("resources") or {}) | _resources(plan)
    folder = _path(plan, container, "bundle")
    write_bundle(folder, spec | {"linux": kept, "root": root})
    return folder


def _resources(plan: SandboxPlan) -> dict[str, Any]:
    limits = plan.limits
    found: dict[str, Any] = {}
    if limits.memory is not None:
        found["memory"] = {"limit": limits.memory}
    if limits.pids is not None:
        found["pids"] = {"limit": limits.pids}
    if limits.cpus is not None:
        found["cpu"] = {"quota": max(1000, int(limits.cpus * PERIOD)), "period": PERIOD}
    return found


def _wants_lent_ids(spec: Mapping[str, Any]) -> bool:
    """Say whether the config maps ids beyond that of who runs it."""
    return len((spec.get("linux") or {}).get("uidMappings") or ()) > 1


def _path(plan: SandboxPlan, container: ContainerPlan, suffix: str) -> Path:
    return plan.state_dir / f"{container.container_id}.{suffix}"


def pid_path(plan: SandboxPlan, container: ContainerPlan) -> Path:
    """Return where the program writes which process the container is."""
    return _path(plan, container, "pid")


def seccomp_path(plan: SandboxPlan, container: ContainerPlan) -> Path:
    """Return where the program of BPF is that a container is started with."""
    return _path(plan, container, "seccomp")


def _save(plan: SandboxPlan, container: ContainerPlan, known: _Known) -> None:
    target = _path(plan, container, "json")
    temporary = target.with_suffix(".json.tmp")
    try:
        temporary.write_bytes(msgspec.json.encode(known))
        temporary.replace(target)
    except OSError as exc:
        raise RuntimeFailed(f"{target}: {exc.strerror}") from exc


def _load(plan: SandboxPlan, container: ContainerPlan) -> _Known | None:
    path = _path(plan, container, "json")
    try:
        data = path.read_bytes()
        # Lost with the power, and with it all that ran.
        return None if is_lost(data) else msgspec.json.decode(data, type=_Known)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RuntimeFailed(f"{path} is not what lazyfs wrote: {exc}") from exc
