"""A sandbox by the real commands, in a real runtime; what is left of it is recovered by them."""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner

from lazyfs.cli.main import cli
from lazyfs.errors import LazyfsError
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.pointers import Pointer
from lazyfs.snapshot.stores.snapshots import Snapshots
from lazyfs.snapshot.stores.transfer import copy_snapshot
from tests.crash.cases import RIGHT, Case, Mark, Outcome, Place, Verdict, mark, promised
from tests.crash.store_cases import (
    contents,
    environment,
    image_of,
    judge,
    lazyfs,
)
from tests.support.formats.images import directory, estargz_layer, make_layout, symlink, tar_bytes
from tests.support.formats.images import file as file_item
from tests.support.mounts.mounting import force_unmount, wait_until, why_no_mounts
from tests.support.sandboxes.runscs import (
    BUSYBOX,
    COUNTER,
    NEW,
    make_busybox,
    runsc_path,
    why_no_busybox,
    why_no_runsc,
)

TEMPLATE = """
name: quiet
containers:
- name: quiet
  image: {image}
  command: [/bin/sleep, "1000"]
"""
RUNTIMES = ("bwrap", "crun")
BASE = "base one"
RESTORED = 20  # one state of so many is restored for real
SECOND_USE = 40  # one state of so many is used again with a real sandbox


