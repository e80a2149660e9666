"""gVisor's runsc as a Runtime, for root and, where the program can, for anybody else.

Without root each call is made as root of a new user namespace.  ``--rootless`` would run and
checkpoint, but it refuses to restore; the namespace does all three.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import ContainerPlan, RuntimeFacts, SandboxPlan
from lazyfs.sandbox.runtimes.log_writer import wait_written
from lazyfs.sandbox.runtimes.logs import (
    container_output,
    last_message,
    log_size,
    make_folder,
    shorten_reason,
    writer_record,
)
from lazyfs.sandbox.runtimes.probe import probe_program
from lazyfs.sandbox.runtimes.programs import (
    Done,
    TimeExpired,
    kill_processes,
    processes_with,
    run_on_terminal,
    run_program,
    start_time,
    wait_gone,
)
from lazyfs.sandbox.runtimes.runsc_flags import spelled
from lazyfs.sandbox.runtimes.runtime import ContainerState
from lazyfs.sandbox.runtimes.sockets import remove_dead_sockets
from lazyfs.sandbox.specs.bundle import load_bundle
from lazyfs.sandbox.specs.cgroups import entering, make_groups, remove_groups
from lazyfs.sandbox.specs.spec import writes_pipe

CALL_SECONDS = 60  # for what takes some 100 ms
LONG = 1e6  # as long as poll(2) can be told to wait
IMAGE_SECONDS = 1800  # for what reads or writes all memory of a sandbox
LOG_NAME = "runsc.log"
FULL = 1 << 20  # bytes: no checkpoint fits into less
OWN_FAILURE = 128  # its exit status when it failed itself

ABSENT_WORDS = ("file does not exist", "not found", "no such file")
SANDBOX_WORDS = ("runsc-sandbox", "runsc-gofer")
USERNS = ("unshare", "--user", "--map-root-user")


@dataclass
class Runsc:
    """The program at *path*; *cache_dir* keeps what is known of it."""

    path: Path
    cache_dir: Path | None = None
    call_seconds: float = CALL_SECONDS
    image_seconds: float = IMAGE_SECONDS
    name: str = "runsc"
    _facts: RuntimeFacts | None = None
    _groups: Sequence[Path] = ()

    def probe(self) -> RuntimeFacts:
        """Ask the program what it can do."""
        self._facts = probe_program(self.path, self.cache_dir)
        return self._facts

    def start(self, plan: SandboxPlan) -> None:
        """Start all containers in the background; their output goes to ``log_dir``."""
        self._check_plan(plan)
        self._check_new(plan)
        make_folder(plan.state_dir)
        self._groups = make_groups(plan)
        for container in plan.containers:
            bundle: list[str | Path] = ["--bundle", container.bundle]
            if len(plan.containers) == 1:
                self._launch(plan, container, ["run", "--detach", *bundle])
            else:
                self._launch(plan, container, ["create", *bundle], ["start"])

    def run_attached(self, plan: SandboxPlan) -> int:
        """Run a sandbox of one container on this terminal; return its exit status."""
        self._check_plan(plan)
        if len(plan.containers) != 1:
            raise Unsupported(
                f"cannot run {len(plan.containers)} containers on this terminal, only 1",
                hint="start the sandbox in the background",
            )
        self._check_new(plan)
        make_folder(plan.state_dir)
        make_folder(plan.log_dir)
        self._groups = make_groups(plan)
        words = self._words(plan, "run", "--bundle", plan.root.bundle, plan.root.container_id)
        before = log_size(_log_path(plan))
        status = run_on_terminal(words)
        if status == OWN_FAILURE and (reason := last_message(_log_path(plan), before)):
            raise RuntimeFailed(f"runsc run: {reason}", hint=_hint(plan))
        return status

    def checkpoint(self, plan: SandboxPlan, image_dir: Path) -> None:
        """Save the sandbox to *image_dir*, which is empty, and end it."""
        facts = self._check_plan(plan)
        self._check_can_restore(plan, facts)
        if os.listdir(image_dir):
            raise RuntimeFailed(f"checkpoint: {image_dir} is not empty")
        processes = self._sandbox_processes(plan)
        options: list[str | Path] = ["--image-path", image_dir]
        if "compression" in facts.abilities:
            options.append("--compression=none")  # it is compressed later, and better
        words = [*options, plan.root.container_id]
        try:
            self._call(plan, "checkpoint", *words, seconds=self.image_seconds)
        except RuntimeFailed as error:
            raise _with_room(error, image_dir) from error
        # It returns before the sandbox has ended.
        if not wait_gone(processes, self.call_seconds):
            raise RuntimeFailed("runsc checkpoint: the sandbox did not end", hint=_hint(plan))

    def restore(self, plan: SandboxPlan, image_dir: Path) -> Callable[[], None]:
        """Start all containers from *image_dir*; return a wait for when it is not needed more."""
        facts = self._check_plan(plan)
        self._check_can_restore(plan, facts)
        self._check_new(plan)
        make_folder(plan.state_dir)
        self._groups = make_groups(plan)
        in_background = {"background", "wait-restore"} <= facts.abilities
        for container in plan.containers:
            options: list[str | Path] = ["--detach", "--bundle", container.bundle]
            options += ["--image-path", image_dir]
            if in_background:
                options.append("--background")
            self._launch(plan, container, ["restore", *options], seconds=self.image_seconds)

        def wait() -> None:
            if in_background:
                self._call(
                    plan, "wait", "--restore", plan.root.container_id, seconds=self.image_seconds
                )

        return wait

    def states(self, plan: SandboxPlan) -> dict[str, ContainerState]:
        """Return each container's state, by its name."""
        found = {each.name: self._state(plan, each) for each in plan.containers}
        # It goes on calling them running for a while after their sandbox has ended.
        is_alive = any(start_time(pid) is not None for _, pid in found.values() if pid > 0)
        return {
            name: state if is_alive or state is ContainerState.ABSENT else ContainerState.STOPPED
            for name, (state, _) in found.items()
        }

    def wait(self, plan: SandboxPlan, seconds: float | None) -> int | None:
        """Return the exit status of the last container of the plan, None if it goes on.

        It is known only to those who wait when the sandbox ends: RuntimeFailed says so after that.
        """
        container = plan.containers[-1]
        limit = LONG if seconds is None else min(seconds, LONG)
        while True:
            try:
                done = self._call(plan, "wait", container.container_id, seconds=limit)
                break
            except TimeExpired:
                if seconds is not None:
                    return None
        if container.is_root:  # others' streams stay open as long as the sandbox
            wait_written(writer_record(plan, container))
        try:
            return int(json.loads(done.out)["exitStatus"])
        except (ValueError, KeyError, TypeError) as exc:
            raise RuntimeFailed(
                f"runsc wait printed no exit status, but {done.out[:80]!r}"
            ) from exc

    def delete(self, plan: SandboxPlan) -> None:
        """Kill what runs and forget it; nothing to do where nothing is known."""
        if not plan.state_dir.is_dir():
            return
        # Not by "delete --force" alone: it waits for init to reap the sandbox, which some never do,
        # it does nothing for one that failed to start, and fails for those beside a dead root.
        processes = self._sandbox_processes(plan)
        if not kill_processes(processes):
            raise RuntimeFailed(f"runsc delete: processes {processes} are still running")
        for container in reversed(plan.containers):
            if not plan.overlay.endswith(":memory") and any(_state_files(plan, container)):
                self._try(plan, "delete", "--force", container.container_id)  # its files, too
            for path in _state_files(plan, container):
                path.unlink(missing_ok=True)
            remove_dead_sockets(plan.state_dir, container.container_id)
            wait_written(writer_record(plan, container))
            writer_record(plan, container).unlink(missing_ok=True)
        remove_groups(plan)

    # The program

    def _words(self, plan: SandboxPlan, command: str, *words: str | Path) -> list[str | Path]:
        facts = self._facts or self.probe()
        # A sandbox stays in the groups that it begins in; other commands have nothing to do there.
        is_beginning = command in ("run", "create", "restore")
        result = entering(self._groups) if is_beginning else []
        if os.geteuid() != 0:
            result += USERNS
        result += [
            self.path.absolute(),
            *map(spelled, plan.flags),  # ours come after them, and win
            f"--root={plan.state_dir}",
            f"--log={_log_path(plan)}",
            "--log-format=json",
            "--ignore-cgroups",
            f"--network={plan.network}",
        ]
        if facts.platform and not any(
            flag.lstrip("-").startswith("platform=") for flag in plan.flags
        ):
            result.append(f"--platform={facts.platform}")
        if "overlay2" in facts.abilities:
            overlay = plan.overlay
            if "overlay-dir" not in facts.abilities:
                overlay = overlay.replace(":dir=", ":")
            result.append(f"--overlay2={overlay}")
        if "allow-connected-on-save" in facts.abilities:
            result.append("--allow-connected-on-save")
        return [*result, command, *words]

    def _call(
        self,
        plan: SandboxPlan,
        command: str,
        *words: str | Path,
        seconds: float | None = None,
        output: IO[bytes] | None = None,
    ) -> Done:
        make_folder(plan.log_dir)
        before = log_size(_log_path(plan))
        line = self._words(plan, command, *words)
        done = run_program(line, seconds=seconds or self.call_seconds, output=output)
        if done.status != 0:
            reason = last_message(_log_path(plan), before) or shorten_reason(done.err)
            reason = reason or f"exit status {done.status}"
            raise RuntimeFailed(
                f"runsc {command}: {reason}",
                hint=_hint(plan),
                details={"command": command, "status": done.status},
            )
        return done

    def _try(self, plan: SandboxPlan, command: str, *words: str | Path) -> None:
        try:
            self._call(plan, command, *words)
        except TimeExpired:
            raise
        except RuntimeFailed:
            pass

    def _launch(
        self,
        plan: SandboxPlan,
        container: ContainerPlan,
        *calls: Sequence[str | Path],
        seconds: float | None = None,
    ) -> None:
        """Make calls one of whose standard streams the container inherits.

        The root one gets those of its creation, others those of their start.
        """
        make_folder(plan.state_dir)
        is_file = not writes_pipe(load_bundle(container.bundle))
        with container_output(plan, container, is_file=is_file) as output:
            for command, *words in calls:
                self._call(
                    plan,
                    str(command),
                    *words,
                    container.container_id,
                    seconds=seconds,
                    output=output,
                )

    def _state(self, plan: SandboxPlan, container: ContainerPlan) -> tuple[ContainerState, int]:
        if not plan.state_dir.is_dir():
            return ContainerState.ABSENT, 0
        try:
            done = self._call(plan, "state", container.container_id)
        except TimeExpired:
            raise
        except RuntimeFailed as error:
            if any(word in error.message for word in ABSENT_WORDS):
                return ContainerState.ABSENT, 0
            raise
        return parse_state(done.out)

    def _sandbox_processes(self, plan: SandboxPlan) -> list[int]:
        """Return the processes of this sandbox: no other has its folder."""
        return [
            pid
            for pid, words in processes_with(f"--root={plan.state_dir}")
            if os.path.basename(words[0]) in SANDBOX_WORDS
        ]

    # What it can do

    def _check_plan(self, plan: SandboxPlan) -> RuntimeFacts:
        facts = self._facts or self.probe()
        if "overlay2" not in facts.abilities and plan.overlay != "none":
            raise Unsupported(
                f"{self.path} has no --overlay2: files that a sandbox writes to its root would be "
                "missing from checkpoints",
                hint="use a newer runsc",
            )
        if os.geteuid() != 0:
            if "rootless" not in facts.abilities:
                raise Unsupported(
                    f"{self.path}: runsc {facts.version} cannot run a mounted image without root",
                    hint="use a newer runsc, run it as root, or use --runtime crun or bwrap",
                )
            if shutil.which(USERNS[0]) is None:
                raise Unsupported(
                    f"{USERNS[0]} is not installed; runsc needs it to run without root"
                )
        return facts

    @staticmethod
    def _check_new(plan: SandboxPlan) -> None:
        """Refuse a name that is known: runsc itself would fail, and end the one that runs."""
        for container in plan.containers:
            if any(_state_files(plan, container)):
                raise RuntimeFailed(
                    f"runsc: container {container.container_id} already exists",
                    hint=f"lazyfs delete {plan.sandbox_id}",
                )

    def _check_can_restore(self, plan: SandboxPlan, facts: RuntimeFacts) -> None:
        if "checkpoint" not in facts.abilities or "restore" not in facts.abilities:
            raise Unsupported(f"{self.path}: this runsc cannot checkpoint and restore")
        if len(plan.containers) > 1 and "multi-restore" not in facts.abilities:
            raise Unsupported(
                f"{self.path}: runsc {facts.version} cannot restore {len(plan.containers)} "
                "containers, "
                "only 1",
                hint="use a newer runsc, or a template of one container without pauseImage",
            )


def parse_state(text: str) -> tuple[ContainerState, int]:
    """Return state and process number from what ``state`` prints.  Raises RuntimeFailed."""
    try:
        document = json.loads(text)
        return ContainerState(document["status"]), int(document.get("pid") or 0)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise RuntimeFailed(f"state is not JSON with a known status: {text[:80]!r}") from exc


def _state_files(plan: SandboxPlan, container: ContainerPlan) -> Iterator[Path]:
    """Yield what runsc keeps of a container: ``ID_sandbox:SANDBOX.state`` and ``.lock``."""
    return plan.state_dir.glob(f"{container.container_id}_sandbox:*")


def _with_room(error: RuntimeFailed, folder: Path) -> RuntimeFailed:
    """Return *error*, saying that the disk is full if it is: runsc may have only a trace for it."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free >= FULL or "no space left" in error.message:
        return error
    return RuntimeFailed(
        f"{error.message}; {folder}: no space left: {free} bytes free",
        hint=error.hint,
        details=error.details | {"free": free},
    )


def _log_path(plan: SandboxPlan) -> Path:
    return plan.log_dir / LOG_NAME


def _hint(plan: SandboxPlan) -> str:
    return f"its full output is in {plan.log_dir}"
