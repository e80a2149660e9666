"""runsc, crun, runc and bubblewrap on a lazily mounted image, as root and as an ordinary user."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lazyfs.sandbox.runtimes.programs import processes_with
from tests.mounts.test_rootless import PYTHON, UID, why_no_python
from tests.support.mounts.command import Lazyfs, copy_of_packages
from tests.support.mounts.mounting import (
    ROOT,
    folder_for_all,
    force_unmount,
    fuse_for_all,
    needs_fuse,
    needs_root,
    run,
)
from tests.support.sandboxes.runscs import NEW, make_busybox, need_runsc, why_no_busybox

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]

SCRIPT = ROOT / "tests" / "support" / "sandboxes" / "sandbox_script.py"
NAMES = ("runsc", "crun", "runc", "bwrap")
SAID = ["0", "simple-main", "base one", "mine", "dev", "proc"]


def program(name: str) -> list[Path]:
    """Return the words that choose the program, or skip the test."""
    if name == "runsc":
        return [need_runsc(NEW)]
    if shutil.which(name, path="/usr/bin:/usr/sbin") is None:
        pytest.skip(f"no {name}: make setup-interop installs it")
    return []


@pytest.fixture(scope="module")
def place():
    """A folder for all users: lazyfs, the image; /dev/fuse is for all meanwhile."""
    reason = why_no_python() or why_no_busybox()
    if reason is not None:
        pytest.skip(reason)
    with fuse_for_all(), folder_for_all() as folder:
        copy_of_packages(folder)
        shutil.copytree(ROOT / "lazyfs", folder / "packages" / "lazyfs", dirs_exist_ok=True)
        make_busybox(folder / "layout")
        shutil.copy(SCRIPT, folder)
        run("chmod", "-R", "a+rX", folder)
        yield folder


@pytest.fixture(scope="module", params=["root", "user"])
def who(request, place):
    """Root or somebody else, with the image mounted on ``home/mnt``."""
    home = place / request.param
    mountpoint = home / "mnt"
    mountpoint.mkdir(parents=True)
    variables = {"PYTHONPATH": str(place / "packages"), "HOME": str(home), "PATH": "/usr/bin:/bin"}
    options: dict[str, object] = {}
    if request.param == "user":
        os.chown(home, UID, UID)
        os.chown(mountpoint, UID, UID)
        options = {"user": UID, "group": UID, "extra_groups": []}
    lazyfs = Lazyfs(home, (PYTHON,), environment=variables, options=options)
    flags = ["-o", "allow_other"] if request.param == "root" else []
    try:
        lazyfs.mount(*flags, f"oci:{place}/layout", mountpoint)
        yield lazyfs
    finally:
        lazyfs("umount", mountpoint)
        force_unmount(mountpoint)


@pytest.mark.parametrize("name", NAMES)
def test_a_sandbox(who, place, name):
    words = program(name)
    if words:
        target = place / "runsc"  # the checkout may be out of other users' reach
        if not target.exists():
            shutil.copy(words[0], target)
        words = [target]
    folder = who.folder / name
    folder.mkdir()
    if who.options:
        os.chown(folder, UID, UID)
    done = run(
        PYTHON,
        place / SCRIPT.name,
        folder,
        who.folder / "mnt",
        name,
        *words,
        env=who.variables | {"PYTHONPATH": str(place / "packages")},
        cwd=folder,
        timeout=60,
        **who.options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    restored = seen.pop("restored", None)
    bare = seen.pop("bare")
    assert seen == {
        "status": 5,
        "said": SAID,
        "ended": "stopped",
        "deleted": "absent",
        "running": "running",
        "killed": "absent",
    }
    assert [line for line in bare if "Read-only" in line]
    assert {"0", "bare-main", "base one"} <= set(bare)
    assert (restored is None) == (name != "runsc")
    if restored is not None:
        assert int(restored["first"]) == int(restored["last"]) + 1
        assert restored["states"] == ["running", "running"]
        assert restored["files"] == ["checkpoint.img", "pages.img", "pages_meta.img"]
    assert not [words for _, words in processes_with(f"--root={folder}/first/state")]
    mounts = Path("/proc/self/mounts").read_text()
    assert str(folder) not in mounts
