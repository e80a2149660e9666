"""A workload that asks for more than can be had: what is here is served, and so are others."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.formats.images import estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    SECONDS,
    available_drivers,
    force_unmount,
    needs_fuse,
    wait_until,
)
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry

pytestmark = needs_fuse

COLD = 100
HOT = {f"hot{number}": random.Random(number).randbytes(300_000) for number in range(8)}

FLOOD = """
import os, sys, threading

folder, count = sys.argv[1], int(sys.argv[2])

def read(number):
    try:
        with open(f"{folder}/cold{number}", "rb") as file:
            while file.read(1 << 20):
                pass
    except OSError:
        pass

threads = [threading.Thread(target=read, args=(n,), daemon=True) for n in range(count)]
for thread in threads:
    thread.start()
print("begun", flush=True)
sys.stdin.read()
os._exit(0)
"""

LOOK = """
import os, sys
for name in sys.argv[2:]:
    with open(os.path.join(sys.argv[1], name), "rb") as file:
        data = file.read()
    os.stat(os.path.join(sys.argv[1], name))
    print(len(data), flush=True)
print(len(os.listdir(sys.argv[1])))
"""


@pytest.fixture
def layouts(tmp_path: Path) -> Path:
    noise = random.Random(0)
    cold = [file(f"cold{number}", noise.randbytes(40_000)) for number in range(COLD)]
    hot = [file(name, data) for name, data in HOT.items()]
    # Far from each other: what is fetched for a reader must not bring the other.
    gap = file("gap", noise.randbytes(3 << 20))
    make_layout(tmp_path / "one", [estargz_layer(tar_bytes([*hot, gap, *cold]))])
    make_layout(tmp_path / "other", [estargz_layer(tar_bytes([file("x", b"x" * 100_000)]))])
    return tmp_path


@contextmanager
def mounted(lazyfs: Lazyfs, image: str, point: Path, *words: str) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    try:
        lazyfs.mount(*words, image, point)
        yield point
    finally:
        force_unmount(point)


@contextmanager
def flooding(folder: Path, registry: FakeRegistry) -> Iterator[None]:
    """Have every cold file of *folder* asked for at once, of a registry that says nothing."""
    command = [sys.executable, "-c", FLOOD, str(folder), str(COLD)]
    registry.faults.add(faults.hang(), path="/blobs/", times=None)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            wait_until(lambda: waiting_tasks(process.pid) >= COLD)
            yield
        finally:
            # Or it could not end: libfuse answers no interrupts, and who waits goes on waiting.
            registry.faults.clear()
            registry.release()
            process.kill()


def waiting_tasks(pid: int) -> int:
    """Return how many threads of a process wait for a page, or for the answer to a request."""
    found = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            found += state == "D" or (task / "wchan").read_text() == "request_wait_answer"
        except OSError:
            pass
    return found


def look(folder: Path, *names: str) -> list[str]:
    """Read files in a process of its own, which ends or is ended."""
    command = [sys.executable, "-c", LOOK, str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("driver", available_drivers())
def test_a_flood_of_misses(layouts: Path, tmp_path: Path, driver: str) -> None:
    lazyfs = Lazyfs(tmp_path)
    words = ("--prefetch", "none", "--driver", driver)
    with FakeRegistry(layouts / "one") as one, FakeRegistry(layouts / "other") as other:
        image = f"{one.host}/image"
        with mounted(lazyfs, image, tmp_path / "mnt", *words) as point:
            assert look(point, *HOT)[:-1] == [str(len(data)) for data in HOT.values()]
        with (
            mounted(lazyfs, image, tmp_path / "mnt", *words) as point,
            flooding(point, one),
        ):
            # Nothing of this is in the kernel's memory, and all of it in the store.
            found = look(point, *HOT)
            assert found[:-1] == [str(len(data)) for data in HOT.values()]
            assert found[-1] == str(COLD + len(HOT) + 1)
            (status,) = lazyfs.status()
            assert status["state"] == "serving"
            # Another mount is another process, with requests of its own.
            second = tmp_path / "second"
            with mounted(lazyfs, f"{other.host}/image", second, *words):
                assert look(second, "x") == ["100000", "1"]
