"""Lives of sandboxes, in a process of their own: for tests that are somebody else than root.

    python3 sandbox_script.py FOLDER ROOTFS RUNTIME [PROGRAM]

Runs only lazyfs and this file.  Prints what it saw as JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.documents.template import Container, Template
from lazyfs.sandbox.runtimes.runtime import Runtime
from lazyfs.sandbox.runtimes.runtimes import Chooser
from lazyfs.sandbox.specs.bundle import write_bundle
from lazyfs.sandbox.specs.spec import Rootless, build_spec

SECONDS = 30
COUNTER = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"
LOOK = (
    "id -u; hostname; cat /etc/base; echo mine >/new && cat /new; test -e /dev/null && echo dev; "
    "test -d /proc/self && echo proc; sleep 0.3; exit 5"
)


def make_plan(
    folder: Path, rootfs: Path, runtime: str, commands: dict[str, str], **options: Any
) -> SandboxPlan:
    """Write bundles for a sandbox named like *folder*; return its plan."""
    containers = [
        Container(name=name, image="busybox", command=("/bin/sh", "-c", text))
        for name, text in commands.items()
    ]
    pause = "busybox" if len(commands) > 1 else None
    template = Template(name=folder.name, containers=tuple(containers), pause_image=pause)
    is_root = os.geteuid() == 0
    plans = []
    for number, container in enumerate(containers):
        identity = f"{folder.name}.{container.name}"
        bundle = folder / "bundles" / container.name
        spec = build_spec(
            container,
            {"config": {"Env": ["PATH=/bin"]}},
            template,
            is_root=number == 0,
            sandbox_id=f"{folder.name}.{containers[0].name}",
            runtime_name=runtime,
            rootless=None if is_root else Rootless(os.geteuid(), os.getegid()),
        )
        spec["root"]["path"] = str(rootfs)
        write_bundle(bundle, spec)
        plans.append(ContainerPlan(container.name, identity, bundle, number == 0))
    return SandboxPlan(folder.name, folder / "state", folder / "logs", tuple(plans), **options)


def lines_of(plan: SandboxPlan, name: str) -> list[str]:
    try:
        return (plan.log_dir / f"{name}.log").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"gave up waiting after {SECONDS} s")
        time.sleep(0.01)


def simple_life(folder: Path, rootfs: Path, runtime: Runtime) -> dict[str, Any]:
    """Run a program that looks around, and one that is killed."""
    plan = make_plan(folder / "simple", rootfs, runtime.name, {"main": LOOK})
    runtime.start(plan)
    seen = {"status": runtime.wait(plan, SECONDS), "said": lines_of(plan, "main")}
    seen["ended"] = runtime.states(plan)["main"]
    runtime.delete(plan)
    seen["deleted"] = runtime.states(plan)["main"]
    other = make_plan(folder / "killed", rootfs, runtime.name, {"main": COUNTER})
    runtime.start(other)
    seen["running"] = runtime.states(other)["main"]
    runtime.delete(other)
    seen["killed"] = runtime.states(other)["main"]
    bare = make_plan(folder / "bare", rootfs, runtime.name, {"main": LOOK}, overlay="none")
    runtime.start(bare)
    runtime.wait(bare, SECONDS)
    seen["bare"] = lines_of(bare, "main")
    runtime.delete(bare)
    return seen


def two_lives(folder: Path, rootfs: Path, runtime: Runtime) -> dict[str, Any]:
    """Checkpoint and restore a sandbox of two containers."""
    commands = {"pause": "sleep 1000", "main": COUNTER}
    plan = make_plan(folder / "first", rootfs, runtime.name, commands)
    image = folder / "image"
    image.mkdir()
    again = make_plan(folder / "again", rootfs, runtime.name, commands)
    try:
        runtime.start(plan)
        wait_until(lambda: len(lines_of(plan, "main")) >= 3)
        runtime.checkpoint(plan, image)
        runtime.delete(plan)
        runtime.restore(again, image)()
        wait_until(lambda: lines_of(again, "main"))
        return {
            "last": lines_of(plan, "main")[-1],
            "first": lines_of(again, "main")[0],
            "files": sorted(path.name for path in image.iterdir()),
            "states": sorted(runtime.states(again).values()),
        }
    finally:
        runtime.delete(plan)
        runtime.delete(again)


def main(words: Sequence[str]) -> None:
    folder, rootfs, name = Path(words[0]), Path(words[1]), words[2]
    runtime = Chooser(folder / "lazyfs")(name, path=Path(words[3]) if len(words) > 3 else None)
    seen = simple_life(folder, rootfs, runtime)
    if "multi-restore" in runtime.probe().abilities:
        seen["restored"] = two_lives(folder, rootfs, runtime)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1:])
