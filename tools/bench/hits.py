"""Reads that hit: the drivers against ext4 over the same files, in one run.

    python -m tools.bench.hits [--runs 7] [--quick] [--sides native:1,native:2,erofs,ext4]

Every run starts with cold dentries (a fresh mount) and a warm store; sides take turns, in another
order each time, so that a busy minute meets all of them.  Before each run the same is done once
unmeasured: in a virtual machine, memory that was not used for a while has to come from the host.
ext4 is a file of its own on a loop device, mounted afresh too.  Prints seconds as median (best),
ratios to ext4 and to pyfuse3, the bars, which the median or the best may meet, and the server's
processor time per request.  Needs root.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.make_image import ROOT

FOLDER = ROOT / ".bench" / "hits"
PROGRAM = Path(__file__).with_name("hits.c")
SECONDS = 300
BIG_SIZE = 1 << 30
FILES, FOLDERS = 29_200, 3_200
TITLES = {
    "walk": "walk with stat",
    "stat": "random stat",
    "absent": "negative lookups",
    "open": "open+read+close of small files",
    "seq": "sequential, big file",
    "rand": "random 4 KiB",
}
WORKLOADS = tuple(TITLES)

# Driver → the other side → workload → what the ratio may be.
BARS = {
    "native": {
        "ext4": {"walk": 1.2, "stat": 1.5, "absent": 1.5, "open": 1.5, "seq": 1.2, "rand": 1.2},
        "pyfuse3": {"walk": 0.4, "stat": 0.3, "absent": 0.3, "open": 0.35, "seq": 0.8, "rand": 0.8},
    },
    "erofs": {
        "ext4": {"walk": 0.6, "stat": 0.7, "absent": 0.6, "open": 1.3, "seq": 1.3, "rand": 1.3},
    },
}
WARM_BARS = {"native": 1.3, "erofs": 1.1}  # against ext4
MEMORY_BAR = 40  # MB of its own that a server may have for so many files
SIDES = "native,pyfuse3,erofs,ext4"

# Side, workload, "the second time" → seconds of each run.
Times = dict[tuple[str, str, bool], list[float]]


def make_tree(tree: Path, big_size: int) -> None:
    """Make the files: many small ones (median 3 kB), and a big one."""
    chance = random.Random(4)
    folders = [tree]
    while len(folders) < FOLDERS:
        folder = chance.choice(folders[-400:]) / f"folder{len(folders):04}"
        folder.mkdir(parents=True)
        folders.append(folder)
    data = chance.randbytes(1 << 20)
    for number in range(FILES):
        size = min(int(chance.lognormvariate(8.0, 1.5)), len(data))
        start = chance.randrange(len(data) - size + 1)
        (chance.choice(folders) / f"file{number:05}.py").write_bytes(data[start : start + size])
    with (tree / "big").open("wb") as file:
        for _ in range(big_size >> 20):
            file.write(chance.randbytes(1 << 20))


def make_lists(tree: Path) -> None:
    """Write what the workloads name: all small files in random order, names that do not exist."""
    chance = random.Random(5)
    paths = [path for path in tree.rglob("*") if path.name != "big"]
    names = [str(path.relative_to(tree)) for path in paths]
    chance.shuffle(names)
    files = [name for name in names if name.endswith(".py")]
    (FOLDER / "stat").write_text("\n".join(names) + "\n")
    (FOLDER / "open").write_text("\n".join(files) + "\n")
    folders = [name for name in names if not name.endswith(".py")]
    absent = [f"{chance.choice(folders)}/absent{n}" for n in range(10_000)]
    (FOLDER / "absent").write_text("\n".join(absent) + "\n")


def prepare(big_size: int) -> Path:
    """Make tree, store, ext4 and program, unless they are there; return the program."""
    program = FOLDER / "program"
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-std=gnu11", "-O2", "-Wall", str(PROGRAM), "-o", str(program)]
    subprocess.run(command, check=True, timeout=SECONDS)
    store, disk = FOLDER / "store", FOLDER / "ext4.img"
    if not (FOLDER / f"made-{big_size}").exists():
        tree = FOLDER / "tree"
        if not tree.exists():
            make_tree(tree, big_size)
        make_lists(tree)
        server = [sys.executable, "-m", "tools.bench.hits_server"]
        subprocess.run([*server, "build", tree, store], check=True, timeout=SECONDS, cwd=ROOT)
        with disk.open("wb") as file:
            file.truncate(2 * big_size + (2 << 30))
        make = ["mkfs.ext4", "-q", "-F", "-d", str(tree), str(disk)]
        subprocess.run(make, check=True, timeout=SECONDS)
        (FOLDER / f"made-{big_size}").touch()
    return program


class Side:
    """One way to read the files; ``mounted`` is a fresh mount."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.driver = name.partition(":")[0]
        self.cpu: dict[str, float] = {}  # seconds by workload, all runs together
        self.requests: dict[str, int] = {}
        self.memory: dict[str, int] = {}
        self._server: subprocess.Popen[str] | None = None

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        point = FOLDER / "mnt"
        point.mkdir(exist_ok=True)
        if self.name == "ext4":
            mount = ["mount", "-o", "loop,ro,noatime", str(FOLDER / "ext4.img"), str(point)]
            subprocess.run(mount, check=True, timeout=SECONDS)
            try:
                yield point
            finally:
                subprocess.run(["umount", point], check=True, timeout=SECONDS)
            return
        driver, _, threads = self.name.partition(":")
        command = [sys.executable, "-m", "tools.bench.hits_server", "serve"]
        words = [str(FOLDER / "store"), str(point), driver, *([threads] if threads else [])]
        server = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert server.stdout is not None
        try:
            if server.stdout.readline() != "ready\n":
                raise SystemExit(f"{self.name}: the server did not start")
            self._server = server
            yield point
            self.memory = self._said(signal.SIGTERM)["rss"]
            server.wait(SECONDS)
        finally:
            self._server = None
            server.kill()
            server.wait()
            subprocess.run(["umount", "-l", point], capture_output=True, timeout=SECONDS)

    def count(self, workload: str) -> None:
        """Add up what *workload*, the first since mounting, has cost the server."""
        if self._server is None:
            return
        said = self._said(signal.SIGUSR1)
        self.cpu[workload] = self.cpu.get(workload, 0) + said["cpu"]
        self.requests[workload] = self.requests.get(workload, 0) + said["requests"]

    def _said(self, number: signal.Signals) -> dict[str, Any]:
        assert self._server is not None
        assert self._server.stdout is not None
        self._server.send_signal(number)
        said: dict[str, Any] = json.loads(self._server.stdout.readline())
        return said


