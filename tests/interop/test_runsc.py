"""gVisor itself, two versions of it, on a lazily mounted image: run, checkpoint, restore, clone.

The first tests say what the gates are for: this program compares nothing of the root filesystem.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.documents.errors import RuntimeFailed, Unsupported
from lazyfs.documents.plans import SandboxPlan
from lazyfs.sandbox.runtimes.programs import processes_with
from lazyfs.sandbox.runtimes.runsc import Runsc
from lazyfs.sandbox.runtimes.runtime import ContainerState
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, needs_root, run, wait_until
from tests.support.sandboxes.runscs import (
    COUNTER,
    NEW,
    OLD,
    SUITES,
    lines_of,
    make_busybox,
    make_plan,
    need_runsc,
    why_no_busybox,
)

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]

COUNT = ("/bin/sh", "-c", COUNTER)
POD = {"pause": ("/bin/sleep", "100000"), "one": COUNT, "two": COUNT}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two mounts, ``first`` and ``second``, of images that differ in /etc/base."""
    if reason := why_no_busybox():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("runsc")
    lazyfs = Lazyfs(folder)
    mountpoints = {name: folder / name for name in ("first", "second")}
    try:
        for name, mountpoint in mountpoints.items():
            mountpoint.mkdir()
            reference = make_busybox(folder / f"{name}-layout", base=f"base {name}")
            lazyfs.mount("-o", "allow_other", reference, mountpoint)
        yield folder
    finally:
        for mountpoint in mountpoints.values():
            lazyfs("umount", mountpoint)
            force_unmount(mountpoint)


@pytest.fixture(params=SUITES)
def suite(request):
    need_runsc(request.param)
    return request.param


@pytest.fixture
def runsc(suite):
    return make_runsc(suite)


def make_runsc(suite: str) -> Runsc:
    return Runsc(need_runsc(suite), call_seconds=30, image_seconds=60)


@pytest.fixture
def sandbox(place, tmp_path):
    """Make plans; all of them are deleted in the end, by the newest runsc that is there."""
    made: list[tuple[Runsc, SandboxPlan]] = []

    def make(runsc, name, commands=None, *, base="first", **options):
        commands = {"main": COUNT} if commands is None else commands
        plan = make_plan(tmp_path / name, place / base, commands, **options)
        made.append((runsc, plan))
        return plan

    yield make
    for runsc, plan in made:
        runsc.delete(plan)
        assert set(runsc.states(plan).values()) == {ContainerState.ABSENT}
        assert list(processes_with(f"--root={plan.state_dir}")) == []
        assert list(plan.state_dir.glob("*_sandbox:*")) == []


def empty(path: Path) -> Path:
    path.mkdir()
    return path


def count(line: str) -> int:
    return int(line.split()[0])


def checkpointed(runsc, plan, image: Path) -> list[str]:
    """Start a sandbox, let it count, checkpoint and delete it; return its last words."""
    runsc.start(plan)
    name = plan.containers[-1].name
    wait_until(lambda: len(lines_of(plan, name)) >= 3)
    runsc.checkpoint(plan, empty(image))
    lines = lines_of(plan, name)
    runsc.delete(plan)
    return lines


def test_a_counter_goes_on_where_it_was(runsc, suite, sandbox, tmp_path):
    plan = sandbox(runsc, "first")
    assert runsc.states(plan) == {"main": ContainerState.ABSENT}
    runsc.start(plan)
    wait_until(lambda: len(lines_of(plan, "main")) >= 3)
    assert runsc.states(plan) == {"main": ContainerState.RUNNING}
    assert runsc.wait(plan, 0.1) is None

    image = empty(tmp_path / "image")
    runsc.checkpoint(plan, image)
    assert runsc.states(plan) == {"main": ContainerState.STOPPED}
    files = {"checkpoint.img"} | ({"pages.img", "pages_meta.img"} if suite == NEW else set())
    assert {path.name for path in image.iterdir()} == files
    last = count(lines_of(plan, "main")[-1])
    runsc.delete(plan)

    again = sandbox(runsc, "again")
    runsc.restore(again, image)()
    wait_until(lambda: lines_of(again, "main"))
    assert lines_of(again, "main")[0] == f"{last + 1} base first"
    assert runsc.states(again) == {"main": ContainerState.RUNNING}


