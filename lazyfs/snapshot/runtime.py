"""What snapshots need of a runtime: gVisor's runsc, or another that can at least run."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec


class ContainerState(StrEnum):
    """What the runtime says of a container; ABSENT: it knows none of that name."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABSENT = "absent"


class RuntimeFacts(msgspec.Struct, frozen=True):
    """What a runtime's program is and can do, found by asking it, cached by its digest.

    ``name`` is "runsc", "crun", "runc" or "bwrap"; ``version`` the text that it prints;
    ``abilities`` are words such as "checkpoint", "overlay2", "compression", "direct",
    "background", "leave-running", "detach"; ``platform`` is gVisor's, "" for others.
    """

    name: str
    path: Path
    version: str
    binary_digest: str
    platform: str
    abilities: frozenset[str]
    cpu_features: tuple[str, ...] = ()


class ContainerPlan(msgspec.Struct, frozen=True):
    """A container to be: ``bundle`` is the folder with config.json and rootfs (a mount)."""

    name: str
    container_id: str
    bundle: Path
    is_root: bool


class Limits(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a whole sandbox may use; None: there is no limit.  Sizes are in bytes.

    ``storage``: what its root may grow by; ``log_size`` is of each of ``log_files`` files that
    are kept of a container's output.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    storage: int | None = None
    log_size: int = 10 << 20
    log_files: int = 3


class SandboxPlan(msgspec.Struct, frozen=True):
    """A sandbox to be: the root container first.  ``state_dir`` is the runtime's own folder."""

    sandbox_id: str
    state_dir: Path
    log_dir: Path
    containers: tuple[ContainerPlan, ...]
    overlay: str = "root:memory"
    network: str = "none"
    flags: tuple[str, ...] = msgspec.field(default=())
    limits: Limits = Limits()

    @property
    def root(self) -> ContainerPlan:
        """The container that stands for the sandbox."""
        return self.containers[0]


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


def names(containers: Sequence[ContainerPlan]) -> list[str]:
    """Return the names of *containers*."""
    return [container.name for container in containers]
