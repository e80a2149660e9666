"""crun, runc and bwrap on their stage: how a container starts, ends and is forgotten.

A script plays runc, without a stage; tests/interop/test_stages.py has the real ones.
"""

import os
import signal
from pathlib import Path

import pytest

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import ContainerPlan, Limits, SandboxPlan
from lazyfs.sandbox.runtimes import staged
from lazyfs.sandbox.runtimes.oci_runtimes import Crun, Runc
from lazyfs.sandbox.runtimes.programs import start_time
from lazyfs.sandbox.runtimes.runtime import ContainerState
from lazyfs.sandbox.runtimes.staged import write_stage_bundle
from lazyfs.sandbox.specs.bundle import load_bundle, write_bundle
from tests.support.mounts.mounting import wait_until

SCRIPT = """#!/bin/sh
echo "$*" >>{folder}/calls
while [ $# -gt 0 ]; do
    case "$1" in
        delete) exit 0 ;;
        --pid-file) file=$2; shift ;;
    esac
    last=$1
    shift
done
[ -e {folder}/fails ] && {{ echo "runc: it cannot" >&2; exit 1; }}
[ -n "$file" ] && echo $$ >"$file"
echo "$last runs"
while [ ! -e {folder}/status ]; do sleep 0.02; done
exit "$(cat {folder}/status)"
"""


@pytest.fixture
def runc(tmp_path, monkeypatch):
    path = tmp_path / "runc"
    path.write_text(SCRIPT.format(folder=tmp_path))
    path.chmod(0o755)
    bare = staged.STAGE.replace("mount ", ": ")
    monkeypatch.setattr(staged, "STAGE", bare)
    monkeypatch.setattr(staged, "UNSHARE", ("env",))
    runtime = Runc(path, start_seconds=20)
    yield runtime
    (tmp_path / "status").write_text("0")


@pytest.fixture
def plan(tmp_path):
    return plan_in(tmp_path)


def plan_in(folder: Path, names: tuple[str, ...] = ("main",), **options) -> SandboxPlan:
    containers = []
    for name in names:
        bundle = folder / "bundles" / name
        namespaces = [{"type": "pid"}, {"type": "user"}]
        write_bundle(
            bundle,
            {
                "process": {"args": ["x"]},
                "root": {"path": "rootfs"},
                "linux": {
                    "namespaces": namespaces,
                    "uidMappings": [],
                    "maskedPaths": ["/proc/keys"],
                },
            },
        )
        containers.append(ContainerPlan(name, f"box.{name}", bundle, name == names[0]))
    return SandboxPlan("box", folder / "state", folder / "logs", tuple(containers), **options)


def end(plan: SandboxPlan, status: int) -> None:
    (plan.state_dir.parent / "status").write_text(str(status))


def test_a_life(runc, plan):
    assert runc.states(plan) == {"main": ContainerState.ABSENT}
    runc.start(plan)
    assert runc.states(plan) == {"main": ContainerState.RUNNING}
    assert runc.wait(plan, 0) is None
    wait_until(lambda: (plan.log_dir / "main.log").read_text() == "box.main runs\n")
    another = Runc(runc.path)  # as in another process: all that is known is on disk
    assert another.states(plan) == {"main": ContainerState.RUNNING}
    end(plan, 7)
    assert another.wait(plan, None) == 7
    assert another.states(plan) == {"main": ContainerState.STOPPED}
    another.delete(plan)
    assert another.states(plan) == {"main": ContainerState.ABSENT}
    assert [path.name for path in plan.state_dir.iterdir() if path.name.startswith("box")] == []


def test_what_it_is_called_with(runc, plan, tmp_path):
    runc.start(plan)
    runc.delete(plan)
    run, delete = (tmp_path / "calls").read_text().splitlines()
    assert run == (
        f"--root {plan.state_dir}/runc run --bundle {plan.state_dir}/box.main.bundle "
        f"--pid-file {plan.state_dir}/box.main.pid box.main"
    )
    assert delete == f"--root {plan.state_dir}/runc delete --force box.main"
    crun = Crun(Path("/usr/bin/crun"))
    assert "--cgroup-manager=disabled" in crun._command(plan, plan.root, attached=True)


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_bundle_on_the_stage(tmp_path, monkeypatch, uid):
    """Without root the stage has made the user namespace; root's containers get their own."""
    monkeypatch.setattr(staged.os, "geteuid", lambda: uid)
    limits = Limits(memory=1 << 20, pids=5, cpus=0.5)
    plan = plan_in(tmp_path, limits=limits)
    spec = load_bundle(write_stage_bundle(plan, plan.root, limits=True))
    linux = {"namespaces": [{"type": "pid"}], "maskedPaths": ["/proc/keys"]}
    if uid == 0:
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = []
        linux["resources"] = {
            "memory": {"limit": 1 << 20},
            "pids": {"limit": 5},
            "cpu": {"quota": 50_000, "period": 100_000},
        }
    assert spec["linux"] == linux
    assert spec["root"] == {"path": str(plan.root.bundle / "rootfs")}


