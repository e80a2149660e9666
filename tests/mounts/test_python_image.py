"""An image with a Python in it, mounted by the command: every driver shows the same and runs it.

The image is this machine's Python with its libraries, and some of its standard library in a second
layer.  The variable LAZYFS_TEST_IMAGE names another one, with ``python3`` at ``usr/bin``: ``make
conformance`` takes Debian's, 120 MB.  "erofs" was cold, its bytes came through FUSE; "kernel" was
mounted when all layers were complete: the kernel reads the store, and nothing of ours is between.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.mounts import questions
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    available_drivers,
    folder_for_all,
    force_unmount,
    needs_fuse,
    needs_root,
    run,
    why_no_erofs,
)
from tests.support.mounts.questions import Question, as_by_kernel
from tools.images import host
from tools.images.layout import write_image
from tools.images.tree import Tree, file

# Root, for chroot and the kernel's mounts.
pytestmark = [*needs_fuse, *needs_root]

IMAGE = "LAZYFS_TEST_IMAGE"
PYTHON = Path(sys.executable).resolve()
LIBRARY = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix}))
PACKAGES = ("collections", "encodings", "importlib", "json", "re")
SECONDS = 300
BY_KERNEL = [] if why_no_erofs() else ["erofs", "kernel"]
DRIVERS = [*available_drivers(), *BY_KERNEL]
# What is of one mount, and not of the image.
OF_THE_MOUNT = {"user.lazyfs.mount.id", "user.lazyfs.resolved-at"}


@dataclass
class Mount:
    """A mount by *driver*; *python* is a path in it."""

    driver: str
    point: Path
    python: str

    def runs(self, program: str) -> subprocess.CompletedProcess:
        """Run *program* by the image's Python, with the mount as its root."""
        line = ["chroot", self.point, self.python, "-I", "-B", "-c", program]
        return run(*line, env={"PATH": "/usr/sbin:/usr/bin:/sbin"}, timeout=SECONDS)


def layers() -> list[Tree]:
    """Return a Python, and what of its library is enough to run."""
    program: Tree = {}
    host.add_program(program, PYTHON)
    program["etc/release"] = file(b"to be read only\n")
    library: Tree = {}
    for path in sorted(LIBRARY.glob("*.py")):
        host.add_file(library, path)
    for name in PACKAGES:
        host.add_folder(library, LIBRARY / name, without=["__pycache__"])
    return [program, library]


def make_image(folder: Path) -> tuple[str, str]:
    """Return a reference, and where the image's Python is."""
    if given := os.environ.get(IMAGE):
        return given, "/usr/bin/python3"
    layout = folder / "layout"
    write_image(layout, layers(), tag="plain", cmd=[str(PYTHON)])
    done = Lazyfs(folder)("convert", f"oci:{layout}:plain", f"oci:{layout}:lazy", timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return f"oci:{layout}:lazy", str(PYTHON)


@contextmanager
def mounted(folder: Path, reference: str, driver: str, python: str) -> Iterator[Mount]:
    """Mount *reference*; "erofs" and "kernel" share a store."""
    kind = "erofs" if driver in BY_KERNEL else driver
    home, point = folder / kind, folder / f"mnt-{driver}"
    home.mkdir(exist_ok=True)
    point.mkdir()
    lazyfs = Lazyfs(home)
    try:
        lazyfs.mount(reference, point, "--driver", kind, "-o", "suid,dev,allow_other")
        yield Mount(driver, point, python)
    finally:
        lazyfs("umount", point)
        force_unmount(point)


@pytest.fixture(scope="module")
def mounts() -> Iterator[dict[str, Mount]]:
    """The mounts of all drivers; each was cold when its bytes were read for the first time."""
    with folder_for_all() as folder, ExitStack() as stack:
        reference, python = make_image(folder)
        found: dict[str, Mount] = {}
        for driver in DRIVERS:
            if driver == "kernel":
                questions.contents(found["erofs"].point)  # its layers are complete from now on
            found[driver] = stack.enter_context(mounted(folder, reference, driver, python))
        yield found


@pytest.fixture(params=DRIVERS[1:])
def pair(request: pytest.FixtureRequest, mounts: dict[str, Mount]) -> tuple[Mount, Mount]:
    """The measure, and another driver."""
    return mounts[DRIVERS[0]], mounts[request.param]


@pytest.fixture(params=DRIVERS)
def mount(request: pytest.FixtureRequest, mounts: dict[str, Mount]) -> Mount:
    return mounts[request.param]


def test_a_reader_that_is_broken_off_costs_others_nothing(mount: Mount) -> None:
    """First of all, while everything but "kernel" is cold."""
    files = questions.regular_files(mount.point)
    files.sort(key=lambda path: os.lstat(path).st_size)
    largest = files[-1]
    with subprocess.Popen(["cat", *files], stdout=subprocess.PIPE) as broken_off:
        assert broken_off.stdout is not None
        with subprocess.Popen(["cat", largest], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            first = broken_off.stdout.read(100)
            broken_off.send_signal(signal.SIGINT)
            read = reader.stdout.read()
    assert first
    assert broken_off.returncode == -signal.SIGINT
    assert reader.returncode == 0
    with open(largest, "rb") as file:
        assert file.read() == read


@pytest.mark.parametrize(
    "question",
    [
        *(questions.names, questions.attributes, questions.extended_attributes, questions.links),
        *(questions.contents, questions.mapped, questions.data_and_holes),
    ],
)
def test_everything_that_is_there(pair: tuple[Mount, Mount], question: Question) -> None:
    measure, other = (question(server.point) for server in pair)
    if question is questions.extended_attributes:
        for answer in (measure, other):
            values = answer[b"."][1]
            values.update(dict.fromkeys(OF_THE_MOUNT & set(values)))
    if pair[1].driver in BY_KERNEL:
        measure, other = (as_by_kernel(question, answer) for answer in (measure, other))
    assert len(measure) > 100
    assert other == measure


def test_it_runs(mount: Mount) -> None:
    program = (
        "import dataclasses, json, re, sys\n"
        "print(json.dumps([sys.version, re.sub('a', 'b', json.__doc__ or 'none')]))"
    )
    here = run(sys.executable, "-I", "-c", program) if IMAGE not in os.environ else None
    done = mount.runs(program)
    assert done.returncode == 0, done.stderr
    assert here is None or done.stdout == here.stdout
    refused = mount.runs("open('/etc/release', 'w')")
    assert refused.returncode == 1
    assert "Read-only file system" in refused.stderr


def test_many_readers_in_any_order(mounts: dict[str, Mount], mount: Mount) -> None:
    expected = questions.contents(mounts[DRIVERS[0]].point)
    wrong: list[bytes] = []

    def read(number: int) -> None:
        paths = list(expected)
        random.Random(number).shuffle(paths)
        for path in paths:
            with open(os.path.join(os.fsencode(mount.point), path), "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected[path]:
                    wrong.append(path)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
