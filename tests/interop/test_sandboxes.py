"""Sandboxes of gVisor on real mounts, by the commands that users type, on machines of their own.

Two registries' worth of trouble are built in: the tag moves to other content after the first run,
and whoever asks for it during a checkpoint or a restore is told of.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.sandbox.runtimes.programs import processes_with
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    folder_for_all,
    force_unmount,
    is_mounted,
    needs_fuse,
    needs_root,
    run,
    wait_until,
)
from tests.support.registries.faults import status
from tests.support.registries.registry import FakeRegistry
from tests.support.sandboxes.runscs import (
    COUNTER,
    NEW,
    SUITES,
    make_busybox,
    need_runsc,
    why_no_busybox,
)

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]

TAG_PATH = "/v2/busybox/manifests/latest"


class Node(Lazyfs):
    """A machine; what runs there is ended by ``close``."""

    def __init__(self, folder: Path, runsc: Path, **options) -> None:
        folder.mkdir()
        super().__init__(folder, **options)
        self.runsc = runsc

    def do(self, *words: object, **options) -> str:
        """Run a command that must work; return what it printed."""
        done = self(*words, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def refuse(self, code: int, *words: object) -> dict:
        """Run a command that must end with *code*; return its error."""
        done = self(*words, "--json")
        assert done.returncode == code, (done.returncode, done.stderr)
        return json.loads(done.stderr.strip().splitlines()[-1])

    def sandbox(self, sandbox_id: str) -> Path:
        return self.folder / "state" / "sandboxes" / sandbox_id

    def lines(self, sandbox_id: str) -> list[str]:
        """Return what the counter has said so far."""
        path = self.sandbox(sandbox_id) / "logs" / "counter.log"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def wait_line(self, sandbox_id: str, more: int = 2) -> list[str]:
        """Wait until the counter has said something more; return all."""
        before = len(self.lines(sandbox_id))
        wait_until(lambda: len(self.lines(sandbox_id)) >= before + more)
        return self.lines(sandbox_id)

    def check_gone(self, sandbox_id: str) -> None:
        """Assert that no process, mount or file of a sandbox is left."""
        folder = self.sandbox(sandbox_id)
        assert not folder.exists()
        assert not list(processes_with(f"--root={folder / 'runtime'}"))
        assert not is_mounted(folder / "bundles" / "counter" / "rootfs")

    def close(self) -> None:
        folders = list(self.folder.glob("state/sandboxes/*"))
        if folders:
            self("delete", "--force", *(folder.name for folder in folders), timeout=90)
        for folder in folders:
            for rootfs in folder.glob("bundles/*/rootfs"):
                force_unmount(rootfs)


def last(lines: list[str]) -> int:
    return int(lines[-1].split()[0])


class World:
    """A registry, a store, and nodes."""

    def __init__(self, folder: Path, registry: FakeRegistry, runsc: Path) -> None:
        self.folder = folder
        self.registry = registry
        self.runsc = runsc
        self.nodes: list[Node] = []
        self.store = folder / "store"
        self.tag = f"{registry.host}/busybox:latest"
        self.template = folder / "counter.json"
        self.write_template(self.tag)

    def write_template(self, image: str, command: str = COUNTER) -> None:
        container = {"name": "counter", "image": image, "command": ["/bin/sh", "-c", command]}
        self.template.write_text(json.dumps({"name": "counter", "containers": [container]}))

    def node(self, **options) -> Node:
        made = Node(self.folder / f"node{len(self.nodes)}", self.runsc, **options)
        self.nodes.append(made)
        return made

    def forbid_tag(self) -> None:
        """Answer whoever asks for the tag with an error; ``tag_requests`` counts them."""
        self.registry.faults.add(status(500), path=TAG_PATH, times=None)

    def tag_requests(self) -> int:
        return sum(1 for each in self.registry.requests if each.path == TAG_PATH)

    def saved(self, node: Node, sandbox_id: str = "c1", *words: object) -> list[str]:
        """Run the counter, let it count, save it as @latest; return its lines."""
        node.do("run", self.template, "--id", sandbox_id, "--runsc", node.runsc)
        node.wait_line(sandbox_id)
        node.do("checkpoint", sandbox_id, "--to", self.store, "--name", "latest", *words)
        return node.lines(sandbox_id)

    def restore(self, node: Node, sandbox_id: str, *words: object, name: str = "@latest") -> str:
        where = f"{self.store}{name}"
        return node.do("restore", where, "--id", sandbox_id, "--runsc", node.runsc, *words)


def make_world(folder: Path, suite: str) -> Iterator[World]:
    runsc = need_runsc(suite)
    if reason := why_no_busybox():
        pytest.skip(reason)
    make_busybox(folder / "layout", base="base old")
    with FakeRegistry(folder / "layout") as registry:
        world = World(folder, registry, runsc)
        try:
            yield world
        finally:
            for node in world.nodes:
                node.close()


# Short names: where a path is too long for a socket, gVisor puts it where all sandboxes do.


@pytest.fixture(params=SUITES)
def world(request) -> Iterator[World]:
    with folder_for_all() as folder:
        yield from make_world(folder, request.param)


@pytest.fixture
def new_world() -> Iterator[World]:
    with folder_for_all() as folder:
        yield from make_world(folder, NEW)


def test_a_counter_goes_on_elsewhere_whatever_its_tag_means_now(world: World) -> None:
    here, there = world.node(), world.node()
    # Given a counter that was checkpointed, whose mount is gone,
    lines = world.saved(here)
    assert all(line.endswith("base old") for line in lines)
    assert not is_mounted(here.sandbox("c1") / "bundles" / "counter" / "rootfs")
    assert world.tag_requests() == 1
    before = json.loads(here.do("snapshot", "show", f"{world.store}@latest", "--json"))
    here.do("snapshot", "verify", f"{world.store}@latest", "--deep")
    # and whose tag has moved to other content,
    make_busybox(world.folder / "layout", base="base new")
    # when it is restored on another machine, which asks about the tag only as it is told to,
    said = json.loads(world.restore(there, "r1", "--check-drift", "--json"))
    # then it goes on counting, on the old content; the drift is told.
    after = there.wait_line("r1")
    assert int(after[0].split()[0]) == last(lines) + 1
    assert all(line.endswith("base old") for line in after)
    (image,) = said["images"]
    assert image["originalRef"] == world.tag
    assert image["tagNow"] not in (None, image["manifestDigest"])
    assert image["manifestDigest"] in json.dumps(before)
    # Given the tag cannot be asked for any more, a second and a third generation go on as well.
    world.forbid_tag()
    asked = world.tag_requests()
    there.do("checkpoint", "r1", "--to", world.store, "--name", "latest")
    world.restore(here, "r2")
    here.wait_line("r2")
    third = json.loads(
        here.do("checkpoint", "r2", "--to", world.store, "--name", "latest", "--json")
    )
    assert third["generation"] == 3
    assert third["images"][0]["originalRef"] == world.tag
    world.restore(there, "r3")
    lines = there.wait_line("r3")
    assert lines[-1].endswith("base old")
    assert int(lines[0].split()[0]) == last(here.lines("r2")) + 1
    assert world.tag_requests() == asked


def test_a_pin_of_an_index_stays_one(new_world: World) -> None:
    """R9, with mounts by the manifest's digest, which state no index."""
    here, there = new_world.node(), new_world.node()
    make_busybox(new_world.folder / "layout", base="base old", index=True)
    index = json.loads(here.do("inspect", new_world.tag, "--json"))["indexDigest"]
    pin = f"{new_world.registry.host}/busybox@{index}"
    new_world.write_template(pin)
    # Given a sandbox that was run by an index's digest, in three generations, of which the last
    # has only the mount to say what it is,
    new_world.saved(here)
    new_world.restore(there, "r1")
    there.wait_line("r1")
    there.do("checkpoint", "r1", "--to", new_world.store, "--name", "latest")
    new_world.restore(here, "r2", "--verify")
    here.wait_line("r2")
    (here.sandbox("r2") / "base-record.json").unlink()
    here.do("checkpoint", "r2", "--to", new_world.store, "--name", "latest", "--adopt")
    # then all of them say so.
    paths = list(new_world.store.glob("snapshots/*/snapshot-manifest.json"))
    images = [json.loads(path.read_bytes())["images"][0] for path in paths]
    said = [(image["originalRef"], image["indexDigest"], image["pinned"]) for image in images]
    assert said == [(pin, index, True)] * 3
    assert {image["manifestDigest"] for image in images} != {index}


