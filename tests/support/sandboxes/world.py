"""Machines that share a store of snapshots: real journals, records and files, fake containers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazyfs.documents.journal import State
from lazyfs.documents.plans import SandboxPlan
from lazyfs.documents.template import Template
from lazyfs.documents.template_reading import template_of_document
from lazyfs.oci.platforms import Platform
from lazyfs.sandbox import run as runs
from lazyfs.sandbox.sandbox import Sandbox, Sandboxes
from lazyfs.snapshot import checkpoint as checkpoints
from lazyfs.snapshot import restore as restores
from lazyfs.snapshot.publish import Made
from lazyfs.snapshot.restore import Restored
from lazyfs.snapshot.review import Wanted
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.objects import ObjectStore
from lazyfs.snapshot.stores.snapshots import Snapshots
from tests.support.sandboxes.fake_bases import FakeBases, FakeImages, image
from tests.support.sandboxes.fake_runtime import FakeRuntime, chooser

TAG = "busybox:latest"
HOST = Platform("linux", "amd64")


def counter(image: str = TAG, **fields: Any) -> Template:
    """Return the template of one container, the counter."""
    container = {"name": "counter", "image": image, "command": ["/bin/counter"]} | fields
    return template_of_document({"name": "counter", "containers": [container]})


def pair(image: str = TAG, pause: str = "registry.test/pause:3") -> Template:
    """Return the template of a pause container and a counter."""
    document = {
        "name": "pair",
        "pauseImage": pause,
        "containers": [{"name": "counter", "image": image, "command": ["/bin/counter"]}],
    }
    return template_of_document(document)


@dataclass
class Machine:
    """One machine below *folder*; *images* and *store* are shared with others."""

    folder: Path
    images: FakeImages
    store: str
    runtimes: tuple[FakeRuntime, ...] = ()
    host: Platform = HOST
    said: list[str] = field(default_factory=list)
    objects: ObjectStore | None = None

    def __post_init__(self) -> None:
        self.runtimes = self.runtimes or (FakeRuntime(),)
        self.bases = FakeBases(self.images)
        self.sandboxes = Sandboxes(self.folder / "sandboxes")

    @property
    def runtime(self) -> FakeRuntime:
        return self.runtimes[0]

    @property
    def snapshots(self) -> Snapshots:
        return Snapshots(self._open(self.store, None))

    def _open(self, url: str, s3_endpoint: str | None) -> ObjectStore:
        return self.objects or checkpoints.open_store(url, s3_endpoint)

    # What commands do

    def run(
        self, sandbox_id: str = "c1", template: Template | None = None, **fields: Any
    ) -> Sandbox:
        """Start a sandbox in the background; *fields* of ``Order``."""
        order = runs.Order(template or counter(), sandbox_id, **fields)
        return runs.run(order, self.run_tools()).sandbox

    def run_tools(self) -> runs.Tools:
        choose = chooser(*self.runtimes)
        return runs.Tools(self.sandboxes, self.bases, choose, self.said.append)

    def checkpoint_tools(self) -> checkpoints.Tools:
        return checkpoints.Tools(self.bases, chooser(*self.runtimes), self._open, self.said.append)

    def checkpoint(self, sandbox_id: str = "c1", *, wait: float = 0.0, **fields: Any) -> Made:
        order = checkpoints.Order(**({"store": self.store} | fields))
        sandbox = self.sandboxes.open(sandbox_id)
        return checkpoints.checkpoint(sandbox, order, self.checkpoint_tools(), wait=wait)

    def resume(self, sandbox_id: str = "c1", **fields: Any) -> Made | None:
        """Do what ``checkpoint --continue`` and ``recover`` do with a checkpoint broken off."""
        sandbox = self.sandboxes.open(sandbox_id)
        with sandbox.lock():
            return checkpoints.resume(sandbox, self.checkpoint_tools(), **fields)

    def restore_tools(self) -> restores.Tools:
        return restores.Tools(
            sandboxes=self.sandboxes,
            snapshots=self.snapshots,
            bases=self.bases,
            choose=chooser(*self.runtimes),
            host=self.host,
            say=self.said.append,
        )

    def restore(self, name: str, sandbox_id: str = "r1", **fields: Any) -> Restored:
        """Restore; fields of ``Wanted`` and of ``Order`` alike."""
        own = {key: fields.pop(key) for key in list(fields) if key in Wanted.__slots__}
        order = restores.Order(Wanted(name, **own), sandbox_id, **fields)
        return restores.restore(order, self.restore_tools())

    # What tests ask

    def sandbox(self, sandbox_id: str = "c1") -> Sandbox:
        return self.sandboxes.open(sandbox_id)

    def plan(self, sandbox_id: str = "c1") -> SandboxPlan:
        return self.sandbox(sandbox_id).plan()

    def state(self, sandbox_id: str = "c1") -> State:
        journal = self.sandbox(sandbox_id).journal()
        assert journal is not None
        return journal.state

    def count(self, sandbox_id: str = "c1", times: int = 1) -> int:
        """Let the counter go on; return what it says."""
        return [self.runtime.count(self.plan(sandbox_id)) for _ in range(times)][-1]

    def base_seen(self, sandbox_id: str = "c1") -> str:
        """Return what the container read of its /etc/base."""
        return self.runtime.seen(self.plan(sandbox_id))["etc/base"]

    def stored(self) -> list[str]:
        """Return the keys of all objects in the store."""
        return [each.key for each in self.snapshots.objects.list("")]

    def check_gone(self, sandbox_id: str = "r1") -> None:
        """Assert that nothing of a sandbox is left: mounts, processes, files, lock."""
        folder = self.sandboxes.root / sandbox_id
        assert not folder.exists()
        assert not [path for path in self.bases.mounts if folder in path.parents]

    def check_tidy(self, sandbox_id: str = "c1") -> None:
        """Assert that a sandbox that runs or has ended has no files of a snapshot, nor a lock."""
        sandbox = self.sandbox(sandbox_id)
        for folder in (sandbox.folder / "checkpoints", sandbox.folder / "restores"):
            assert not folder.exists(), sorted(folder.rglob("*"))
        assert not sandbox.draft_path.exists()
        with sandbox.lock():
            pass


def machine(folder: Path, **fields: Any) -> Machine:
    """Return a machine whose registry has *TAG*, an old image."""
    images = FakeImages()
    images.tag(TAG, image("old"))
    images.tag("registry.test/pause:3", image("pause", command=("/pause",)))
    store = fields.pop("store", str(folder / "store"))
    (folder / "m1").mkdir()
    return Machine(folder / "m1", images, store, **fields)


def neighbour(of: Machine, **fields: Any) -> Machine:
    """Return another machine with the same registry and store, and nothing of its own."""
    number = sum(1 for _ in of.folder.parent.glob("m*")) + 1
    runtimes = fields.pop("runtimes", of.runtimes)
    folder = of.folder.parent / f"m{number}"
    folder.mkdir(parents=True)
    return Machine(folder, of.images, of.store, runtimes=runtimes, **fields)


def directory(machine: Machine) -> Path:
    """Return the folder of a machine's store, a directory."""
    objects = machine.snapshots.objects
    assert isinstance(objects, DirectoryStore)
    return objects.path
