"""Sandboxes that are attacked: every runtime that is there, as root and as an ordinary user."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.conftest import cache_dir, run
from tests.mounts.test_rootless import PYTHON, UID, why_no_python
from tests.support.mounts.command import Lazyfs, copy_of_packages
from tests.support.mounts.mounting import ROOT, folder_for_all, force_unmount, fuse_for_all
from tests.support.mounts.mounting import run as run_program
from tests.support.sandboxes.hostile_image import (
    compile_probe,
    loop_device,
    make_hostile,
    why_no_probe,
)
from tests.support.sandboxes.runscs import NEW, runsc_path, why_no_runsc

__all__ = ["cache_dir", "hostile", "run"]

RUNTIMES = ("runsc", "crun", "runc", "bwrap")
WHO = ("root", "user")
SECONDS = 90


@dataclass
class Hostile:
    """A machine with the image of a program that attacks, and with a disk for it to look for."""

    folder: Path
    image: str
    disk: Path
    number: tuple[int, int]
    commands: dict[str, Lazyfs] = field(default_factory=dict)

    def words_of(self, runtime: str) -> list[str]:
        """Return the options that choose a runtime, or skip the test."""
        if runtime != "runsc":
            if shutil.which(runtime, path="/usr/bin:/usr/sbin:/bin:/sbin") is None:
                pytest.skip(f"no {runtime}: make setup-interop installs it")
            return ["--runtime", runtime]
        if reason := why_no_runsc(NEW):
            pytest.skip(reason)
        program = self.folder / "runsc"  # the checkout may be out of other users' reach
        if not program.exists():
            shutil.copy(runsc_path(NEW), program)
            program.chmod(0o755)
        return ["--runsc", str(program)]

    def run(
        self, runtime: str, who: str, *attack: object, options: tuple[object, ...] = (), **how
    ) -> subprocess.CompletedProcess:
        """Run the program in a sandbox, attached; it has the secret KEY of who starts it."""
        lazyfs = self.commands[who]
        words = [*self.words_of(runtime), *options, self.image, "--", "/bin/probe", *attack]
        command = [PYTHON, self.folder / "with_key.py", *lazyfs.command("run", *words)]
        return run_program(
            *command,
            env=lazyfs.variables,
            cwd=lazyfs.folder,
            timeout=SECONDS,
            **(lazyfs.options | how),
        )

    def attack(self, runtime: str, who: str, *options: object) -> dict[str, str]:
        """Try everything in a sandbox; return attack → what came of it."""
        number = self.number
        done = self.run(runtime, who, "all", *number, "KEY", os.getpid(), options=options)
        found: dict[str, str] = {}
        for line in done.stdout.splitlines():
            name, _, result = line.partition(" ")
            found.setdefault(name, result)  # its own rights are said first
        assert found.get("end") == "reached", done.stdout + done.stderr
        return found


@pytest.fixture(scope="session")
def hostile() -> Iterator[Hostile]:
    if reason := why_no_python() or why_no_probe():
        pytest.skip(reason)
    with fuse_for_all(), folder_for_all() as folder, loop_device(folder) as (disk, number):
        copy_of_packages(folder)
        probe = compile_probe(folder / "probe")
        image = make_hostile(folder / "layout", probe, number)
        shutil.copy(ROOT / "tests" / "support" / "sandboxes" / "with_key.py", folder)
        run_program("chmod", "-R", "a+rX", folder / "layout", folder / "with_key.py")
        made = Hostile(folder, image, disk, number)
        variables = {"PYTHONPATH": str(folder / "packages"), "PATH": "/usr/bin:/bin"}
        for who in WHO:
            home = folder / who
            home.mkdir()
            options: dict[str, object] = {}
            if who == "user":
                os.chown(home, UID, UID)
                options = {"user": UID, "group": UID, "extra_groups": []}
            made.commands[who] = Lazyfs(
                home, (PYTHON,), environment=variables | {"HOME": str(home)}, options=options
            )
        yield made
        for lazyfs in made.commands.values():
            for rootfs in lazyfs.folder.glob("state/sandboxes/*/bundles/*/rootfs"):
                lazyfs("delete", "--force", rootfs.parents[2].name)
                force_unmount(rootfs)
            assert lazyfs.status() == []
