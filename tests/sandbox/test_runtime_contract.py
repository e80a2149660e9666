"""What snapshots rely on: the fake keeps to it, and so do the real ones."""

import os
import shutil
from pathlib import Path

import pytest

from lazyfs.documents.errors import RuntimeFailed
from lazyfs.sandbox.runtimes.runsc import Runsc
from lazyfs.sandbox.runtimes.runtime import ContainerState
from tests.support.mounts.mounting import wait_until
from tests.support.sandboxes.fake_runtime import FakeRuntime
from tests.support.sandboxes.runscs import (
    BUSYBOX,
    COUNTER,
    NEW,
    OLD,
    lines_of,
    make_plan,
    need_runsc,
)

COMMANDS = {"main": ("/bin/sh", "-c", COUNTER)}


@pytest.fixture(
    params=[
        "fake",
        "fake, one file",
        pytest.param(OLD, marks=[pytest.mark.interop, pytest.mark.root]),
        pytest.param(NEW, marks=[pytest.mark.interop, pytest.mark.root]),
    ]
)
def runtime(request):
    if request.param.startswith("fake"):
        return FakeRuntime(one_file="one file" in request.param)
    return Runsc(need_runsc(request.param), call_seconds=30, image_seconds=60)


@pytest.fixture
def plan_of(runtime, tmp_path):
    """Make plans of sandboxes that count, each on a root filesystem of its own."""
    made = []

    def plan(name):
        made.append(make_plan(tmp_path / name, Path("rootfs"), COMMANDS))
        root = made[-1].root.bundle / "rootfs"
        for folder in ("bin", "etc", "dev", "proc", "sys"):
            (root / folder).mkdir()
        (root / "etc/base").write_text("base\n")
        if not isinstance(runtime, FakeRuntime):
            shutil.copy(BUSYBOX, root / "bin/busybox")
            for command in ("sh", "sleep"):
                (root / "bin" / command).symlink_to("busybox")
        return made[-1]

    yield plan
    for each in made:
        runtime.delete(each)


def count(runtime, plan) -> int:
    """Return the counter of a sandbox, which goes on by at least one."""
    if isinstance(runtime, FakeRuntime):
        return runtime.count(plan)
    before = len(lines_of(plan, "main"))
    wait_until(lambda: len(lines_of(plan, "main")) > before)
    return int(lines_of(plan, "main")[-1].split()[0])


def state(runtime, plan) -> ContainerState:
    return runtime.states(plan)["main"]


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_life_and_another(runtime, plan_of, tmp_path):
    plan, image = plan_of("one"), folder(tmp_path / "image")
    assert state(runtime, plan) == ContainerState.ABSENT
    runtime.start(plan)
    assert state(runtime, plan) == ContainerState.RUNNING
    reached = count(runtime, plan)
    runtime.checkpoint(plan, image)
    assert state(runtime, plan) == ContainerState.STOPPED
    names = {path.name for path in image.iterdir()}
    assert names in ({"checkpoint.img"}, {"checkpoint.img", "pages.img", "pages_meta.img"})
    assert all(path.is_file() and path.stat().st_size for path in image.iterdir())
    runtime.delete(plan)
    assert state(runtime, plan) == ContainerState.ABSENT

    for name in ("two", "three"):  # from one image, as often as wanted
        again = plan_of(name)
        runtime.restore(again, image)()
        assert state(runtime, again) == ContainerState.RUNNING
        assert count(runtime, again) > reached
    assert {path.name for path in image.iterdir()} == names


def test_the_same_name_again_after_it_was_deleted(runtime, plan_of, tmp_path):
    plan, image = plan_of("one"), folder(tmp_path / "image")
    runtime.start(plan)
    reached = count(runtime, plan)
    runtime.checkpoint(plan, image)
    runtime.delete(plan)
    runtime.restore(plan, image)()
    assert count(runtime, plan) > reached


def test_what_is_refused(runtime, plan_of, tmp_path):
    plan, image = plan_of("one"), folder(tmp_path / "image")
    with pytest.raises(RuntimeFailed):
        runtime.checkpoint(plan, image)  # it does not run
    assert not os.listdir(image)
    runtime.start(plan)
    with pytest.raises(RuntimeFailed):
        runtime.start(plan)
    with pytest.raises(RuntimeFailed):
        runtime.restore(plan, image)
    (image / "file").write_text("")
    with pytest.raises(RuntimeFailed):
        runtime.checkpoint(plan, image)
    assert state(runtime, plan) == ContainerState.RUNNING


def test_restoring_from_what_is_no_image(runtime, plan_of, tmp_path):
    image = folder(tmp_path / "image")
    with pytest.raises(RuntimeFailed):
        runtime.restore(plan_of("one"), image)
    (image / "checkpoint.img").write_text("no image")
    with pytest.raises(RuntimeFailed):
        runtime.restore(plan_of("two"), image)


def test_a_cut_image_is_refused(runtime, plan_of, tmp_path):
    plan, image = plan_of("one"), folder(tmp_path / "image")
    runtime.start(plan)
    runtime.checkpoint(plan, image)
    path = image / "checkpoint.img"
    os.truncate(path, path.stat().st_size // 2)
    again = plan_of("two")
    with pytest.raises(RuntimeFailed):
        runtime.restore(again, image)
    runtime.delete(again)
    assert state(runtime, again) == ContainerState.ABSENT


def test_a_file_that_is_missing_fails_but_another_content_does_not(runtime, plan_of, tmp_path):
    plan, image = plan_of("one"), folder(tmp_path / "image")
    runtime.start(plan)
    count(runtime, plan)
    runtime.checkpoint(plan, image)
    other = plan_of("two")
    (other.root.bundle / "rootfs/etc/base").write_text("moved\n")
    runtime.restore(other, image)()
    assert state(runtime, other) == ContainerState.RUNNING
    if isinstance(runtime, FakeRuntime):
        assert runtime.seen(other) == {"etc/base": "moved\n"}
    else:
        count(runtime, other)
        wait_until(lambda: lines_of(other, "main")[-1].endswith(" moved"))
    third = plan_of("three")
    shutil.rmtree(third.root.bundle / "rootfs")
    with pytest.raises(RuntimeFailed):
        runtime.restore(third, image)


def test_deleting_is_repeatable(runtime, plan_of):
    plan = plan_of("one")
    runtime.delete(plan)
    runtime.start(plan)
    runtime.delete(plan)
    runtime.delete(plan)
    assert state(runtime, plan) == ContainerState.ABSENT


def test_another_instance_goes_on(runtime, plan_of, tmp_path):
    """All that is known is on disk: the next command is another process."""
    plan, image = plan_of("one"), folder(tmp_path / "image")
    runtime.start(plan)
    if isinstance(runtime, FakeRuntime):
        other = FakeRuntime(one_file=runtime.one_file)
    else:
        other = Runsc(runtime.path)
    assert state(other, plan) == ContainerState.RUNNING
    assert other.wait(plan, 0.1) is None
    other.checkpoint(plan, image)
    assert state(runtime, plan) == ContainerState.STOPPED


def test_what_it_says_of_itself(runtime):
    facts = runtime.probe()
    assert facts.name == runtime.name == "runsc"
    assert facts.version
    assert facts.binary_digest.startswith("sha256:")
    assert facts.platform in ("systrap", "ptrace")
    assert {"checkpoint", "restore", "overlay2"} <= facts.abilities
