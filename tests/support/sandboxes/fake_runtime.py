"""A Runtime that runs nothing: a sandbox is a counter in files below its ``state_dir``.

It behaves as gVisor does where snapshots care: it ends with a checkpoint, refuses a used folder,
reads the root filesystem without comparing anything, and takes a snapshot of several containers as
one.  All it knows is on disk, so that another instance, in another process, goes on.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazyfs.documents.errors import RuntimeFailed, RuntimeMismatch, Unsupported
from lazyfs.documents.plans import ContainerPlan, RuntimeFacts, SandboxPlan
from lazyfs.sandbox.runtimes.runtime import ContainerState

ABILITIES = frozenset(
    {"checkpoint", "restore", "multi-restore", "overlay2", "compression", "detach", "rootless"}
)
MAGIC = b"fake checkpoint\n"
PAGES_SIZE = 6 << 20  # bytes of pages.img, most of them a hole
PAGES_END = b"the last page"


class Crash(BaseException):
    """As if the process were killed: nothing that catches errors catches it."""


@dataclass
class FakeRuntime:
    """Plays *name*, by default runsc.

    ``fail`` and ``crash`` name calls: "start", "checkpoint", …, or with ":after" for when the work
    is done and before the call returns.  A call fails with what ``fail`` has for it, or a
    RuntimeFailed.  Each failure happens ``times`` times.  ``calls`` has all calls, with the plan's
    sandbox and what else was given.  ``reads`` are the files of each rootfs that are read at a
    start and a restore, which fail where one is missing; what was read is in the counter's state.
    """

    name: str = "runsc"
    version: str = "fake-1.0"
    digest: str = "sha256:" + hashlib.sha256(b"fake runsc").hexdigest()
    platform: str = "systrap"
    abilities: frozenset[str] = ABILITIES
    cpu_features: tuple[str, ...] = ("avx", "sse4_2")
    one_file: bool = False  # as old ones do
    reads: tuple[str, ...] = ("etc/base",)
    fail: dict[str, Exception | None] = field(default_factory=dict)
    crash: set[str] = field(default_factory=set)
    times: int = 1
    dies: bool = False  # the sandbox ends in a checkpoint that fails
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    on_call: Callable[[str, SandboxPlan | None], None] | None = None
    _left: dict[str, int] = field(default_factory=dict)

    # Runtime

    def probe(self) -> RuntimeFacts:
        self._called("probe", None)
        return RuntimeFacts(
            name=self.name,
            path=Path("/fake") / self.name,
            version=self.version,
            binary_digest=self.digest,
            platform=self.platform,
            abilities=self.abilities,
            cpu_features=self.cpu_features,
        )

    def start(self, plan: SandboxPlan) -> None:
        self._called("start", plan)
        for container in plan.containers:
            if self._process(plan, container) is not None:
                raise RuntimeFailed(f"start: {container.container_id}: got one of that name")
            spec = self._spec(container)
            self._write(plan, container, {"count": 0, "spec": spec, **self._look(container)})
        self._called("start:after", plan)

    def run_attached(self, plan: SandboxPlan) -> int:
        self._called("run_attached", plan)
        for container in plan.containers:
            self._spec(container)
            self._look(container)
        self._called("run_attached:after", plan)
        return 0

    def checkpoint(self, plan: SandboxPlan, image_dir: Path) -> None:
        self._called("checkpoint", plan, image_dir=image_dir)
        if "checkpoint" not in self.abilities:
            raise Unsupported(f"{self.name}: got no checkpoint, expected it")
        if os.listdir(image_dir):
            raise RuntimeFailed(f"checkpoint: {image_dir}: file exists")
        saved = {}
        for container in plan.containers:
            process = self._process(plan, container)
            if process is None or process["state"] != ContainerState.RUNNING:
                raise RuntimeFailed(f"checkpoint: {container.container_id} does not run")
            saved[container.name] = process
        document = json.dumps({"version": self.version, "containers": saved}).encode()
        (image_dir / "checkpoint.img").write_bytes(MAGIC + document)
        if self.dies:
            self._stop(plan)
            raise RuntimeFailed("checkpoint: no space left on device")
        if not self.one_file:
            with (image_dir / "pages.img").open("wb") as file:
                file.write(hashlib.sha256(document).digest() * 4096)
                file.seek(PAGES_SIZE - len(PAGES_END))
                file.write(PAGES_END)
            (image_dir / "pages_meta.img").write_bytes(b"pages\n" * 300)
        self._called("checkpoint:middle", plan, image_dir=image_dir)
        self._stop(plan)
        self._called("checkpoint:after", plan, image_dir=image_dir)

    def restore(self, plan: SandboxPlan, image_dir: Path) -> Callable[[], None]:
        self._called("restore", plan, image_dir=image_dir)
        try:
            data = (image_dir / "checkpoint.img").read_bytes()
            document = json.loads(data.removeprefix(MAGIC))
        except (OSError, ValueError) as exc:
            raise RuntimeFailed("restore: mismatched segment") from exc
        if document["version"] != self.version:
            raise RuntimeFailed(f"restore: made by {document['version']}, this is {self.version}")
        if not self.one_file:
            with (image_dir / "pages.img").open("rb") as file:
                file.seek(-len(PAGES_END), os.SEEK_END)
                if file.read() != PAGES_END or file.tell() != PAGES_SIZE:
                    raise RuntimeFailed("restore: pages.img is cut")
            (image_dir / "pages_meta.img").read_bytes()
        saved = document["containers"]
        if set(saved) != {each.name for each in plan.containers}:
            raise RuntimeFailed(f"restore: got {sorted(saved)}, expected the same containers")
        for container in plan.containers:
            before = self._process(plan, container)
            if before is not None:
                raise RuntimeFailed(f"restore: {container.container_id} exists already")
            process = saved[container.name]
            # The memory is as it was; files are read anew, and nobody compares them.
            self._write(plan, container, process | self._look(container))
            self._spec(container)
        self._called("restore:after", plan, image_dir=image_dir)

        def wait() -> None:
            self._called("restore:wait", plan, image_dir=image_dir)
            (image_dir / "checkpoint.img").read_bytes()  # background paging: it is needed till now

        return wait

    def states(self, plan: SandboxPlan) -> dict[str, ContainerState]:
        self._called("states", plan)
        found = {}
        for container in plan.containers:
            process = self._process(plan, container)
            found[container.name] = (
                ContainerState.ABSENT if process is None else ContainerState(process["state"])
            )
        return found

    def wait(self, plan: SandboxPlan, seconds: float | None) -> int | None:
        self._called("wait", plan)
        process = self._process(plan, plan.containers[-1])
        if process is None:
            raise RuntimeFailed(f"wait: {plan.sandbox_id} is not known")
        return None if process["state"] == ContainerState.RUNNING else process.get("status", 0)

    def delete(self, plan: SandboxPlan) -> None:
        self._called("delete", plan)
        for container in plan.containers:
            self._path(plan, container).unlink(missing_ok=True)
        self._called("delete:after", plan)

    # What tests do with the sandbox

    def count(self, plan: SandboxPlan, name: str | None = None) -> int:
        """Let the counter of a container (the last one's) go on by one; return what it says."""
        container = self._named(plan, name)
        process = self._process(plan, container)
        assert process is not None, f"{container.name} does not exist"
        assert process["state"] == ContainerState.RUNNING, f"{container.name} does not run"
        process["count"] += 1
        self._write(plan, container, process)
        return process["count"]

    def seen(self, plan: SandboxPlan, name: str | None = None) -> dict[str, str]:
        """Return what a container (the last one) read of its rootfs: path → text."""
        process = self._process(plan, self._named(plan, name))
        assert process is not None
        return process["seen"]

    def exit(self, plan: SandboxPlan, status: int = 0) -> None:
        """Let all containers end by themselves."""
        self._stop(plan, status)

    def names(self) -> list[str]:
        """Return the names of all calls so far, in order; without probes and questions."""
        asking = ("probe", "states")
        return [name for name, _, _ in self.calls if name not in asking and ":" not in name]

    # Within

    def _called(self, call: str, plan: SandboxPlan | None, **arguments: Any) -> None:
        self.calls.append((call, "" if plan is None else plan.sandbox_id, arguments))
        if self.on_call is not None:
            self.on_call(call, plan)
        if call in self.crash:
            self.crash.discard(call)
            raise Crash(call)
        if call in self.fail:
            left = self._left.setdefault(call, self.times)
            if left > 0:
                self._left[call] = left - 1
                raise self.fail[call] or RuntimeFailed(f"{self.name} {call}: told to fail")

    def _look(self, container: ContainerPlan) -> dict[str, Any]:
        seen = {}
        for name in self.reads:
            path = container.bundle / "rootfs" / name
            try:
                seen[name] = path.read_text()
            except OSError as exc:
                raise RuntimeFailed(f"{self.name}: {path}: {exc.strerror}") from exc
        return {"seen": seen}

    @staticmethod
    def _spec(container: ContainerPlan) -> dict[str, Any]:
        path = container.bundle / "config.json"
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise RuntimeFailed(f"{path}: {exc}") from exc

    @staticmethod
    def _named(plan: SandboxPlan, name: str | None) -> ContainerPlan:
        if name is None:
            return plan.containers[-1]
        return next(each for each in plan.containers if each.name == name)

    @staticmethod
    def _path(plan: SandboxPlan, container: ContainerPlan) -> Path:
        return plan.state_dir / f"{container.container_id}.json"

    def _process(self, plan: SandboxPlan, container: ContainerPlan) -> dict[str, Any] | None:
        try:
            return json.loads(self._path(plan, container).read_bytes())
        except FileNotFoundError:
            return None

    def _write(
        self, plan: SandboxPlan, container: ContainerPlan, process: Mapping[str, Any]
    ) -> None:
        plan.state_dir.mkdir(parents=True, exist_ok=True)
        plan.log_dir.mkdir(parents=True, exist_ok=True)
        document = {"state": ContainerState.RUNNING, **process}
        self._path(plan, container).write_text(json.dumps(document))
        with (plan.log_dir / f"{container.name}.log").open("a") as file:
            file.write(f"{document['count']}\n")

    def _stop(self, plan: SandboxPlan, status: int = 0) -> None:
        for container in plan.containers:
            process = self._process(plan, container)
            if process is not None:
                process |= {"state": ContainerState.STOPPED, "status": status}
                self._path(plan, container).write_text(json.dumps(process))


def chooser(*runtimes: FakeRuntime) -> Callable[..., FakeRuntime]:
    """Return a Choose over fakes: by name, and by digest where one is asked for."""

    def choose(
        name: str = "", *, path: Path | None = None, digest: str | None = None
    ) -> FakeRuntime:
        found: Iterable[FakeRuntime] = [each for each in runtimes if name in ("", each.name)]
        if not found:
            raise Unsupported(f"got no {name}, expected it")
        if digest is None:
            return next(iter(found))
        for each in found:
            if each.digest == digest:
                return each
        raise RuntimeMismatch(f"{name}: got {[each.digest for each in found]}, expected {digest}")

    return choose
