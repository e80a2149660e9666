"""Sandboxes and stores of snapshots: run, checkpoint, restore, upkeep.  Runtimes are fakes.

A sandbox is a counter.  What was saved is known: a restore that counts on from anything else has
restored something else.  The state folder and the store are two filesystems.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.digest import digest_of
from lazyfs.documents.plans import ContainerPlan, SandboxPlan
from lazyfs.errors import LazyfsError
from lazyfs.sandbox.runtimes.runtime import ContainerState
from lazyfs.snapshot import recover as recovering
from lazyfs.snapshot.stores.collect import collect
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.keys import POINTER_SUFFIX, POINTERS
from lazyfs.snapshot.stores.snapshots import Snapshots
from lazyfs.snapshot.stores.transfer import copy_snapshot
from tests.crash.cases import RIGHT, Case, Mark, Outcome, Place, Verdict, mark, promised
from tests.support.sandboxes import fake_runtime
from tests.support.sandboxes.fake_bases import FakeImages, image
from tests.support.sandboxes.fake_runtime import Crash, FakeRuntime
from tests.support.sandboxes.world import TAG, Machine

fake_runtime.PAGES_SIZE = 160_000  # sizes here are those of a counter, not of memory
FAR = 4e9  # a time at which everything is old
BASE = "old"
HALF = "20261119T000000Z-00000000"


@dataclass
class Booted(FakeRuntime):
    """A runtime whose containers end when the machine does: what it kept of them is not theirs."""

    boot: str = ""

    def _process(self, plan: SandboxPlan, container: ContainerPlan) -> dict[str, Any] | None:
        try:
            process = super()._process(plan, container)
        except ValueError:
            return None  # gVisor's own file is torn
        if process is not None and process.get("boot") != self.boot:
            process["state"] = ContainerState.STOPPED
        return process

    def _write(self, plan: SandboxPlan, container: ContainerPlan, process: Any) -> None:
        super()._write(plan, container, {**process, "boot": self.boot})


def store_of(place: Place) -> Path:
    """Return the folder of the store of snapshots."""
    return place.root / "shared" / "store"


def machine_of(place: Place, boot: str, *, folder: str = "state") -> Machine:
    """Return the machine whose disk this is, or another one with the same store."""
    images = FakeImages()
    images.tag(TAG, image(BASE))
    images.tag("registry.test/pause:3", image("pause"))
    runtimes = (Booted(boot=boot),)
    return Machine(place.root / "disk" / folder, images, str(store_of(place)), runtimes=runtimes)


# Workloads


def run_counter(place: Place) -> None:
    machine = machine_of(place, "before")
    machine.run("c1")
    mark("there c1")
    machine.count("c1", 3)


def _checkpoint(machine: Machine, sandbox_id: str = "c1", **fields: Any) -> str:
    """Checkpoint; say what was saved, and that it is."""
    made = machine.checkpoint(sandbox_id, **fields)
    mark(f"saved {made.id}")
    if made.pointer is not None:
        mark(f"named {made.pointer} {made.id}")
    return made.id


def _counted(machine: Machine, sandbox_id: str = "c1", times: int = 3) -> str:
    """Let the counter go on; return a snapshot's id that says how far it came."""
    return id_of(machine.count(sandbox_id, times))


def id_of(count: int) -> str:
    """Return the id of the snapshot of a counter that has come so far."""
    return f"20261120T000000Z-{count:08x}"


def checkpoint_once(place: Place) -> None:
    machine = machine_of(place, "before")
    machine.run("c1")
    _checkpoint(machine, snapshot_id=_counted(machine), pointer="work")
    mark("stopped c1")


def checkpoint_raw(place: Place) -> None:
    machine = machine_of(place, "before")
    machine.run("c1")
    _checkpoint(machine, snapshot_id=_counted(machine), compress="none")


def checkpoint_running(place: Place) -> None:
    machine = machine_of(place, "before")
    machine.run("c1")
    for _ in range(2):
        _checkpoint(machine, snapshot_id=_counted(machine), pointer="work", leave_running=True)


def restore_and_go_on(place: Place) -> None:
    machine = machine_of(place, "before")
    machine.restore("@work", "r1")
    mark("there r1")
    _checkpoint(machine, "r1", snapshot_id=_counted(machine, "r1"), pointer="work")