def test_a_restored_sandbox_is_checkpointed_again(runsc, sandbox, tmp_path):
    last = count(checkpointed(runsc, sandbox(runsc, "g1"), tmp_path / "image1")[-1])
    second = sandbox(runsc, "g2")
    runsc.restore(second, tmp_path / "image1")()
    wait_until(lambda: len(lines_of(second, "main")) >= 2)
    runsc.checkpoint(second, empty(tmp_path / "image2"))
    later = count(lines_of(second, "main")[-1])
    assert later > last + 1
    third = sandbox(runsc, "g3")
    runsc.restore(third, tmp_path / "image2")()
    wait_until(lambda: lines_of(third, "main"))
    assert count(lines_of(third, "main")[0]) == later + 1


def test_it_compares_nothing_of_the_root_filesystem(runsc, sandbox, tmp_path):
    """Why the digests are compared before: old memory goes on with a new file, exit status 0."""
    checkpointed(runsc, sandbox(runsc, "old"), tmp_path / "image")
    other = sandbox(runsc, "other", base="second")
    runsc.restore(other, tmp_path / "image")()
    wait_until(lambda: len(lines_of(other, "main")) >= 2)
    assert lines_of(other, "main")[1].endswith(" base second")


def test_what_a_sandbox_writes_is_in_its_checkpoint(runsc, sandbox, tmp_path, place):
    script = (
        "echo mine >/etc/base; echo new >/new; while true; do cat /etc/base /new; sleep 0.1; done"
    )
    plan = sandbox(runsc, "writer", {"main": ("/bin/sh", "-c", script)})
    checkpointed(runsc, plan, tmp_path / "image")
    assert (place / "first/etc/base").read_text() == "base first\n"
    again = sandbox(runsc, "again", {"main": ("/bin/sh", "-c", script)})
    runsc.restore(again, tmp_path / "image")()
    wait_until(lambda: len(lines_of(again, "main")) >= 3)
    assert set(lines_of(again, "main")) == {"mine", "new"}


def test_many_from_one(runsc, sandbox, tmp_path):
    last = count(checkpointed(runsc, sandbox(runsc, "golden"), tmp_path / "image")[-1])
    clones = [sandbox(runsc, f"clone-{number}") for number in range(4)]
    with ThreadPoolExecutor(2) as pool:
        for wait in pool.map(lambda plan: runsc.restore(plan, tmp_path / "image"), clones):
            wait()
    for clone in clones:
        wait_until(lambda clone=clone: lines_of(clone, "main"))
        assert count(lines_of(clone, "main")[0]) == last + 1


def test_several_containers_go_on_together(sandbox, tmp_path):
    runsc = make_runsc(NEW)
    plan = sandbox(runsc, "pod", POD)
    last = count(checkpointed(runsc, plan, tmp_path / "image")[-1])
    again = sandbox(runsc, "again", POD)
    runsc.restore(again, tmp_path / "image")()
    for name in ("one", "two"):
        wait_until(lambda name=name: lines_of(again, name))
    assert count(lines_of(again, "two")[0]) == last + 1
    assert set(runsc.states(again).values()) == {ContainerState.RUNNING}


def test_an_old_one_refuses_to_checkpoint_what_it_cannot_restore(sandbox, tmp_path):
    runsc = make_runsc(OLD)
    plan = sandbox(runsc, "pod", POD)
    runsc.start(plan)
    wait_until(lambda: lines_of(plan, "two"))
    with pytest.raises(Unsupported, match="3 containers"):
        runsc.checkpoint(plan, empty(tmp_path / "image"))
    assert set(runsc.states(plan).values()) == {ContainerState.RUNNING}


