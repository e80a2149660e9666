"""``lazyfs run`` as an ordinary user: the mount through fusermount3, the sandbox in a namespace."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts.test_rootless import PYTHON, UID, why_no_python
from tests.support.mounts.command import Lazyfs, copy_of_packages
from tests.support.mounts.mounting import (
    folder_for_all,
    force_unmount,
    fuse_for_all,
    needs_fuse,
    needs_root,
    run,
    wait_until,
)
from tests.support.sandboxes.runscs import NEW, make_busybox, need_runsc, why_no_busybox

pytestmark = [*needs_fuse, *needs_root]  # root makes itself somebody else


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder for all users, with lazyfs and an image in it; /dev/fuse is for all meanwhile."""
    reason = why_no_python() or why_no_busybox()
    if reason is not None:
        pytest.skip(reason)
    with fuse_for_all(), folder_for_all() as folder:
        copy_of_packages(folder)
        make_busybox(folder / "layout")
        run("chmod", "-R", "a+rX", folder / "layout")
        yield folder


@pytest.fixture
def lazyfs(place: Path, request: pytest.FixtureRequest) -> Iterator[Lazyfs]:
    home = place / request.node.name.replace("[", "-").replace("]", "")
    home.mkdir()
    os.chown(home, UID, UID)
    variables = {"PYTHONPATH": str(place / "packages"), "HOME": str(home), "PATH": "/usr/bin:/bin"}
    identity = {"user": UID, "group": UID, "extra_groups": []}
    command = Lazyfs(home, (PYTHON,), environment=variables, options=identity)
    yield command
    for rootfs in home.glob("state/sandboxes/*/bundles/*/rootfs"):
        command("delete", "--force", rootfs.parents[2].name)
        force_unmount(rootfs)


@pytest.mark.parametrize("runtime", ["bwrap", "crun", NEW])
def test_an_ordinary_user_runs_sandboxes(lazyfs: Lazyfs, place: Path, runtime: str) -> None:
    if runtime == NEW:
        program = place / "runsc"
        shutil.copy(need_runsc(NEW), program)
        program.chmod(0o755)
        runtime = str(program)
    elif shutil.which(runtime) is None:
        pytest.skip(f"no {runtime}")
    image = f"oci:{place}/layout"
    script = "cat /etc/base; touch /new && echo wrote; id -u; exit 3"
    done = lazyfs("run", "--runtime", runtime, image, "--", "/bin/sh", "-c", script)
    assert (done.returncode, done.stdout) == (3, "base one\nwrote\n0\n"), done.stderr
    assert lazyfs.status() == []
    started = lazyfs("run", "--runtime", runtime, "--id", "c1", "--detach", image)
    assert (started.returncode, started.stdout) == (0, "c1\n"), started.stderr
    assert lazyfs("recover").stdout == "c1  RUNNING\n"
    done = lazyfs("delete", "--force", "c1")
    assert done.returncode == 0, done.stderr
    assert list((lazyfs.folder / "state/sandboxes").iterdir()) == []
    assert lazyfs.status() == []


def test_an_ordinary_user_saves_and_restores(lazyfs: Lazyfs, place: Path) -> None:
    program = place / "runsc-to-save"
    shutil.copy(need_runsc(NEW), program)
    program.chmod(0o755)
    logs = lazyfs.folder / "state" / "sandboxes"

    def lines(sandbox: str) -> list[str]:
        path = next((logs / sandbox / "logs").glob("*.log"), None)
        found = [] if path is None else path.read_text().split("\n")[:-1]
        return [line for line in found if line.endswith("base one")]

    def do(*words: object) -> None:
        done = lazyfs(*words)
        assert done.returncode == 0, done.stderr

    store = lazyfs.folder / "store"
    do("run", "--runtime", program, "--id", "c1", "--detach", f"oci:{place}/layout")
    wait_until(lambda: len(lines("c1")) > 2)
    do("checkpoint", "c1", "--to", store, "--name", "latest", "--leave-running")
    count = len(lines("c1"))
    wait_until(lambda: len(lines("c1")) > count)
    do("delete", "--force", "c1")
    do("restore", f"{store}@latest", "--id", "r1", "--runsc", program)
    wait_until(lambda: len(lines("r1")) > 2)
    assert int(lines("r1")[0].split()[0]) > 2  # it goes on, and does not begin
    do("delete", "--force", "r1")
    assert lazyfs.status() == []
