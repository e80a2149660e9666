"""Values: what a runtime reports about itself, and what it is told to run."""

from pathlib import Path

import msgspec


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
