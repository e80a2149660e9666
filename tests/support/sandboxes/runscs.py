"""The two real gVisors that `make setup-interop` unpacks, and sandboxes to run with them."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.documents.template import Container, Template
from lazyfs.sandbox.specs.bundle import write_bundle
from lazyfs.sandbox.specs.spec import build_spec
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    symlink,
    tar_bytes,
)
from tests.support.mounts.mounting import ROOT, run

OLD = "bookworm"  # ptrace, checkpoints of one file, one container
NEW = "bookworm-backports"  # systrap, three files, several containers, without root
SUITES = (OLD, NEW)
BUSYBOX = Path("/usr/bin/busybox")
COMMANDS = ("sh", "sleep", "cat", "echo", "ls", "id", "touch", "hostname", "true", "env", "dd")
COUNTER = (
    'read base </etc/base; i=0; while true; do i=$((i+1)); echo "$i $base"; sleep 0.2; '
    "read base </etc/base; done"
)


def runsc_path(suite: str) -> Path:
    """Return where the runsc of a Debian suite is, whether or not it is there."""
    return ROOT / ".interop" / f"runsc-{suite}" / "usr" / "bin" / "runsc"


@functools.cache
def why_no_runsc(suite: str) -> str | None:
    """Say why the runsc of *suite* cannot be used here; None if it can."""
    path = runsc_path(suite)
    if not path.exists():
        return f"no runsc of {suite}: make setup-interop fetches it, on a Debian system"
    if os.geteuid() != 0:
        return "not root"
    tried = run(path, "--network=none", "--ignore-cgroups", "do", "/bin/true")
    return None if tried.returncode == 0 else f"runsc of {suite} does not run here: {tried.stderr}"


def need_runsc(suite: str) -> Path:
    """Return the runsc of *suite*, or skip the test that asks."""
    reason = why_no_runsc(suite) or why_no_busybox()
    if reason is not None:
        pytest.skip(reason)
    return runsc_path(suite)


def why_no_busybox() -> str | None:
    """Say why no image can be made for sandboxes; None if one can."""
    if not BUSYBOX.exists():
        return f"no {BUSYBOX} (apt install busybox-static)"
    return None


def make_busybox(layout: Path, base: str = "base one", *, index: bool = False) -> str:
    """Make the image of a small system in an OCI layout, lazily mountable; return its reference.

    *index*: its tag names an index that has the image.
    """
    items = [
        *(directory(name) for name in ("bin", "dev", "etc", "proc", "sys")),
        directory("tmp", mode=0o1777),
        file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in COMMANDS),
        file("etc/base", f"{base}\n".encode()),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"),
    ]
    layers = [estargz_layer(tar_bytes(items))]
    make_layout(layout, layers, cmd=("/bin/sh", "-c", COUNTER), index=index)
    return f"oci:{layout}"


def make_plan(
    folder: Path,
    rootfs: Path,
    commands: Mapping[str, Sequence[str]],
    *,
    runtime_name: str = "runsc",
    **options,
) -> SandboxPlan:
    """Write bundles for a sandbox named like *folder*, all on one *rootfs*; return its plan."""
    containers = tuple(
        Container(name=name, image="busybox", command=tuple(words))
        for name, words in commands.items()
    )
    template = Template(
        name=folder.name,
        containers=containers,
        pause_image="busybox" if len(commands) > 1 else None,
    )
    plans = []
    for number, container in enumerate(containers):
        plan = ContainerPlan(
            name=container.name,
            container_id=f"{folder.name}.{container.name}",
            bundle=folder / "bundles" / container.name,
            is_root=number == 0,
        )
        spec = build_spec(
            container,
            {"config": {"Env": ["PATH=/bin"]}},
            template,
            is_root=plan.is_root,
            sandbox_id=f"{folder.name}.{containers[0].name}",
            runtime_name=runtime_name,
        )
        spec["root"]["path"] = str(rootfs)
        write_bundle(plan.bundle, spec)
        plans.append(plan)
    return SandboxPlan(
        sandbox_id=folder.name,
        state_dir=folder / "runtime",
        log_dir=folder / "logs",
        containers=tuple(plans),
        **options,
    )


def lines_of(plan: SandboxPlan, name: str) -> list[str]:
    """Return what a container has said so far: whole lines."""
    try:
        text = (plan.log_dir / f"{name}.log").read_text()
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]
