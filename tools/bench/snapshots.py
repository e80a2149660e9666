"""Compare checkpoints and restores with plain runsc on an unpacked directory, side by side.

    python -m tools.bench.snapshots                 64 MiB and 1 GiB, and a node that has nothing
    python -m tools.bench.snapshots --size 64 --runs 3 --no-node

Both sides make the same calls of one program, in turns.  Rows that begin with "lazyfs" are commands
on a node that has nothing, with the start of the interpreter; the rest is without it.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lazyfs.cli.mounts.serve import NEEDED
from lazyfs.cli.sandboxes.mounter import mounter
from lazyfs.documents.plans import SandboxPlan
from lazyfs.documents.template import Container, Template
from lazyfs.oci.platforms import platform_of_machine
from lazyfs.registry.config.access import AccessOptions
from lazyfs.sandbox import run
from lazyfs.sandbox.runtimes.runsc import Runsc
from lazyfs.sandbox.runtimes.runtime import Runtime
from lazyfs.sandbox.sandbox import Sandboxes
from lazyfs.service.bases import ImageBases
from lazyfs.service.mounts import NodeMounts
from lazyfs.snapshot import checkpoint, restore
from lazyfs.snapshot.recover import delete
from lazyfs.snapshot.review import Wanted
from lazyfs.snapshot.stores.objects import ObjectStore
from lazyfs.snapshot.stores.snapshots import Snapshots
from tests.support.sandboxes.runscs import NEW, lines_of, make_plan, runsc_path
from tools.bench.holder import make_holder
from tools.bench.processes import EmbeddedRegistry, RunningLink
from tools.bench.puller import pull
from tools.bench.sides import compile_lazyfs
from tools.mounted import ROOT

FOLDER = ROOT / ".bench"
SECONDS = 300.0
SAME = 1.15  # the bar of what both sides do
NODE = 0.3  # the bar of a node that has nothing
WIDTH = 52
SPAWN = multiprocessing.get_context("spawn")
PYTHON = (
    "/usr/bin/python3",
    "-c",
    "import json, http.client, email, time\nfor n in range(10**9): print(n, flush=True); "
    "time.sleep(.005)",
)

Samples = dict[str, list[float]]


def main() -> None:
    arguments = parse_arguments()
    program = arguments.runsc or runsc_path(NEW)
    if os.geteuid() != 0 or not program.exists():
        sys.exit(f"{program}: got no program, or no root, expected both (make setup-interop)")
    version, load = Runsc(program).probe().version, os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, Linux {os.uname().release}, {version}, load average {load:.1f}")
    compile_lazyfs()
    with scratch() as folder:
        for size in arguments.size:
            compare_sizes(folder / f"size-{size}", program, size, arguments.runs)
        if arguments.node:
            compare_nodes(folder / "node", program, arguments.runs)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.snapshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--size", action="append", type=int, metavar="MIB", help="may be repeated")
    add("--runs", type=int, default=3)
    add("--runsc", type=Path, metavar="PATH")
    add("--no-node", dest="node", action="store_false", help="leave out the node without anything")
    arguments = parser.parse_args()
    arguments.size = arguments.size or [64, 1024]
    return arguments


@contextmanager
def scratch() -> Iterator[Path]:
    folder = FOLDER / f"snapshots-{os.getpid()}"
    folder.mkdir(parents=True)
    for word in ("CACHE", "STATE", "RUNTIME"):
        os.environ[f"LAZYFS_{word}_DIR"] = str(folder / "lazyfs" / word.lower())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Side:
    """lazyfs' side: everything that its commands work with, in this process."""

    def __init__(self, folder: Path, runtime: Runsc) -> None:
        state = folder / "state"
        cache, records = folder / "cache", folder / "run"
        for word, path in (("CACHE", cache), ("STATE", state), ("RUNTIME", records)):
            os.environ[f"LAZYFS_{word}_DIR"] = str(path)
        self.store = folder / "store"
        self.sandboxes = Sandboxes(state / "sandboxes")
        self.runtime = runtime
        access = AccessOptions(environment=dict(os.environ))
        self.bases = ImageBases(cache, records, access, mounter(cache, access))
        self.mounts = NodeMounts(records, cache)
        self.opened: list[
            float
        ] = []  # when the store was asked for: at first, and when all is saved

    def choose(
        self, name: str = "", *, path: Path | None = None, digest: str | None = None
    ) -> Runtime:
        return self.runtime

    def objects(self, url: str, s3_endpoint: str | None) -> ObjectStore:
        self.opened.append(time.monotonic())
        return checkpoint.open_store(url, s3_endpoint)

    def start(self, template: Template, sandbox_id: str) -> SandboxPlan:
        tools = run.Tools(self.sandboxes, self.bases, self.choose, lambda line: None)
        started = run.run(run.Order(template, sandbox_id), tools)
        wait_lines(started.plan)
        return started.plan

    def checkpoint_tools(self) -> checkpoint.Tools:
        return checkpoint.Tools(self.mounts, self.choose, self.objects, lambda line: None)

    def checkpoint(self, sandbox_id: str, samples: Samples) -> str:
        begun = time.monotonic()
        self.opened.clear()
        sandbox = self.sandboxes.open(sandbox_id)
        made = checkpoint.checkpoint(
            sandbox, checkpoint.Order(str(self.store)), self.checkpoint_tools()
        )
        note(samples, "checkpoint: until it is saved", self.opened[1] - begun)
        note(samples, "checkpoint: until it is in the store", time.monotonic() - begun)
        return made.id

    def restore(self, order: restore.Order) -> SandboxPlan:
        system = os.uname()
        tools = restore.Tools(
            self.sandboxes,
            Snapshots(self.objects(str(self.store), None)),
            self.bases,
            self.choose,
            platform_of_machine(system.sysname, system.machine),
            lambda line: None,
        )
        return restore.restore(order, tools).sandbox.plan()

    def delete(self, sandbox_id: str) -> None:
        sandbox = self.sandboxes.open(sandbox_id)
        with sandbox.lock():
            delete(sandbox, self.checkpoint_tools(), force=True)


