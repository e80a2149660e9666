"""crun and runc as Runtimes: they run a sandbox of one container, and cannot save it.

Each runs on a stage of its own (staged.py), in groups of lazyfs' making where there are limits.
crun makes none; it refuses the mixed layout of cgroups, so it sees only the second version's.  runc
as root makes some beside those, and is told the limits for them.
"""

from dataclasses import dataclass
from pathlib import Path

from lazyfs.documents.errors import RuntimeFailed
from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.sandbox.runtimes.logs import make_folder
from lazyfs.sandbox.runtimes.programs import run_program
from lazyfs.sandbox.runtimes.staged import Staged, pid_path, write_stage_bundle
from lazyfs.sandbox.specs.bundle import load_bundle
from lazyfs.sandbox.specs.spec import HOST, KEYRING

FORGET_SECONDS = 30


@dataclass
class OciRuntime(Staged):
    """A program with the command line that runc has."""

    makes_groups = False

    def _program(self, plan: SandboxPlan) -> list[str | Path]:
        # Ours come last, and win.
        return [self.path.absolute(), *plan.flags, "--root", plan.state_dir / self.name]

    def _command(
        self, plan: SandboxPlan, container: ContainerPlan, *, attached: bool
    ) -> list[str | Path]:
        make_folder(plan.state_dir / self.name)
        bundle = write_stage_bundle(plan, container, limits=self.makes_groups)
        words = [*self._program(plan), "run", "--bundle", bundle]
        if (load_bundle(bundle).get("annotations") or {}).get(KEYRING) == HOST:
            words.append("--no-new-keyring")
        if not attached:
            words += ["--pid-file", pid_path(plan, container)]
        return [*words, container.container_id]

    def _load_pid(self, plan: SandboxPlan, container: ContainerPlan) -> int:
        try:
            return int(pid_path(plan, container).read_text() or 0)
        except (OSError, ValueError):
            return 0

    def _forget(self, plan: SandboxPlan, container: ContainerPlan) -> None:
        words = [*self._program(plan), "delete", "--force", container.container_id]
        try:
            run_program(words, seconds=FORGET_SECONDS)
        except RuntimeFailed:
            pass  # its process has ended; what is left of it is a file in our folder


@dataclass
class Crun(OciRuntime):
    """crun, without cgroups."""

    name: str = "crun"
    needs_cgroup2 = True

    def _program(self, plan: SandboxPlan) -> list[str | Path]:
        return [*super()._program(plan), "--cgroup-manager=disabled"]


@dataclass
class Runc(OciRuntime):
    """runc."""

    name: str = "runc"
    makes_groups = True
