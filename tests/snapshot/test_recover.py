"""What becomes of sandboxes whose commands were killed, and of those that are deleted."""

from pathlib import Path
from typing import Any

import pytest

from lazyfs.documents.errors import CheckpointLost, StoreFailed, Unsupported
from lazyfs.documents.journal import State
from lazyfs.sandbox.runtimes.runtime import ContainerState
from lazyfs.sandbox.sandbox import Sandbox
from lazyfs.snapshot import recover as recovering
from lazyfs.snapshot.recover import InUse, delete, recover
from tests.support.sandboxes.fake_bases import FakeImages, image
from tests.support.sandboxes.fake_runtime import Crash
from tests.support.sandboxes.world import TAG, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    images = FakeImages()
    images.tag(TAG, image("old"))
    images.tag("registry.test/pause:3", image("pause"))
    return Machine(tmp_path / "node", images, str(tmp_path / "store"))


def recovered(machine: Machine, sandbox: Sandbox) -> State | None:
    with sandbox.lock():
        return recover(sandbox, machine.checkpoint_tools())


def deleted(machine: Machine, sandbox: Sandbox, *, force: bool = False) -> None:
    with sandbox.lock():
        delete(sandbox, machine.checkpoint_tools(), force=force)


def state_of(sandbox: Sandbox) -> tuple[State, str | None]:
    journal = sandbox.journal()
    assert journal is not None
    return journal.state, None if journal.error is None else journal.error.code


def nothing(*words: Any, **named: Any) -> None:
    """Stand in for what a command that is killed does not do any more."""


def root_state(machine: Machine, sandbox: Sandbox) -> ContainerState:
    plan = sandbox.plan()
    return machine.runtime.states(plan)[plan.root.name]


CRASHES = ["probe", "start", "start:after"]


@pytest.mark.parametrize("where", CRASHES)
def test_a_start_that_was_killed_is_undone(
    machine: Machine, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D.5, STARTING: as the machine leaves it, in whichever moment."""
    monkeypatch.setattr("lazyfs.sandbox.run._Attempt.undo", nothing)
    machine.runtime.crash.add(where)
    with pytest.raises(Crash):
        machine.run()
    sandbox = machine.sandboxes.open("c1")
    assert state_of(sandbox)[0] is State.STARTING
    machine.runtime.crash.clear()
    for _ in range(2):  # it can be done again
        assert recovered(machine, sandbox) is State.FAILED
        assert state_of(sandbox) == (State.FAILED, "E_INTERRUPTED")
        assert machine.bases.mounts == {}
        assert not sandbox.record_path.exists()
        assert not sandbox.bundles.exists()
        assert not sandbox.state_dir.exists()
    deleted(machine, sandbox)
    assert machine.sandboxes.all() == []


def test_what_runs_is_left_alone(machine: Machine) -> None:
    sandbox = machine.run()
    before = sandbox.journal_path.read_bytes()
    assert recovered(machine, sandbox) is State.RUNNING
    assert sandbox.journal_path.read_bytes() == before
    assert root_state(machine, sandbox) is ContainerState.RUNNING
    assert len(machine.bases.mounts) == 1


def test_what_has_died_is_released(machine: Machine) -> None:
    """D.5, RUNNING: its processes are gone, as after a reboot."""
    sandbox = machine.run()
    machine.runtime.delete(sandbox.plan())
    assert recovered(machine, sandbox) is State.FAILED
    assert state_of(sandbox) == (State.FAILED, "E_RUNTIME_DIED")
    assert machine.bases.mounts == {}
    assert sandbox.record_path.exists()  # it tells still what it was
    assert "have ended" in machine.said[-1]


def test_a_restore_that_was_killed_is_undone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyfs.snapshot.restore._undo", nothing)
    machine.run()
    made = machine.checkpoint()
    machine.runtime.crash.add("restore:after")
    with pytest.raises(Crash):
        machine.restore(made.id)
    sandbox = machine.sandboxes.open("r1")
    assert state_of(sandbox)[0] is State.RESTORING
    machine.runtime.crash.clear()
    assert recovered(machine, sandbox) is State.FAILED
    assert machine.bases.mounts == {}
    assert not (sandbox.folder / "restores").exists()
    monkeypatch.undo()
    machine.restore(made.id, "r2")  # the snapshot is untouched


@pytest.mark.parametrize("where", ["checkpoint", "checkpoint:after"])
def test_a_checkpoint_is_gone_on_with_or_given_up(machine: Machine, where: str) -> None:
    """D.5, CHECKPOINTING: what had not been saved runs on; what is half saved is lost."""
    sandbox = machine.run()
    machine.runtime.crash.add(where)
    with pytest.raises(Crash):
        machine.checkpoint()
    machine.runtime.crash.clear()
    if root_state(machine, sandbox) is ContainerState.RUNNING:
        assert recovered(machine, sandbox) is State.RUNNING
        assert machine.checkpoint().manifest.snapshot.generation == 1
        return
    with pytest.raises(CheckpointLost):
        recovered(machine, sandbox)
    assert state_of(sandbox) == (State.FAILED, "E_CHECKPOINT_LOST")
    assert recovered(machine, sandbox) is State.FAILED  # and releases what is left
    assert machine.bases.mounts == {}


def test_an_upload_is_completed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from lazyfs.snapshot import publish

    sandbox = machine.run()

    def fail(*words: Any, **named: Any) -> None:
        raise StoreFailed("no store")

    monkeypatch.setattr("lazyfs.snapshot.checkpoint.publish", fail)
    with pytest.raises(StoreFailed):
        machine.checkpoint()
    monkeypatch.setattr("lazyfs.snapshot.checkpoint.publish", publish.publish)
    journal = sandbox.journal()
    assert journal is not None
    with pytest.raises(InUse, match="not complete"):
        deleted(machine, sandbox)
    assert recovered(machine, sandbox) is State.STOPPED
    assert machine.snapshots.ids() == [journal.snapshot_id]
    assert recovered(machine, sandbox) is State.STOPPED


def test_a_folder_without_a_journal_is_nothing(machine: Machine) -> None:
    sandbox = machine.sandboxes.create("c1")
    assert recovered(machine, sandbox) is None
    assert machine.sandboxes.all() == []


def test_what_runs_is_deleted_only_by_force(machine: Machine) -> None:
    sandbox = machine.run()
    with pytest.raises(InUse, match="is running") as refused:
        deleted(machine, sandbox)
    assert refused.value.hint == "lazyfs delete --force c1 kills it"
    plan = sandbox.plan()
    deleted(machine, sandbox, force=True)
    assert machine.bases.mounts == {}
    assert machine.sandboxes.all() == []
    assert set(machine.runtime.states(plan).values()) == {ContainerState.ABSENT}


def test_a_runtime_that_was_removed_needs_force(machine: Machine) -> None:
    sandbox = machine.run()

    def choose(*words: object, **named: object) -> None:
        raise Unsupported("runsc is not installed")

    tools = machine.checkpoint_tools()
    broken = recovering.Tools(tools.mounts, choose, tools.objects, tools.say)  # type: ignore[arg-type]
    with sandbox.lock(), pytest.raises(Unsupported):
        delete(sandbox, broken, force=False)
    with sandbox.lock():
        delete(sandbox, broken, force=True)
    assert machine.bases.mounts == {}
    assert machine.sandboxes.all() == []