def note(samples: Samples, name: str, seconds: float) -> None:
    samples.setdefault(name, []).append(seconds)


def wait_lines(plan: SandboxPlan, more: int = 1) -> None:
    """Wait until the last container has said *more* lines than now."""
    name = plan.containers[-1].name
    wanted = len(lines_of(plan, name)) + more
    deadline = time.monotonic() + SECONDS
    while len(lines_of(plan, name)) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{plan.sandbox_id}: nothing was said")
        time.sleep(0.001)


def compare_sizes(folder: Path, program: Path, size: int, runs: int) -> None:
    """Save and restore a process that holds *size* MiB, on both sides in turns.

    The same work comes before each measurement, and who is first changes: memory that was let go of
    a moment ago is faster than what the machine has not touched for long.
    """
    rootfs = make_holder(folder)
    words = ("/bin/holder", str(size))
    container = Container(name="holder", image=f"oci:{folder}/layout", command=words)
    template = Template(name="holder", containers=(container,))
    plain: Samples = {}
    lazy: Samples = {}
    side = Side(folder / "lazy", Runsc(program))
    for number in range(runs):
        plans = [make_plan(folder / f"{word}-{number}", rootfs, {"holder": words}) for word in "cr"]
        image, files = folder / "image", folder / "files"
        made: list[str] = []

        def save(plan: SandboxPlan = plans[0], image: Path = image, made: list[str] = made) -> None:
            os.sync()
            save_plainly(plan, side.runtime, image, plain)

        def save_lazily(made: list[str] = made) -> None:
            os.sync()
            side.start(template, "c")
            made.append(side.checkpoint("c", lazy))
            side.delete("c")

        def restore_plainly(plan: SandboxPlan = plans[1], image: Path = image) -> None:
            note(plain, "restore", restored_plainly(plan, side.runtime, image))

        def restore_lazily(made: list[str] = made, files: Path = files) -> None:
            order = restore.Order(Wanted(made[0]), "h", files=files)
            note(lazy, "restore, files here", restored(side, order))

        try:
            in_turns(number, save, save_lazily)
            snapshots = Snapshots(checkpoint.open_store(str(side.store), None))
            snapshots.download(snapshots.load(made[0]), files)
            in_turns(number, restore_plainly, restore_lazily)
            order = restore.Order(Wanted(made[0]), "s")
            note(lazy, "restore, files in the store", restored(side, order))
            os.sync()
            seconds = answer_of_command(folder / "command", side.store, made[0], program, "holder")
            note(lazy, "lazyfs restore, files in the store", seconds)
        finally:
            for plan in plans:
                side.runtime.delete(plan)
                shutil.rmtree(plan.state_dir.parent)
            for place in (image, files, side.store):
                shutil.rmtree(place, ignore_errors=True)
    print(f"\na process that holds {size} MiB, {runs} runs; seconds: median (min-max)")
    title("lazyfs", "plain runsc, a directory")
    row("checkpoint: until it is saved", lazy, plain, "checkpoint", SAME)
    row("checkpoint: until it is in the store", lazy, plain, "checkpoint", None)
    row("restore, files here", lazy, plain, "restore", SAME)
    row("restore, files in the store", lazy, plain, "restore", None)
    row("lazyfs restore, files in the store", lazy, plain, "restore", None)


