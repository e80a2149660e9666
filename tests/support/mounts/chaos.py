"""Killing the server of a mount again and again while programs use the mount.

``kill_under_load`` is what a test does a few times and ``tools/kill_soak.py`` many times.  The load
is processes of this very file, each of which compares all that it sees with the truth and fails at
the first difference or error:

    python -m tests.support.mounts.chaos KIND MOUNTPOINT TRUTH SEED

and prints, when its standard input is closed, how often it has looked.
"""

import hashlib
import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import ROOT, force_unmount
from tests.support.registries.faults import drip
from tests.support.registries.registry import FakeRegistry

KINDS = ("read", "map", "find", "direct", "read", "map")
PRESENCE_HEADER = 4096
PAUSE_SECONDS = 0.4  # at most, between a server's first words and its death
REVIVAL_SECONDS = 60.0
END_SECONDS = 120.0


@dataclass
class Report:
    """What came of it; ``pauses`` are seconds from each death to the next server's record."""

    kills: int
    looks: int
    failures: list[str]
    pauses: list[float]
    requests: int
    log: str


def contents(rng: random.Random) -> dict[str, bytes]:
    """Return the files of the image: many small ones and some that have many chunks."""
    files = {f"small/{n:03d}": rng.randbytes(rng.randrange(1, 40_000)) for n in range(300)}
    files |= {f"large/{n}": rng.randbytes(3_000_000 + n) for n in range(4)}
    return files


@contextmanager
def mounted(
    folder: Path, files: dict[str, bytes], driver: str = "native"
) -> Iterator[tuple[Lazyfs, FakeRegistry, Path]]:
    """Mount an image of *files* from a slow registry."""
    layout, mountpoint = folder / "layout", folder / "mnt"
    items = [directory("small"), directory("large")]
    items += [file(name, data) for name, data in files.items()]
    make_layout(layout, [estargz_layer(tar_bytes(items), chunk_size=64 << 10)])
    mountpoint.mkdir()
    lazyfs = Lazyfs(folder, environment={"LAZYFS_SUCCESSORS": "1000000"})
    with FakeRegistry(layout) as registry:
        registry.faults.add(drip(32 << 10, 0.01), path="/blobs/", ranged=True, times=None)
        try:
            others = ("-o", "allow_other") if driver == "erofs" else ()
            words = ("--prefetch", "none", "--driver", driver, *others)
            lazyfs.mount(f"{registry.host}/made:latest", mountpoint, *words)
            yield lazyfs, registry, mountpoint
        finally:
            force_unmount(mountpoint)


def kill_under_load(folder: Path, kills: int, seed: int = 1, driver: str = "native") -> Report:
    """Kill the server *kills* times, at random, under load; unmount in the end."""
    rng = random.Random(seed)
    files = contents(rng)
    truth = folder / "truth"
    for name, data in files.items():
        (truth / name).parent.mkdir(parents=True, exist_ok=True)
        (truth / name).write_bytes(data)
    kinds = [kind for kind in KINDS if driver == "native" or kind != "direct"]  # EROFS has none
    with mounted(folder, files, driver) as (lazyfs, registry, mountpoint):
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.mounts.chaos", kind,
                 str(mountpoint), str(truth), str(seed + number)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, cwd=ROOT,
            )
            for number, kind in enumerate(kinds)
        ]  # fmt: skip
        try:
            pauses = []
            for _ in range(kills):
                time.sleep(rng.uniform(0, PAUSE_SECONDS))
                chill(folder / "cache", rng)
                pauses.append(kill_once(lazyfs))
            (status,) = lazyfs.status()
            assert status["successions"] == kills, status
            looks, failures = collect(workers)
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
        done = lazyfs("umount", mountpoint)
        assert done.returncode == 0, done.stderr
        requests = len(registry.requests)
    log = "".join(path.read_text() for path in (folder / "state" / "log").glob("*.log"))
    return Report(kills, looks, failures, pauses, requests, log)


