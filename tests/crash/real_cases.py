"""A sandbox by the real commands, in a real runtime; what is left of it is recovered by them."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner

from lazyfs.cli.main import cli
from tests.crash.cases import Case, Mark, Outcome, Place, Verdict, mark, promised
from tests.crash.store_cases import (
    contents,
    environment,
    image_of,
    judge,
    lazyfs,
)
from tests.support.images import directory, estargz_layer, make_layout, symlink, tar_bytes
from tests.support.images import file as file_item
from tests.support.mounting import force_unmount, why_no_mounts
from tests.support.runscs import BUSYBOX, why_no_busybox

TEMPLATE = """
name: quiet
containers:
- name: quiet
  image: {image}
  command: [/bin/sleep, "1000"]
"""
RUNTIMES = ("bwrap", "crun")
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
            try:
                lazyfs(place, "delete", "--force", "c1")
            finally:
                for rootfs in place.root.glob("disk/state/sandboxes/*/bundles/*/rootfs"):
                    force_unmount(rootfs)
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


def why_no_real_runs() -> str | None:
    """Say why no sandbox can be run here, or None."""
    return why_no_mounts() or why_no_busybox()


REAL_CASES: tuple[RealRun, ...] = tuple(RealRun(runtime) for runtime in RUNTIMES)


def possible_runs() -> list[Case]:
    """Return the cases whose runtimes are here."""
    if why_no_real_runs() is not None:
        return []
    return [case for case in REAL_CASES if shutil.which(case.runtime) is not None]