def in_turns(number: int, *works: Callable[[], None]) -> None:
    """Do *works* one after the other, beginning with another one each time."""
    first = number % len(works)
    for work in (*works[first:], *works[:first]):
        work()


def save_plainly(plan: SandboxPlan, runtime: Runsc, image: Path, samples: Samples) -> None:
    image.mkdir()
    runtime.start(plan)
    wait_lines(plan)
    begun = time.monotonic()
    runtime.checkpoint(plan, image)
    note(samples, "checkpoint", time.monotonic() - begun)
    runtime.delete(plan)


def restored_plainly(plan: SandboxPlan, runtime: Runsc, image: Path) -> float:
    """Return the seconds until a sandbox that runsc restores answers; remove it."""
    os.sync()  # what was written is not this one's to pay for
    with ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        restoring = pool.submit(runtime.restore, plan, image)
        seconds = wait_said(plan.log_dir / "holder.log", lambda: has_failed(restoring)) - begun
        restoring.result()()
    runtime.delete(plan)
    return seconds


def restored(side: Side, order: restore.Order) -> float:
    """Return the seconds until a sandbox that lazyfs restores answers; remove it.

    In a process of its own that has imported all and begins when told: a command has no threads
    from what it did before.
    """
    os.sync()
    ours, theirs = SPAWN.Pipe()
    arguments = (side.store.parent, side.runtime.path, order, theirs)
    process = SPAWN.Process(target=restore_when_told, args=arguments)
    process.start()
    theirs.close()
    try:
        ours.recv()
        ours.send(None)
        begun = ours.recv()
        log = side.sandboxes.root / order.sandbox_id / "logs" / "holder.log"
        seconds = wait_said(log, lambda: process.exitcode not in (None, 0)) - begun
    finally:
        process.join(SECONDS)
    if process.exitcode != 0:
        raise RuntimeError(f"restore: ended with {process.exitcode}")
    side.delete(order.sandbox_id)
    return float(seconds)


def restore_when_told(folder: Path, program: Path, order: restore.Order, told: Connection) -> None:
    side = Side(folder, Runsc(program))
    side.runtime.probe()
    for name in NEEDED:
        importlib.import_module(name)
    told.send(None)
    told.recv()
    told.send(time.monotonic())
    side.restore(order)


def has_failed(work: Future[Any]) -> bool:
    return work.done() and work.exception() is not None


def wait_said(log: Path, is_lost: Callable[[], bool]) -> float:
    """Wait until something was said; return when that was, by the monotonic clock."""
    deadline = time.monotonic() + SECONDS
    while not (log.exists() and log.stat().st_size):
        if is_lost() or time.monotonic() > deadline:
            raise TimeoutError(f"{log}: nothing was said")
        time.sleep(0.001)
    return time.monotonic()