def test_deleting_kills_what_runs(runc, plan):
    runc.start(plan)
    known = staged._load(plan, plan.root)
    runc.delete(plan)
    assert (start_time(known.pid), start_time(known.shell)) == (None, None)
    runc.delete(plan)


def test_what_fails_to_start_leaves_nothing(runc, plan, tmp_path):
    (tmp_path / "fails").write_text("")
    with pytest.raises(RuntimeFailed, match="runc: runc: it cannot") as error:
        runc.start(plan)
    assert str(plan.log_dir) in error.value.hint
    assert runc.states(plan) == {"main": ContainerState.ABSENT}
    (tmp_path / "fails").unlink()
    runc.start(plan)
    runc.delete(plan)


def test_a_name_that_is_known_is_refused(runc, plan):
    runc.start(plan)
    for call in (runc.start, runc.run_attached):
        with pytest.raises(RuntimeFailed, match=r"container box.main already exists"):
            call(plan)
    assert runc.states(plan) == {"main": ContainerState.RUNNING}
    runc.delete(plan)


def test_a_number_that_came_again_is_another_process(runc, plan):
    runc.start(plan)
    known = staged._load(plan, plan.root)
    staged._save(plan, plan.root, staged._Known(known.shell, known.shell_start, os.getpid(), 1))
    assert runc.states(plan) == {"main": ContainerState.STOPPED}
    os.kill(known.pid, signal.SIGKILL)
    runc.delete(plan)  # and we are still here


def test_an_exit_status_that_nobody_wrote_down(runc, plan):
    runc.start(plan)
    known = staged._load(plan, plan.root)
    os.kill(known.shell, signal.SIGKILL)
    os.kill(known.pid, signal.SIGKILL)
    with pytest.raises(RuntimeFailed, match="the exit status is not known"):
        runc.wait(plan, 20)
    runc.delete(plan)
    with pytest.raises(RuntimeFailed, match="does not exist"):
        runc.wait(plan, 0)


def test_on_this_terminal(runc, plan):
    end(plan, 5)
    assert runc.run_attached(plan) == 5
    assert runc.states(plan) == {"main": ContainerState.ABSENT}


def test_what_they_cannot(runc, tmp_path):
    plan = plan_in(tmp_path)
    with pytest.raises(Unsupported, match="runc cannot checkpoint") as error:
        runc.checkpoint(plan, tmp_path)
    assert "--runtime runsc" in error.value.hint
    with pytest.raises(Unsupported, match="runc cannot restore"):
        runc.restore(plan, tmp_path)
    with pytest.raises(Unsupported, match="2 containers"):
        runc.start(plan_in(tmp_path, ("pause", "main")))
    for overlay in ("root:self", "root:dir=near", "all", ""):
        with pytest.raises(Unsupported, match="overlay must be"):
            runc.start(plan_in(tmp_path, overlay=overlay))


@pytest.mark.parametrize(
    ("overlay", "uid", "expected"),
    [
        ("root:memory", 0, ["{state}/stage", "25%", "", "", ""]),
        ("root:memory", 1000, ["{state}/stage", "25%", ",userxattr", "", ""]),
        ("none", 0, ["", "", "", "", ""]),
        ("root:dir={folder}/disk", 0, ["{folder}/disk", "", "", "", ""]),
    ],
)
def test_the_stage(tmp_path, monkeypatch, overlay, uid, expected):
    monkeypatch.setattr(staged.os, "geteuid", lambda: uid)
    plan = plan_in(tmp_path, overlay=overlay.format(folder=tmp_path))
    words = Runc(Path("/bin/runc"))._stage(plan, plan.root, None)
    at = words.index("lazyfs-stage")
    assert [str(word) for word in words[at + 1 :]] == [
        f"{plan.root.bundle}/rootfs",
        *(word.format(state=plan.state_dir, folder=tmp_path) for word in expected),
    ]
    assert ("--map-root-user" in words) == (uid != 0)


def test_what_a_root_may_grow_by(tmp_path):
    limits = Limits(storage=1 << 20)
    plan = plan_in(tmp_path, limits=limits)
    words = Runc(Path("/bin/runc"))._stage(plan, plan.root, None)
    assert words[words.index("lazyfs-stage") + 3] == "1048576"
    on_disk = plan_in(tmp_path, limits=limits, overlay=f"root:dir={tmp_path}/disk")
    with pytest.raises(Unsupported, match="storage cannot be limited"):
        Runc(Path("/bin/runc"))._stage(on_disk, on_disk.root, None)


def test_lent_ids_are_asked_for_where_the_config_maps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(staged.os, "geteuid", lambda: 1000)
    plan = plan_in(tmp_path)
    assert "--map-auto" not in Runc(Path("/bin/runc"))._stage(plan, plan.root, None)
    spec = load_bundle(plan.root.bundle)
    own = {"containerID": 0, "hostID": 1000, "size": 1}
    spec["linux"]["uidMappings"] = [own, {"containerID": 1, "hostID": 100000, "size": 65536}]
    write_bundle(plan.root.bundle, spec)
    assert "--map-auto" in Runc(Path("/bin/runc"))._stage(plan, plan.root, None)