def test_a_checkpoint_needs_no_network(new_world: World) -> None:
    here = new_world.node()
    here.do("run", new_world.template, "--id", "c1", "--runsc", here.runsc)
    here.wait_line("c1")
    # Given no network at all, when the sandbox is checkpointed, then it works.
    command = here.command("checkpoint", "c1", "--to", new_world.store, "--name", "latest")
    done = run("unshare", "-n", *command, env=here.variables, cwd=here.folder)
    assert done.returncode == 0, done.stderr
    assert new_world.tag_requests() == 1
    there = new_world.node()
    new_world.restore(there, "r1")
    assert there.wait_line("r1")


def test_left_running(world: World) -> None:
    here, there = world.node(), world.node()
    here.do("run", world.template, "--id", "c1", "--runsc", here.runsc)
    here.wait_line("c1")
    # Given --leave-running, when the command returns, then the counter goes on,
    here.do("checkpoint", "c1", "--to", world.store, "--name", "latest", "--leave-running")
    lines = here.wait_line("c1")
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == list(range(1, len(lines) + 1))
    # and so does its copy.
    world.restore(there, "r1")
    assert int(there.wait_line("r1")[0].split()[0]) <= last(lines) + 1


def test_many_from_one_snapshot(new_world: World) -> None:
    here, there = new_world.node(), new_world.node()
    # Twenty that count all the time would leave nothing for anybody else.
    new_world.write_template(new_world.tag, COUNTER.replace("sleep 0.2", "sleep 4"))
    built = json.loads(
        here.do(
            "golden", "build", new_world.template, "--to", new_world.store, "--warm", "0.3",
            "--runsc", here.runsc, "--json",
        )
    )  # fmt: skip
    assert json.loads(here.do("golden", "status", "counter", "--json"))["state"] == "Ready"
    # Given one snapshot, when 20 sandboxes are made of it, then all of them run.
    new_world.forbid_tag()
    document = json.loads(
        there.do(
            "golden", "clone", f"{new_world.store}@golden-counter", "--count", 20, "--id", "n",
            "--runsc", there.runsc, "--json", timeout=120,
        )
    )  # fmt: skip
    assert document["failed"] == []
    assert {each["snapshot"] for each in document["sandboxes"]} == {built["id"]}
    names = {each["sandbox"] for each in document["sandboxes"]}
    assert names == {f"n-{number}" for number in range(1, 21)}
    for name in names:
        wait_until(lambda name=name: there.lines(name))
    firsts = {there.lines(name)[0] for name in names}
    assert len(firsts) == 1  # all went on from the same number