def measure(program: Path, point: Path, workload: str) -> float:
    """Return the seconds that *workload* takes."""
    if workload == "walk":
        words = ["walk", str(point)]
    elif workload == "seq":
        words = ["seq", str(point / "big")]
    elif workload == "rand":
        words = ["rand", str(point / "big"), "20000"]
    else:
        words = ["open" if workload == "open" else "stat", str(point), str(FOLDER / workload)]
    done = subprocess.run(
        [program, *words], check=True, capture_output=True, text=True, timeout=SECONDS
    )
    return float(done.stdout.split()[0])


def ratio(times: Times, side: Side, other: str, workload: str, warm: bool) -> str | None:
    """Return what is said of *side* beside *other*, or None if there is no bar for that."""
    limit = BARS.get(side.driver, {}).get(other, {}).get(workload)
    if warm:
        limit = WARM_BARS.get(side.driver) if other == "ext4" else None
    if limit is None or (other, workload, warm) not in times:
        return None
    ours, theirs = times[side.name, workload, warm], times[other, workload, warm]
    middle = statistics.median(ours) / statistics.median(theirs)
    best = min(ours) / min(theirs)
    verdict = "ok" if min(middle, best) <= limit else "OVER"
    return f"{side.name} / {other} {middle:.2f} ({best:.2f}), bar {limit:g}: {verdict}"


def format_table(times: Times, sides: list[Side]) -> str:
    """Return what was measured, as lines."""
    lines = [f"{'seconds: median (best)':36}" + "".join(f"{side.name:>17}" for side in sides)]
    for warm in (False, True):
        for workload, title in TITLES.items():
            if (sides[0].name, workload, warm) not in times:
                continue
            line = f"{title + (', again' if warm else ''):36}"
            for side in sides:
                values = times[side.name, workload, warm]
                line += f"{statistics.median(values):.3f} ({min(values):.3f})".rjust(17)
            lines.append(line)
            said = (
                ratio(times, side, other, workload, warm)
                for side in sides
                for other in ("ext4", "pyfuse3")
            )
            lines += [f"    {text}" for text in said if text is not None]
            costs = [
                f"{side.name} {side.cpu[workload] / side.requests[workload] * 1e6:.1f}"
                for side in sides
                if not warm and side.requests.get(workload)
            ]
            if costs:
                lines.append(f"    server, us of processor time per request: {', '.join(costs)}")
    for side in sides:
        if side.memory:
            own = side.memory["Anon"] / 1024
            verdict = "ok" if own <= MEMORY_BAR else "OVER"
            lines.append(
                f"{side.name}: {own:.0f} MB of its own for {FILES} files, bar {MEMORY_BAR}: "
                f"{verdict}; {side.memory['File'] / 1024:.0f} MB of mapped files"
            )
    return "\n".join(lines)


def compare(names: list[str], workloads: list[str], runs: int, big_size: int) -> str:
    """Measure and return the table; the load of the machine is its last line."""
    program = prepare(big_size)
    sides = [Side(name) for name in names]
    times: Times = {}
    for number in range(runs):
        first = number % len(sides)
        for workload in workloads:
            for side in sides[first:] + sides[:first]:
                with side.mounted() as point:
                    measure(program, point, workload)
                with side.mounted() as point:
                    for warm in (False, True):
                        seconds = measure(program, point, workload)
                        times.setdefault((side.name, workload, warm), []).append(seconds)
                        if not warm:
                            side.count(workload)
    return f"hits, {runs} runs\n{format_table(times, sides)}\nload: {os.getloadavg()[1]:.1f}"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--sides", default=SIDES)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--big", type=int, default=BIG_SIZE >> 20, help="MiB of the big file")
    parser.add_argument("--quick", action="store_true", help="two runs")
    arguments = parser.parse_args()
    runs = 2 if arguments.quick else arguments.runs
    sides, workloads = arguments.sides.split(","), arguments.workloads.split(",")
    print(compare(sides, workloads, runs, arguments.big << 20))


if __name__ == "__main__":
    main()
