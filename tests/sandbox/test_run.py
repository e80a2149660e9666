"""Starting sandboxes, with real journals and files, and fake images and containers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lazyfs.documents.errors import (
    BaseDrift,
    Busy,
    NotReady,
    RuntimeFailed,
    TagUnresolvable,
    TemplateInvalid,
)
from lazyfs.documents.journal import State
from lazyfs.documents.record import load_record
from lazyfs.documents.template import SecretKey, Template
from lazyfs.documents.template_reading import template_of_document
from lazyfs.sandbox import run as runs
from lazyfs.sandbox.runtimes.runtime import ContainerState
from lazyfs.sandbox.sandbox import Sandboxes, SandboxExists
from lazyfs.sandbox.specs.spec import Rootless
from lazyfs.store.paths import Store
from lazyfs.store.pins import pinned_images
from tests.support.sandboxes.fake_bases import FakeBases, FakeImages, digest_of, image
from tests.support.sandboxes.fake_runtime import Crash, FakeRuntime, chooser
from tests.support.sandboxes.world import TAG, counter, pair

PAUSE = "registry.test/pause:3"


class Node:
    """One machine, with everything that ``run`` is given."""

    def __init__(self, folder: Path) -> None:
        self.images = FakeImages()
        self.a = self.images.tag(TAG, image("old"))
        self.images.tag(PAUSE, image("pause"))
        self.bases = FakeBases(self.images)
        self.runtime = FakeRuntime()
        self.sandboxes = Sandboxes(folder / "sandboxes")
        self.said: list[str] = []

    @property
    def tools(self) -> runs.Tools:
        return runs.Tools(self.sandboxes, self.bases, chooser(self.runtime), self.said.append)

    def run(
        self, template: Template | None = None, sandbox_id: str = "c1", **fields: Any
    ) -> runs.Started:
        return runs.run(runs.Order(template or counter(), sandbox_id, **fields), self.tools)

    def left(self) -> list[Path]:
        """Return what is there of any sandbox."""
        return sorted(self.sandboxes.root.glob("*")) if self.sandboxes.root.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_run_locks_what_the_tag_means(node: Node) -> None:
    """Scenario 11 and Q3: one request, told loudly; the mount is by what was resolved."""

    def move(call: str) -> None:
        if call == "mount":
            node.images.tag(TAG, image("new"))

    node.bases.on_call = move
    started = node.run()
    assert node.images.tag_requests() == ["tag docker.io/library/busybox:latest"]
    (made,) = started.images
    assert (made.original_ref, made.manifest_digest) == (TAG, node.a.manifest)
    assert node.said == [
        f"counter: {TAG} -> docker.io/library/busybox@{node.a.manifest} (linux/amd64), recorded "
        "for this sandbox and its snapshots"
    ]
    journal = started.sandbox.journal()
    assert journal is not None
    assert journal.state is State.RUNNING
    assert journal.generation == 1
    assert node.runtime.states(started.plan) == {"counter": ContainerState.RUNNING}
    record = load_record(started.sandbox.record_path)
    assert record is not None
    assert record.images[0].image == made
    assert record.images[0].mountpoint == str(started.sandbox.rootfs("counter"))


def test_the_record_is_there_before_a_process_is(node: Node) -> None:
    """R15: written after all mounts, before the start; an earlier one goes first."""
    found: dict[str, bool] = {}
    sandbox = node.sandboxes.create("c1")
    sandbox.record_path.write_text("of an earlier life")

    def look(call: str, plan: object) -> None:
        found[call] = load_record(sandbox.record_path) is not None

    def look_early(call: str) -> None:
        found[call] = sandbox.record_path.exists()

    node.runtime.on_call = look
    node.bases.on_call = look_early
    node.run()
    assert found["start"]
    assert not found["resolve"]
    assert not found["mount"]


def test_its_images_are_pinned_before_they_are_mounted(node: Node, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    found: list[dict[str, list[str]]] = []

    def look(call: str) -> None:
        if call == "mount":
            found.append(pinned_images(store))

    node.bases.on_call = look
    started = node.run(cache_dir=str(store.root))
    assert found == [{node.a.manifest: ["c1"]}]
    assert pinned_images(store) == found[0]
    started.sandbox.remove()
    assert list(store.pins.iterdir()) == []
    # Nothing is left of one that could not be started, and a store that fails is no reason.
    node.bases.fail["mount"] = NotReady("no")
    with pytest.raises(NotReady):
        node.run(sandbox_id="c2", cache_dir=str(store.root))
    assert list(store.pins.iterdir()) == []
    node.bases.fail.clear()
    node.run(sandbox_id="c3", cache_dir="/proc/nothing")
    assert "its images are not protected in the cache" in node.said[-1]


def test_two_containers_of_one_tag_are_one_image(node: Node) -> None:
    """Scenario 12."""
    document = {"name": "two", "pauseImage": TAG, "containers": [
        {"name": "a", "image": TAG, "command": ["x"]}, {"name": "b", "image": TAG}]}  # fmt: skip
    started = node.run(template_of_document(document))
    assert len(node.images.tag_requests()) == 1
    assert {each.manifest_digest for each in started.images} == {node.a.manifest}
    assert [each.name for each in started.plan.containers] == ["pause", "a", "b"]
    ids = [each.mount_id for each in load_record(started.sandbox.record_path).images]
    assert len(set(ids)) == 3


def test_an_index_pin_is_recorded_as_typed(node: Node) -> None:
    """Scenario 13."""
    many = image("many", index=digest_of("index"))
    node.images.tag("many:1", many)
    pinned = f"many@{many.index}"
    (made,) = node.run(counter(pinned)).images
    assert (made.original_ref, made.index_digest) == (pinned, many.index)
    assert made.pinned
    assert made.resolved_ref.endswith(many.manifest)
    assert "pinned for this" in node.said[0]


def test_never_and_unknown_mounts_nothing(node: Node) -> None:
    """Scenario 15."""
    with pytest.raises(TagUnresolvable):
        node.run(pull="never")
    assert "mount" not in node.bases.calls
    assert node.left() == []


def fail_bases(name: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        node.bases.fail[name] = RuntimeFailed(f"{name} fails")

    return spoil


def fail_runtime(name: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        node.runtime.fail[name] = RuntimeFailed(f"{name} fails")

    return spoil


STEPS = {
    "probe": fail_runtime("probe"),
    "resolve": fail_bases("resolve"),
    "mount": fail_bases("mount"),
    "identity": fail_bases("identity"),
    "start": fail_runtime("start"),
    "start:after": fail_runtime("start:after"),
    "states": fail_runtime("states"),
}


def assert_nothing_left(node: Node) -> None:
    assert node.bases.mounts == {}
    assert node.left() == []


def test_no_hint_leads_to_logs_that_are_gone(node: Node) -> None:
    logs = node.sandboxes.root / "c1" / "logs"
    error = RuntimeFailed("no such program", hint=f"all that it said is in {logs}")
    node.runtime.fail["start"] = error
    with pytest.raises(RuntimeFailed, match="no such program") as caught:
        node.run()
    assert not logs.exists()
    assert caught.value.hint is None


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_fails_leaves_nothing(node: Node, step: str) -> None:
    """Whatever fails: no process, mount, record or folder."""
    STEPS[step](node)
    with pytest.raises(RuntimeFailed, match=f"{step.partition(':')[0]}.* fails"):
        node.run(pair())
    assert_nothing_left(node)
    node.bases.fail.clear()
    node.runtime.fail.clear()
    assert node.run(pair()).sandbox.id == "c1"


@pytest.mark.parametrize(
    "where",
    ["build_specs", "write_bundle", "write_durably", "save_record", "wait_ready", "locked_line"],
)
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), Crash()])
def test_what_nobody_foresaw_leaves_nothing_either(
    node: Node, where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(runs, where, fail)
    with pytest.raises(type(error)):
        node.run(pair())
    assert_nothing_left(node)


def test_a_mount_of_another_image_is_found_out(node: Node) -> None:
    """R19: what is mounted is compared with what was asked for."""
    node.bases.swap[node.a.manifest] = image("other")
    with pytest.raises(BaseDrift, match="manifest of the mount"):
        node.run()
    assert [name for name, *_ in node.runtime.calls if name == "start"] == []
    assert_nothing_left(node)


def test_a_sandbox_that_was_there_stays_and_has_no_old_record(node: Node) -> None:
    """Scenario 17: no record of an earlier run is left where a later one failed."""
    first = node.run()
    with pytest.raises(SandboxExists, match="RUNNING"):
        node.run()
    journal = first.sandbox.journal()
    assert journal is not None
    node.runtime.delete(first.plan)
    node.bases.unmount(first.sandbox.rootfs("counter"))
    first.sandbox.fail(journal, RuntimeFailed("it died"))
    assert first.sandbox.record_path.exists()
    node.bases.fail["resolve"] = TagUnresolvable("no answer")
    with pytest.raises(TagUnresolvable):
        node.run()
    after = first.sandbox.journal()
    assert after is not None
    assert (after.state, after.error and after.error.code) == (State.FAILED, "E_TAG_UNRESOLVABLE")
    assert not first.sandbox.record_path.exists()
    assert not first.sandbox.bundles.exists()
    node.bases.fail.clear()
    assert node.run().sandbox.journal().state is State.RUNNING


def test_one_command_at_a_time(node: Node) -> None:
    sandbox = node.sandboxes.create("c1")
    with sandbox.lock(), pytest.raises(Busy):
        node.run()
    assert sandbox.folder.exists()


def test_a_container_that_ends_at_once_is_not_ready(node: Node, monkeypatch: Any) -> None:
    def start(plan: Any) -> None:
        plan.log_dir.mkdir(parents=True)
        (plan.log_dir / "counter.log").write_text("sh: no such thing\n")

    monkeypatch.setattr(node.runtime, "start", start)
    with pytest.raises(NotReady, match="its output ends with: sh: no such thing"):
        node.run()
    assert_nothing_left(node)
    with pytest.raises(NotReady):
        node.run(keep_failed=True)
    kept = node.sandboxes.open("c1")
    assert kept.journal().state is State.FAILED
    assert (kept.log_dir / "counter.log").exists()
    assert len(node.bases.mounts) == 1


def test_secrets_reach_the_container_and_no_other_file(node: Node) -> None:
    value = "hunter2-and-more"
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "api", "key": "token"}}}]
    template = counter(env=env)
    with pytest.raises(TemplateInvalid, match="TOKEN"):
        node.run(template)
    assert_nothing_left(node)
    started = node.run(template, secrets={SecretKey("api", "token"): value})
    config = started.plan.root.bundle / "config.json"
    assert f"TOKEN={value}" in config.read_text()
    assert config.stat().st_mode & 0o077 == 0
    others = [path for path in started.sandbox.folder.rglob("*") if path.is_file()]
    holding = [path for path in others if value in path.read_bytes().decode(errors="replace")]
    state = {path for path in holding if path.is_relative_to(started.sandbox.state_dir)}
    assert set(holding) - state == {config}
    assert all(value not in line for line in node.said)


def test_the_terminal_gets_a_sandbox_of_which_nothing_stays(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attached(plan: Any) -> int:
        journal = node.sandboxes.open("c1").journal()
        assert journal is not None
        assert journal.state is State.RUNNING
        assert len(node.bases.mounts) == 1
        with node.sandboxes.open("c1").lock():
            pass  # others may work on it
        return 7

    monkeypatch.setattr(node.runtime, "run_attached", attached)
    assert runs.run_attached(runs.Order(counter(), "c1"), node.tools) == 7
    assert_nothing_left(node)

    def interrupted(plan: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(node.runtime, "run_attached", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.run_attached(runs.Order(counter(), "c1"), node.tools)
    assert_nothing_left(node)


def test_what_is_said_comes_before_the_template(node: Node) -> None:
    template = counter()
    started = node.run(template, overlay="none", network="host", cache_dir="/c")
    journal = started.sandbox.journal()
    assert journal is not None
    assert (journal.overlay, journal.network, journal.cache_dir) == ("none", "host", "/c")
    assert (journal.template_name, journal.template_digest) == ("counter", template.digest)
    assert journal.runtime is not None
    assert journal.runtime.version == "fake-1.0"


def test_an_ordinary_user_is_said_to_be_one(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.runtime.name = "crun"
    tools = replace(node.tools, rootless=Rootless(1000, 1000))
    started = runs.run(runs.Order(counter(), "c1"), tools)
    assert '"user"' in (started.plan.root.bundle / "config.json").read_text()