def make_system(folder: Path) -> None:
    """Write an image that can be run, with the files that are compared, to a layout."""
    layers = []
    for number, files in enumerate(contents()):
        folders = {name.partition("/")[0] for name in files if "/" in name}
        items = []
        if number == 0:
            folders |= {"bin", "dev", "etc", "proc", "sys", "tmp"}
            items = [
                file_item("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
                *(symlink(f"bin/{name}", "busybox") for name in ("sh", "sleep")),
            ]
        items = [*(directory(each) for each in sorted(folders)), *items]
        items += [file_item(name, data) for name, data in files.items()]
        layers.append(estargz_layer(tar_bytes(items)))
    make_layout(folder, layers)


class RealRun(Case):
    """``lazyfs run``, and ``delete``, with one of the runtimes that are everywhere."""

    def __init__(self, runtime: str) -> None:
        self.name = f"run, {runtime}"
        self.runtime = runtime

    def prepare(self, place: Place) -> None:
        make_system(place.outside / "image")
        template = place.outside / "template.yaml"
        template.write_text(TEMPLATE.format(image=image_of(place)))

    def act(self, place: Place) -> None:
        self._run(place)

    def _run(self, place: Place) -> None:
        template = place.outside / "template.yaml"
        words = ("--id", "c1", "--runtime", self.runtime)
        try:
            lazyfs(place, "run", template, *words)
            mark("there")
        finally:
            _delete(place, "c1")
        mark("gone")

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        shutil.rmtree(place.outside / "run", ignore_errors=True)
        sandboxes = place.root / "disk" / "state" / "sandboxes"
        if "gone" in promised(marks, at) and not (sandboxes / "c1").exists():
            return judge(place, number)
        refusal = ""
        with patch.dict("os.environ", environment(place), clear=True):
            code, said = _command("recover")
            if "Traceback" in said or "E_BUG" in said:
                return Verdict(Outcome.BROKE, said[-500:])
            if code:
                refusal = said.strip()
            if (sandboxes / "c1").exists():
                code, said = _command("delete", "--force", "c1")
                if code or (sandboxes / "c1").exists():
                    return Verdict(Outcome.STUCK, said[-500:])
        verdict = judge(place, number)
        if verdict.outcome is Outcome.RIGHT and number % SECOND_USE == 0:
            self._run(place)
        if verdict.outcome is Outcome.RIGHT and refusal:
            return Verdict(Outcome.REFUSED, refusal)
        return verdict


def _command(*words: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it said."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        result = CliRunner().invoke(cli, words)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return result.exit_code, result.output + result.stderr


class RealSnapshot(Case):
    """A snapshot by gVisor is copied; what is left of the copy is restored by gVisor."""

    name = "copy, gVisor"

    def prepare(self, place: Place) -> None:
        image = make_busybox(place.outside / "image", base=BASE)
        container = {"name": "counter", "image": image, "command": ["/bin/sh", "-c", COUNTER]}
        template = place.outside / "counter.json"
        template.write_text(json.dumps({"name": "counter", "containers": [container]}))
        try:
            lazyfs(place, "run", template, "--id", "c1", "--runsc", runsc_path(NEW))
            wait_until(lambda: len(_lines(place, "c1")) > 2)
            lazyfs(place, "checkpoint", "c1", "--to", self._source(place), "--name", "latest")
            (place.outside / "count").write_text(_lines(place, "c1")[-1].split()[0])
        finally:
            _delete(place, "c1")

    def act(self, place: Place) -> None:
        source = Snapshots(DirectoryStore(self._source(place)))
        target = Snapshots(DirectoryStore(place.root / "shared" / "store"))
        loaded = source.load("@latest")
        copy_snapshot(loaded, source, target)
        mark(f"copied {loaded.id}")
        target.move_pointer("latest", Pointer(loaded.id, loaded.digest), None)
        mark("named")

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        said = promised(marks, at)
        source = Snapshots(DirectoryStore(self._source(place)))
        store = place.root / "shared" / "store"
        target = Snapshots(DirectoryStore(store))
        wanted = source.load("@latest")
        names = [*target.ids(), *(f"@{name}" for name in target.pointers())]
        if len(said) > len(names):
            return Verdict(Outcome.LOST, f"got {names} after {said}")
        try:
            for name in names:
                loaded = target.load(name)
                wrong = target.verify(loaded, deep=True)
                if wrong or loaded.data != wanted.data:
                    return Verdict(Outcome.WRONG, f"{name}: {wrong}")
            if names and number % RESTORED == 0:
                self._restore(place, f"{store}/{wanted.id}")
        except LazyfsError as exc:
            return Verdict(Outcome.WRONG, exc.message)
        try:
            self.act(place)
        except LazyfsError as exc:
            return Verdict(Outcome.STUCK, exc.message)
        if number % RESTORED == 0:
            self._restore(place, f"{store}@latest")
        return RIGHT

    @staticmethod
    def _source(place: Place) -> Path:
        return place.outside / "store"

    @staticmethod
    def _restore(place: Place, what: str) -> None:
        """Have the counter go on; raises AssertionError where it is another one."""
        try:
            lazyfs(place, "restore", what, "--id", "r1", "--runsc", runsc_path(NEW))
            wait_until(lambda: len(_lines(place, "r1")) > 1)
            count, _, base = _lines(place, "r1")[0].partition(" ")
            assert (int(count), base) == (int((place.outside / "count").read_text()) + 1, BASE)
        finally:
            _delete(place, "r1")


def _lines(place: Place, sandbox_id: str) -> list[str]:
    """Return what a counter has said so far."""
    log = place.root / "disk" / "state" / "sandboxes" / sandbox_id / "logs" / "counter.log"
    return log.read_text().split("\n")[:-1] if log.exists() else []


def _delete(place: Place, sandbox_id: str) -> None:
    """End and remove a sandbox, whatever has become of it."""
    try:
        if (place.root / "disk" / "state" / "sandboxes" / sandbox_id).exists():
            lazyfs(place, "delete", "--force", sandbox_id)
    finally:
        for rootfs in place.root.glob("disk/state/sandboxes/*/bundles/*/rootfs"):
            force_unmount(rootfs)


def why_no_real_runs() -> str | None:
    """Say why no sandbox can be run here, or None."""
    return "not root" if os.geteuid() else why_no_mounts() or why_no_busybox()


REAL_RUNS: tuple[RealRun, ...] = tuple(RealRun(runtime) for runtime in RUNTIMES)
REAL_CASES: tuple[Case, ...] = (*REAL_RUNS, RealSnapshot())


def possible_runs() -> list[Case]:
    """Return the cases whose runtimes are here."""
    if why_no_real_runs() is not None:
        return []
    found: list[Case] = [case for case in REAL_RUNS if shutil.which(case.runtime) is not None]
    if why_no_runsc(NEW) is None:
        found += [case for case in REAL_CASES if isinstance(case, RealSnapshot)]
    return found
