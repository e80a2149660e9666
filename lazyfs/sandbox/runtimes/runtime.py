"""What snapshots need of a runtime: gVisor's runsc, or another that can at least run."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from lazyfs.documents.plans import RuntimeFacts, SandboxPlan


class ContainerState(StrEnum):
    """What the runtime says of a container; ABSENT: it knows none of that name."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABSENT = "absent"


class Runtime(Protocol):
    """A program that runs containers.  Every call has a time limit; RuntimeFailed says why not."""

    name: str

    def probe(self) -> RuntimeFacts:
        """Ask the program what it can do."""
        ...

    def start(self, plan: SandboxPlan) -> None:
        """Start all containers in the background; their output goes to ``log_dir``."""
        ...

    def run_attached(self, plan: SandboxPlan) -> int:
        """Run a sandbox of one container on this terminal; return its exit status."""
        ...

    def checkpoint(self, plan: SandboxPlan, image_dir: Path) -> None:
        """Save the sandbox to *image_dir*, which is empty, and end it."""
        ...

    def restore(self, plan: SandboxPlan, image_dir: Path) -> Callable[[], None]:
        """Start all containers from *image_dir*; return a wait for when it is not needed more."""
        ...

    def states(self, plan: SandboxPlan) -> dict[str, ContainerState]:
        """Return each container's state, by its name."""
        ...

    def wait(self, plan: SandboxPlan, seconds: float | None) -> int | None:
        """Return the exit status of the last container of the plan, None if it goes on."""
        ...

    def delete(self, plan: SandboxPlan) -> None:
        """Kill what runs and forget it; nothing to do where nothing is known."""
        ...


class Choose(Protocol):
    """Finds a runtime: the program of that name or path, or the kept one of a digest."""

    def __call__(self, name: str, *, path: Path | None, digest: str | None) -> Runtime:
        """Return it.  Raises Unsupported where there is none, RuntimeMismatch for a digest."""
        ...