def server_of(lazyfs: Lazyfs) -> int | None:
    """Return the process of the only mount's server, None while there is no record of it."""
    for path in lazyfs.records():
        if path.suffix == ".json":
            try:
                return json.loads(path.read_text())["pid"]
            except FileNotFoundError:  # between two servers
                return None
    return None


def kill_once(lazyfs: Lazyfs) -> float:
    """Kill the server; return how many seconds it took until another one was there."""
    victim = server_of(lazyfs)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    while server_of(lazyfs) in (victim, None):
        assert time.monotonic() < start + REVIVAL_SECONDS, "nobody succeeded the server"
        time.sleep(0.005)
    return time.monotonic() - start


def chill(cache: Path, rng: random.Random) -> None:
    """Have a third of all chunks be fetched again: absent is what any chunk may become."""
    for path in cache.glob("layers/*/presence"):
        with path.open("r+b", buffering=0) as states:
            for place in range(PRESENCE_HEADER, path.stat().st_size):
                if rng.random() < 0.3:
                    os.pwrite(states.fileno(), b"\0", place)


def collect(workers: list[subprocess.Popen]) -> tuple[int, list[str]]:
    """End the load; return how much was seen, and what was wrong."""
    looks, failures = 0, []
    for worker in workers:
        said, _ = worker.communicate(timeout=END_SECONDS)
        if worker.returncode == 0 and said.strip().isdigit():
            looks += int(said)
        else:
            failures.append(f"{worker.args[3]}, exit code {worker.returncode}: {said}")
    return looks, failures


# The load.


def drop_pages(descriptor: int) -> None:
    """Have the kernel forget the file's pages, so that reading asks the server."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def look_by_reading(root: Path, truth: Path, name: str, rng: random.Random, flags: int = 0) -> None:
    """Compare a random range of a file."""
    expected = (truth / name).read_bytes()
    descriptor = os.open(root / name, os.O_RDONLY | flags)
    try:
        drop_pages(descriptor)
        offset = rng.randrange(len(expected)) & ~4095
        with mmap.mmap(-1, rng.choice((4096, 65536, 1 << 20))) as buffer:
            size = os.preadv(descriptor, [buffer], offset)
            assert buffer[:size] == expected[offset : offset + len(buffer)], f"{name} at {offset}"
            assert size == min(len(buffer), len(expected) - offset), f"{name}: {size} bytes"
    finally:
        os.close(descriptor)


def look_by_mapping(root: Path, truth: Path, name: str, rng: random.Random) -> None:
    """Compare a file through a map, which dies of SIGBUS where a page cannot be had."""
    with open(root / name, "rb") as opened:
        drop_pages(opened.fileno())
        with mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as view:
            digest = hashlib.sha256(view).digest()
    assert digest == hashlib.sha256((truth / name).read_bytes()).digest(), name


def look_by_finding(root: Path, names: set[str]) -> None:
    """Compare the tree, with attributes that the kernel does not remember."""
    found = set()
    for folder, _, files in os.walk(root):
        os.getxattr(folder, "user.lazyfs.manifest.digest") if folder == str(root) else None
        for name in files:
            path = os.path.join(folder, name)
            os.statvfs(path)
            found.add(os.path.relpath(path, root))
    assert found == names, found ^ names


def look(kind: str, root: Path, truth: Path, seed: int) -> int:
    """Look until standard input is closed; return how often."""
    rng = random.Random(seed)
    names = sorted(str(path.relative_to(truth)) for path in truth.rglob("*") if path.is_file())
    count = 0
    while not select.select([0], [], [], 0)[0]:
        name = rng.choice(names)
        if kind == "find":
            look_by_finding(root, set(names))
        elif kind == "map":
            look_by_mapping(root, truth, name, rng)
        else:
            flags = os.O_DIRECT if kind == "direct" else 0
            look_by_reading(root, truth, name, rng, flags)
        count += 1
    return count


if __name__ == "__main__":
    kind_, root_, truth_, seed_ = sys.argv[1:]
    print(look(kind_, Path(root_), Path(truth_), int(seed_)))