def test_a_damaged_page_file_is_refused(new_world: World) -> None:
    here, there = new_world.node(), new_world.node()
    new_world.saved(here)
    (path,) = new_world.store.glob("snapshots/*/pages.img.zstd")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)
    where = f"{new_world.store}@latest"
    error = there.refuse(41, "restore", where, "--id", "r1", "--runsc", there.runsc)
    assert error["code"] == "E_FILE_CORRUPT"
    there.check_gone("r1")
    assert here("snapshot", "verify", where).returncode == 41


def test_a_digest_that_vanished_is_told_with_all_sources(new_world: World) -> None:
    here, there = new_world.node(), new_world.node()
    new_world.saved(here)
    asked = new_world.tag_requests()
    # Given a registry that has the tag, at another image, and the digest no more,
    shutil.rmtree(new_world.folder / "layout")
    make_busybox(new_world.folder / "layout", base="base new")
    # when it is restored where nothing of it is, then exit 20, and the tag was not asked for;
    where = f"{new_world.store}@latest"
    error = there.refuse(20, "restore", where, "--id", "r1", "--runsc", there.runsc)
    assert error["code"] == "E_BASE_UNAVAILABLE"
    assert error["details"]["sources"][0]["source"] == "cache"
    assert new_world.tag_requests() == asked
    there.check_gone("r1")
    # what the options would do is said without doing it.
    done = there("restore", where, "--dry-run", "--json", "--runsc", there.runsc)
    assert json.loads(done.stdout)["fileSize"] > 0


