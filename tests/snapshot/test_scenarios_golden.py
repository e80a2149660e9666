"""What users rely on of golden snapshots and their clones, with fakes for images and runtime."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.documents.errors import (
    BaseUnavailable,
    ManifestMissing,
    RuntimeFailed,
    StoreFailed,
    TemplateInvalid,
)
from lazyfs.documents.journal import Failure, SandboxBroken
from lazyfs.documents.template import Template
from lazyfs.documents.template_reading import with_images
from lazyfs.sandbox.sandbox import Sandbox, SandboxMissing
from lazyfs.snapshot import golden
from lazyfs.snapshot.clone import clone
from lazyfs.snapshot.golden import Generation, Order, State, Status, build, generations
from lazyfs.snapshot.publish import Made
from lazyfs.snapshot.recover import delete
from lazyfs.snapshot.restore import Order as RestoreOrder
from lazyfs.snapshot.review import Wanted
from tests.support.sandboxes.fake_bases import image
from tests.support.sandboxes.fake_runtime import FakeRuntime
from tests.support.sandboxes.snapshots import FaultyStore
from tests.support.sandboxes.world import TAG, Machine, counter, machine, neighbour


class Builder:
    """Builds on a machine; ``slept`` are the pauses that were made."""

    def __init__(self, here: Machine) -> None:
        self.here = here
        self.slept: list[float] = []
        self.states: list[State] = []

    def build(self, template: Template | None = None, **fields: object) -> Made:
        order = Order(template or counter(), self.here.store, **fields)  # type: ignore[arg-type]
        tools = golden.Tools(
            start=self._start,
            remove=self._remove,
            checkpoint=self.here.checkpoint_tools(),
            folder=self.here.folder / "goldens",
            say=self.here.said.append,
            sleep=self.slept.append,
        )
        return build(order, tools)

    def _start(
        self, template: Template, sandbox_id: str, entered: Callable[[State], None]
    ) -> Sandbox:
        entered(State.BOOTING)
        self.states.append(self.status().state)
        return self.here.run(sandbox_id, template, pull="always")

    def _remove(self, sandbox_id: str) -> None:
        try:
            sandbox = self.here.sandbox(sandbox_id)
        except SandboxMissing:
            return
        with sandbox.lock():
            delete(sandbox, self.here.checkpoint_tools(), force=True)

    def status(self) -> Status:
        return golden.load_status(self.here.folder / "goldens", "counter")


def listed(here: Machine) -> list[Generation]:
    return generations(here.snapshots, "counter")


def test_a_new_golden_asks_anew_and_says_what_moved(tmp_path: Path) -> None:
    # Given a golden built from A and the tag now at B,
    here = machine(tmp_path)
    builder = Builder(here)
    first = builder.build()
    was = first.manifest.images[0].manifest_digest
    there = neighbour(here)
    there.restore("@golden-counter", "before")
    now = here.images.tag(TAG, image("new", layers_of=("base", "more")))
    here.said.clear()
    # when a new golden is built,
    second = builder.build()
    # then the output shows A → B and the new one uses B,
    assert any(was in line and now.manifest in line for line in here.said)
    assert any("layers: 0 kept, 1 removed, 2 added" in line for line in here.said)
    there.restore("@golden-counter", "after")
    assert there.base_seen("after") == "new"
    # and sandboxes of the old golden still restore with A.
    there.restore(first.id, "again")
    assert there.base_seen("again") == "old"
    assert there.count("before") == 1
    assert [(each.number, each.id, each.previous) for each in listed(here)] == [
        (1, first.id, None),
        (2, second.id, first.id),
    ]
    assert first.manifest.snapshot.role == "golden"


def test_a_locked_golden_uses_what_the_lock_says(tmp_path: Path) -> None:
    # Given a lock and a tag that moved since,
    here = machine(tmp_path)
    digest = here.images.tags["docker.io/library/busybox:latest"].manifest
    here.images.tag(TAG, image("new"))
    # when a golden is built, then the locked image is used, and no tag was asked for.
    locked = with_images(counter(), {"counter": f"{TAG}@{digest}"})
    made = Builder(here).build(locked)
    assert made.manifest.images[0].manifest_digest == digest
    assert here.images.tag_requests() == []


def test_a_golden_of_a_digest_that_is_gone_fails_for_good(tmp_path: Path) -> None:
    # Given a digest that does not exist,
    here = machine(tmp_path)
    builder = Builder(here)
    template = counter("busybox@sha256:" + "0" * 64)
    # when a golden is built,
    with pytest.raises(BaseUnavailable):
        builder.build(template)
    # then after the bounded attempts the state is Failed and nothing runs.
    status = builder.status()
    assert (status.state, status.attempts) == (State.FAILED, 5)
    assert status.error == Failure(code="E_BASE_UNAVAILABLE", message=status.error.message)
    assert builder.slept == [1.0, 2.0, 4.0, 8.0]  # growing pauses
    assert here.sandboxes.all() == []
    assert here.bases.mounts == {}
    assert here.stored() == []


def test_an_attempt_that_fails_is_followed_by_another(tmp_path: Path) -> None:
    here = machine(tmp_path, runtimes=(FakeRuntime(fail={"start": None}, times=2),))
    builder = Builder(here)
    made = builder.build(warm_seconds=3.0)
    assert builder.slept == [1.0, 2.0, 3.0]
    status = builder.status()
    assert (status.state, status.attempts, status.snapshot) == (State.READY, 3, made.id)
    assert status.error is None
    assert builder.states == [State.BOOTING] * 3
    assert here.sandboxes.all() == []
    assert here.bases.mounts == {}


def test_what_cannot_become_right_is_tried_once(tmp_path: Path) -> None:
    here = machine(tmp_path)
    builder = Builder(here)
    here.bases.fail["resolve"] = TemplateInvalid("containers[0].image: got nonsense")
    with pytest.raises(TemplateInvalid):
        builder.build()
    assert builder.slept == []
    assert builder.status().state is State.FAILED


def test_a_store_that_cannot_be_written_is_found_before_anything_is_started(
    tmp_path: Path,
) -> None:
    here = machine(tmp_path)
    here.objects = store = FaultyStore(tmp_path / "store")
    store.fail_put = {"probe"}
    builder = Builder(here)
    with pytest.raises(StoreFailed):
        builder.build()
    assert builder.slept == []
    assert here.runtime.names() == []


def test_a_failed_checkpoint_frees_the_sandbox(tmp_path: Path) -> None:
    here = machine(tmp_path, runtimes=(FakeRuntime(fail={"checkpoint": None}, times=99),))
    with pytest.raises(RuntimeFailed):
        Builder(here).build(attempts=2)
    assert here.sandboxes.all() == []
    assert here.bases.mounts == {}
    assert here.snapshots.ids() == []


def test_many_sandboxes_from_one_golden(tmp_path: Path) -> None:
    here = machine(tmp_path)
    Builder(here).build()
    there = neighbour(here)
    names = [f"n-{number}" for number in range(20)]
    started: list[str] = []
    order = RestoreOrder(Wanted("@golden-counter"), "n")
    failed = clone(
        order, names, there.restore_tools(), lambda each: started.append(each.sandbox.id)
    )
    assert failed == []
    assert sorted(started) == sorted(names)
    assert {there.count(name) for name in names} == {1}
    assert list((there.folder / "clones").iterdir()) == []
    for name in names:
        there.check_tidy(name)


def test_clones_that_cannot_be_had_leave_nothing(tmp_path: Path) -> None:
    here = machine(tmp_path)
    Builder(here).build()
    there = neighbour(here, runtimes=(FakeRuntime(fail={"restore": None}),))
    order = RestoreOrder(Wanted("@golden-counter"), "n")
    failed = clone(order, ["n-1", "n-2", "n-3"], there.restore_tools(), lambda each: None)
    assert len(failed) == 1
    there.check_gone(failed[0][0])
    with pytest.raises(ManifestMissing):
        clone(
            RestoreOrder(Wanted("@golden-other"), "n"),
            ["m-1"],
            there.restore_tools(),
            lambda each: None,
        )
    assert list((there.folder / "clones").iterdir()) == []
    there.check_gone("m-1")


def test_no_build_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(golden.NoGolden):
        golden.load_status(tmp_path, "counter")


def test_a_status_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "counter.json"
    path.write_text("{}")
    path.chmod(0o666)
    with pytest.raises(SandboxBroken, match="other users can write to it"):
        golden.load_status(tmp_path, "counter")