def test_a_damaged_image_is_refused_and_leaves_nothing(runsc, sandbox, tmp_path):
    checkpointed(runsc, sandbox(runsc, "one"), tmp_path / "image")
    path = tmp_path / "image/checkpoint.img"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    plan = sandbox(runsc, "two")
    with pytest.raises(RuntimeFailed, match=r"^runsc restore: ") as error:
        runsc.restore(plan, tmp_path / "image")
    assert "goroutine" not in str(error.value)
    assert str(plan.log_dir) in error.value.hint
    runsc.delete(plan)
    assert list(processes_with(f"--root={plan.state_dir}")) == []


def test_a_used_folder_is_refused(runsc, sandbox, tmp_path):
    plan = sandbox(runsc, "one")
    runsc.start(plan)
    with pytest.raises(RuntimeFailed, match="is not empty"):
        runsc.checkpoint(plan, tmp_path)
    assert runsc.states(plan) == {"main": ContainerState.RUNNING}


def test_a_name_that_runs_goes_on(runsc, sandbox):
    """The program itself would end the one that runs."""
    plan = sandbox(runsc, "one")
    runsc.start(plan)
    with pytest.raises(RuntimeFailed, match="already exists"):
        runsc.start(plan)
    assert runsc.states(plan) == {"main": ContainerState.RUNNING}


def test_a_program_that_is_missing(runsc, sandbox):
    plan = sandbox(runsc, "one", {"main": ("/bin/nope",)})
    with pytest.raises(RuntimeFailed, match="failed to load /bin/nope"):
        runsc.start(plan)
    assert runsc.states(plan) == {"main": ContainerState.ABSENT}
    with pytest.raises(RuntimeFailed, match="failed to load /bin/nope"):
        runsc.run_attached(plan)


def test_the_exit_status(runsc, sandbox):
    plan = sandbox(runsc, "one", {"main": ("/bin/sh", "-c", "sleep 0.3; exit 7")})
    runsc.start(plan)
    assert runsc.wait(plan, 30) == 7
    wait_until(lambda: runsc.states(plan) == {"main": ContainerState.STOPPED})
    with pytest.raises(RuntimeFailed, match="exit status is unavailable"):
        runsc.wait(plan, 30)
    attached = sandbox(runsc, "two", {"main": ("/bin/sh", "-c", "exit 128")})
    assert runsc.run_attached(attached) == 128


def test_a_sandbox_that_was_killed_is_stopped(runsc, sandbox):
    plan = sandbox(runsc, "one")
    runsc.start(plan)
    for pid, _ in list(processes_with(f"--root={plan.state_dir}")):
        os.kill(pid, 9)
    wait_until(lambda: runsc.states(plan) == {"main": ContainerState.STOPPED})


def test_a_checkpoint_without_room_keeps_the_sandbox_or_says_so(runsc, sandbox, tmp_path):
    plan = sandbox(runsc, "one")
    runsc.start(plan)
    wait_until(lambda: len(lines_of(plan, "main")) >= 3)
    small = empty(tmp_path / "small")
    assert run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small).returncode == 0
    try:
        with pytest.raises(RuntimeFailed, match=r"^runsc checkpoint: .*no space left"):
            runsc.checkpoint(plan, small)
        assert runsc.states(plan)["main"] in (ContainerState.RUNNING, ContainerState.STOPPED)
    finally:
        force_unmount(small)


def test_it_is_asked_what_it_can_do(runsc, suite):
    facts = runsc.probe()
    assert (facts.name, facts.platform) == ("runsc", {OLD: "ptrace", NEW: "systrap"}[suite])
    assert {"checkpoint", "restore", "overlay2", "leave-running"} <= facts.abilities
    newer = {"compression", "direct", "directfs", "multi-restore", "overlay-dir", "rootless"}
    assert facts.abilities & newer == (newer if suite == NEW else set())
    assert not {"background", "wait-restore"} & facts.abilities


def test_a_copy_is_the_same_program(suite, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copy(need_runsc(suite), copy)
    one, other = Runsc(need_runsc(suite)).probe(), Runsc(copy).probe()
    assert (one.binary_digest, other.path) == (other.binary_digest, copy)