def test_an_embedded_base_needs_no_registry(new_world: World) -> None:
    here, there = new_world.node(), new_world.node()
    new_world.saved(here, "c1", "--embed-base")
    new_world.registry.close()
    new_world.restore(there, "r1")
    assert there.wait_line("r1")[-1].endswith("base old")
    # and its next snapshot is not embedded by itself
    made = json.loads(there.do("checkpoint", "r1", "--to", new_world.store, "--json"))
    shown = json.loads(here.do("snapshot", "show", f"{new_world.store}/{made['id']}", "--json"))
    assert '"embedded": true' not in json.dumps(shown)


def test_another_image_in_the_mounts_place(new_world: World) -> None:
    here, there = new_world.node(), new_world.node()
    new_world.saved(here)
    make_busybox(new_world.folder / "layout", base="base new")
    # Given a manifest, changed with its pointer, that names one image by another one's layers,
    (path,) = new_world.store.glob("snapshots/*/snapshot-manifest.json")
    document = json.loads(path.read_bytes())
    document["images"][0]["layers"][0]["diffId"] = "sha256:" + "5" * 64
    path.write_text(json.dumps(document))
    # when what is mounted is compared, then exit 22 and the runtime was not called.
    where = f"{new_world.store}/{path.parent.name}"
    error = there.refuse(22, "restore", where, "--id", "r1", "--runsc", there.runsc)
    assert error["code"] == "E_BASE_DRIFT"
    there.check_gone("r1")


def test_what_was_read_first_comes_first_elsewhere(new_world: World) -> None:
    """The snapshot has the mount's profile, recorded while it was live."""
    here, there = new_world.node(), new_world.node()
    new_world.saved(here)
    new_world.restore(there, "r1")
    (path,) = new_world.store.glob("snapshots/*/snapshot-manifest.json")
    document = json.loads(path.read_bytes())
    digest = document["images"][0]["manifestDigest"]
    assert list(document["extensions"]["profiles"]) == [digest]
    shown = json.loads(there.do("profile", "show", digest, "--json"))
    assert any("busybox" in (file["path"] or "") for file in shown["files"]), shown


def test_a_checkpoint_that_was_broken_off_is_recovered(new_world: World) -> None:
    here, there = new_world.node(), new_world.node()
    here.do("run", new_world.template, "--id", "c1", "--runsc", here.runsc)
    here.wait_line("c1")
    # Given a store that takes files and no pointer, so that a checkpoint stays unfinished,
    new_world.store.mkdir(exist_ok=True)
    in_the_way = new_world.store / "pointers"
    in_the_way.touch()
    done = here("checkpoint", "c1", "--to", new_world.store, "--name", "latest")
    assert done.returncode == 42, done.stderr
    assert "COMMITTED" in here("status", "c1").stdout
    in_the_way.unlink()
    # when recover runs, then the snapshot can be found by its name.
    here.do("recover", "c1")
    where = f"{new_world.store}@latest"
    there.do("restore", where, "--id", "r1", "--runsc", there.runsc)
    assert there.wait_line("r1")


def test_a_server_that_died_is_told(new_world: World) -> None:
    here = new_world.node()
    here.do("run", new_world.template, "--id", "c1", "--runsc", here.runsc)
    here.wait_line("c1")
    here.kill_server()
    wait_until(lambda: here("attrs", here.sandbox("c1") / "bundles/counter/rootfs").returncode)
    error = here.refuse(23, "checkpoint", "c1", "--to", new_world.store)
    assert "--allow-dead-mount" in (error["hint"] or "")
    made = here.do("checkpoint", "c1", "--to", new_world.store, "--allow-dead-mount", "--json")
    assert json.loads(made)["images"][0]["source"] == "record"