def stop_in_the_middle(place: Place) -> None:
    """Have a checkpoint whose command was killed once the runtime had saved all."""
    machine = machine_of(place, "before")
    machine.run("c1")
    snapshot_id = _counted(machine)
    machine.objects = _Gone(Path(machine.store))
    try:
        machine.checkpoint("c1", snapshot_id=snapshot_id, pointer="work")
    except Crash:
        machine.objects = None


class _Gone(DirectoryStore):
    def put_if_absent(self, key: str, data: bytes) -> bool:
        raise Crash(key)


def go_on(place: Place) -> None:
    machine = machine_of(place, "before")
    made = machine.resume("c1")
    assert made is not None
    mark(f"saved {made.id}")
    mark(f"named work {made.id}")


def copy_and_remove(place: Place) -> None:
    """``snapshot copy`` there and back, ``snapshot rm`` of a pointer and of what it named."""
    here = machine_of(place, "before").snapshots
    there = Snapshots(DirectoryStore(place.root / "elsewhere" / "mirror"))
    loaded = here.load("@work")
    copy_snapshot(loaded, here, there)
    mark(f"copied {loaded.id}")
    mark("removing work")
    here.remove_pointer("work")
    mark(f"removing {loaded.id}")
    here.remove(loaded.id)
    mark(f"removed {loaded.id}")
    copy_snapshot(there.load(loaded.id), there, here)
    mark(f"saved {loaded.id}")


def leave_garbage(place: Place) -> None:
    """Have a snapshot, half of another, and an image that nobody claims."""
    checkpoint_once(place)
    objects = machine_of(place, "before").snapshots
    half = place.outside / "half"
    half.write_bytes(b"half" * 3000)
    objects.objects.put_file(f"snapshots/{HALF}/pages.img", half)
    config = b"{}"
    manifest = json.dumps({"schemaVersion": 2, "config": _descriptor(config), "layers": []})
    objects.embed(
        *(HALF, manifest.encode(), "application/vnd.oci.image.manifest.v1+json"),
        {str(digest_of(config)): config},
    )
    (store_of(place) / ".tmp" / "left").write_bytes(b"left")


def _descriptor(data: bytes) -> dict[str, Any]:
    kind = "application/vnd.oci.image.config.v1+json"
    return {"mediaType": kind, "digest": str(digest_of(data)), "size": len(data)}


def collect_garbage(place: Place) -> None:
    objects = machine_of(place, "before").snapshots.objects
    collect(objects, now=FAR)
    mark("collected")


def delete_sandbox(place: Place) -> None:
    machine = machine_of(place, "before")
    sandbox = machine.sandbox("c1")
    mark("removing c1")
    with sandbox.lock():
        recovering.delete(sandbox, machine.checkpoint_tools(), force=True)
    machine.run("c1")
    mark("there again c1")


# Judging