def compare_nodes(folder: Path, program: Path, runs: int) -> None:
    """Restore Python on a node that has nothing, over a link, against pull, unpack and restore."""
    images = FOLDER / "images" / "python"
    if not images.exists():
        print("\nno image of python: make bench makes it")
        return
    folder.mkdir()
    runtime = Runsc(program)
    lazy: Samples = {}
    plain: Samples = {}
    with EmbeddedRegistry(images) as registry:
        side = Side(folder / "maker", runtime)
        with RunningLink(registry.address, rtt_ms=20, mbit=100) as link:
            reference = f"{link.address}/python"
            container = Container(name="main", image=f"{reference}:estargz", command=PYTHON)
            side.start(Template(name="python", containers=(container,)), "c")
            samples: Samples = {}
            snapshot_id = side.checkpoint("c", samples)
            side.delete("c")
            snapshots = Snapshots(checkpoint.open_store(str(side.store), None))
            loaded = snapshots.load(snapshot_id)
            for number in range(runs):
                os.sync()
                node = folder / f"node-{number}"
                note(lazy, "restore", answer_of_command(node, side.store, snapshot_id, program))
                os.sync()
                seconds = answer_plainly(
                    folder / f"plain-{number}", runtime, f"{reference}:plain",
                    lambda target: snapshots.download(loaded, target),
                )  # fmt: skip
                note(plain, "pull + unpack + restore", seconds)
    print(f"\nPython on a node that has nothing, 20 ms / 100 Mbit/s, {runs} runs")
    title("lazyfs restore", "pull + unpack + restore")
    row("restore", lazy, plain, "pull + unpack + restore", NODE, "until it answers")


def answer_of_command(
    folder: Path, store: Path, snapshot_id: str, program: Path, container: str = "main"
) -> float:
    """Return the seconds until a sandbox answers that the command restores where nothing is."""
    environment = {
        **os.environ,
        **{f"LAZYFS_{w}_DIR": str(folder / w.lower()) for w in ("CACHE", "STATE", "RUNTIME")},
    }
    words = [sys.executable, "-m", "lazyfs", "-q"]
    log = folder / "state" / "sandboxes" / "r" / "logs" / f"{container}.log"
    begun = time.monotonic()
    target = f"{store}/{snapshot_id}"
    with subprocess.Popen(
        [*words, "restore", target, "--id", "r", "--runsc", str(program), "--json"],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        while not (log.exists() and log.stat().st_size):
            if process.poll() not in (None, 0):
                raise RuntimeError(f"lazyfs restore: ended with {process.returncode}")
            time.sleep(0.001)
        seconds = time.monotonic() - begun
        assert process.stdout is not None
        json.loads(process.stdout.read())
    subprocess.run(
        [*words, "delete", "--force", "r"], env=environment, cwd=ROOT, check=True, timeout=SECONDS
    )
    shutil.rmtree(folder)
    return seconds


def answer_plainly(
    folder: Path, runtime: Runsc, reference: str, fetch: Callable[[Path], None]
) -> float:
    rootfs, image = folder / "rootfs", folder / "image"
    begun = time.monotonic()
    fetch_into = folder
    fetch_into.mkdir()
    pull(reference, rootfs)
    fetch(image)
    plan = make_plan(folder / "bundle", rootfs, {"main": PYTHON})
    try:
        wait = runtime.restore(plan, image)
        wait_lines(plan)
        seconds = time.monotonic() - begun
        wait()
    finally:
        runtime.delete(plan)
        shutil.rmtree(folder)
    return seconds


def title(ours: str, theirs: str) -> None:
    print("-" * (WIDTH + 62))
    print(f"{'':<{WIDTH}}{ours:<22}{theirs:<28}ratio (bar)")


def row(
    name: str, lazy: Samples, plain: Samples, against: str, bar: float | None, shown: str = ""
) -> None:
    ratio = statistics.median(lazy[name]) / statistics.median(plain[against])
    verdict = f" (<= {bar}: {'ok' if ratio <= bar else 'over'})" if bar is not None else ""
    print(
        f"{shown or name:<{WIDTH}}{spread(lazy[name]):<22}{spread(plain[against]):<28}"
        f"x{ratio:.2f}{verdict}",
        flush=True,
    )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