class SnapshotCase(Case):
    """A workload over sandboxes and snapshots; *before* is what is there already."""

    def __init__(
        self,
        name: str,
        act: Callable[[Place], None],
        *,
        before: Callable[[Place], None] | None = None,
        has: Sequence[str] = (),
        names: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._act = act
        self._before = before
        self._has = has
        self._names = names

    def prepare(self, place: Place) -> None:
        if self._before is not None:
            self._before(place)

    def act(self, place: Place) -> None:
        self._act(place)

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        said = promised(marks, at)
        machine = machine_of(place, "after")
        refusals: list[str] = []
        steps: list[Callable[[], Verdict | None]] = [
            lambda: self._check_promises(place, said),
            lambda: check_snapshots(place, "seen"),
            lambda: check_sandboxes(place, machine, said, refusals),
            lambda: check_snapshots(place, "then"),
            lambda: check_second_use(machine),
        ]
        for step in steps:
            try:
                verdict = step()
            except LazyfsError as exc:
                return Verdict(Outcome.STUCK, f"{type(exc).__name__}: {exc.message}")
            if verdict is not None:
                return verdict
        return Verdict(Outcome.REFUSED, refusals[0]) if refusals else RIGHT

    def _check_promises(self, place: Place, said: Sequence[str]) -> Verdict | None:
        snapshots = Snapshots(DirectoryStore(store_of(place)))
        copies = Snapshots(DirectoryStore(place.root / "elsewhere" / "mirror"))
        has, names = set(self._has), set(self._names)
        copied, gone = set(), set()
        for text in said:
            word, _, rest = text.partition(" ")
            if word == "saved":
                has.add(rest)
                gone.discard(rest)
            elif word == "named":
                names.add(rest.split()[0])
            elif word == "copied":
                copied.add(rest)
            elif word == "removing":
                has.discard(rest)
                names.discard(rest)
            elif word == "removed":
                gone.add(rest)
        found = set(snapshots.ids())
        if missing := has - found:
            return Verdict(Outcome.LOST, f"snapshot {missing}")
        if missing := copied - set(copies.ids()):
            return Verdict(Outcome.LOST, f"copy {missing}")
        if missing := names - set(snapshots.pointers()):
            return Verdict(Outcome.LOST, f"pointer {missing}")
        return None


def check_snapshots(place: Place, prefix: str) -> Verdict | None:
    """Restore all snapshots that there are, on another machine, and each that is named."""
    for path in (store_of(place), place.root / "elsewhere" / "mirror"):
        objects = DirectoryStore(path)
        snapshots = Snapshots(objects)
        for stored in objects.list(POINTERS):
            name = stored.key.removeprefix(POINTERS).removesuffix(POINTER_SUFFIX)
            try:
                snapshots.load(f"@{name}")
            except LazyfsError as exc:
                return Verdict(Outcome.WRONG, f"pointer {name}: {exc.message}")
        for snapshot_id in snapshots.ids():
            machine = machine_of(place, "after", folder=f"{prefix}-{snapshot_id}")
            machine.store = str(path)
            try:
                machine.restore(snapshot_id, "check")
            except LazyfsError as exc:
                return Verdict(Outcome.WRONG, f"snapshot {snapshot_id}: {exc.message}")
            count, seen = machine.count("check") - 1, machine.base_seen("check")
            expected = int(snapshot_id.partition("-")[2], 16)
            if (count, seen) != (expected, BASE):
                return Verdict(Outcome.WRONG, f"snapshot {snapshot_id}: restored {count}, {seen}")
            shutil.rmtree(machine.folder)
    return None


def check_sandboxes(
    place: Place, machine: Machine, said: Sequence[str], refusals: list[str]
) -> Verdict | None:
    """Recover and remove all sandboxes, as their user would."""
    there = {text.split()[-1] for text in said if text.startswith("there ")}
    there -= {text.split()[-1] for text in said if text.startswith("removing ")}
    there |= {text.split()[-1] for text in said if text.startswith("there again ")}
    found = {sandbox.id for sandbox in machine.sandboxes.all()}
    if missing := there - found:
        return Verdict(Outcome.LOST, f"sandbox {missing}")
    for sandbox in machine.sandboxes.all():
        tools = machine.checkpoint_tools()
        try:
            with sandbox.lock():
                recovering.recover(sandbox, tools)
        except LazyfsError as exc:
            if not exc.message or "\n" in exc.message:
                return Verdict(Outcome.BROKE, f"no sentence: {exc.message!r}")
            refusals.append(exc.message)
        if not sandbox.folder.exists():
            continue
        with sandbox.lock():
            recovering.delete(sandbox, tools, force=True)
        if sandbox.folder.exists():
            return Verdict(Outcome.STUCK, f"{sandbox.id} stays")
    return None


def check_second_use(machine: Machine) -> Verdict | None:
    """Use ids and store again, and collect garbage."""
    snapshots = machine.snapshots
    collect(snapshots.objects, now=FAR)
    before = set(snapshots.ids())
    machine.run("c1")
    machine.count("c1", 2)
    machine.checkpoint("c1", snapshot_id=id_of(2), pointer="work")
    if set(snapshots.ids()) != before | {id_of(2)}:
        return Verdict(Outcome.LOST, f"{before} after a second use")
    machine.restore("@work", "again")
    if machine.count("again") != 3:
        return Verdict(Outcome.WRONG, "the second use")
    return None


SNAPSHOT_CASES: tuple[SnapshotCase, ...] = (
    SnapshotCase("run", run_counter),
    SnapshotCase("checkpoint", checkpoint_once),
    SnapshotCase("checkpoint, raw", checkpoint_raw),
    SnapshotCase("checkpoint, running", checkpoint_running),
    SnapshotCase(
        "restore", restore_and_go_on, before=checkpoint_once, has=[id_of(3)], names=["work"]
    ),
    SnapshotCase("go on", go_on, before=stop_in_the_middle),
    SnapshotCase(
        *("copy and remove", copy_and_remove),
        before=checkpoint_once,
        has=[id_of(3)],
        names=["work"],
    ),
    SnapshotCase("gc", collect_garbage, before=leave_garbage, has=[id_of(3)], names=["work"]),
    SnapshotCase("delete", delete_sandbox, before=checkpoint_once, has=[id_of(3)]),
)
