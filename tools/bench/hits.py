"""Reads that hit: the drivers against ext4 over the same files, in one run.

    python -m tools.bench.hits [--runs 7] [--quick] [--sides native:1,native:2,pyfuse3,ext4]

Every run starts with cold dentries (a fresh mount) and a warm store; sides take turns, in another
order each time, so that a busy minute meets all of them.  Before each run the same is done once
unmeasured: in a virtual machine, memory that was not used for a while has to come from the host.
ext4 is a file of its own on a loop device, mounted afresh too.  Prints seconds as median (best),
ratios of both to ext4 and to pyfuse3, and the bars.  Needs root.
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.make_image import ROOT

FOLDER = ROOT / ".bench" / "hits"
PROGRAM = Path(__file__).with_name("hits.c")
SECONDS = 300
FILES, FOLDERS = 29_200, 3_200
WORKLOADS = ("walk", "stat", "absent", "open", "seq", "rand")
TITLES = {
    "walk": "walk with stat",
    "stat": "random stat",
    "absent": "negative lookups",
    "open": "open+read+close of small files",
    "seq": "sequential, big file",
    "rand": "random 4 KiB",
}
# Against ext4, and against pyfuse3.
BARS = {
    "walk": (1.2, 0.4),
    "stat": (1.5, 0.3),
    "absent": (1.5, 0.3),
    "open": (1.5, 0.35),
    "seq": (1.2, 0.8),
    "rand": (1.2, 0.8),
}
WARM_BAR = 1.3


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
        self.cpu: list[float] = []
        self.requests: list[int] = []
        self.memory: dict[str, int] = {}

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
            yield point
            server.send_signal(signal.SIGTERM)
            said = json.loads(server.stdout.readline())
            self.cpu.append(said["cpu"])
            self.memory = said["rss"]
            self.requests.append(said.get("requests", 0))
            server.wait(SECONDS)
        finally:
            server.kill()
            server.wait()
            subprocess.run(["umount", "-l", point], capture_output=True, timeout=SECONDS)


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


def table(times: dict[tuple[str, str, bool], list[float]], sides: list[Side]) -> None:
    """Print what was measured."""
    print(f"{'workload':34}" + "".join(f"{side.name:>20}" for side in sides))
    for warm in (False, True):
        for workload in WORKLOADS:
            if (sides[0].name, workload, warm) not in times:
                continue
            line = f"{TITLES[workload] + (', warm' if warm else ''):34}"
            for side in sides:
                values = times[side.name, workload, warm]
                line += f"{statistics.median(values):12.3f} ({min(values):.3f})"[:20].rjust(20)
            print(line)
            native = next((side.name for side in sides if side.name.startswith("native")), None)
            for other, bar in zip(("ext4", "pyfuse3"), BARS[workload], strict=True):
                if native is None or (other, workload, warm) not in times:
                    continue
                if warm and other == "pyfuse3":
                    continue
                limit = WARM_BAR if warm else bar
                for side in sides:
                    if not side.name.startswith("native"):
                        continue
                    ours = times[side.name, workload, warm]
                    theirs = times[other, workload, warm]
                    middle = statistics.median(ours) / statistics.median(theirs)
                    best = min(ours) / min(theirs)
                    verdict = "ok" if min(middle, best) <= limit else "OVER"
                    print(
                        f"    {side.name} / {other}: {middle:.2f} (best {best:.2f})"
                        f", bar {limit:g}: {verdict}"
                    )
    for side in sides:
        if any(side.requests):
            cost = sum(side.cpu) / sum(side.requests) * 1e6
            print(f"{side.name}: {cost:.1f} us of CPU per request, over all workloads")
        if side.memory:
            print(
                f"{side.name}: {side.memory['Anon'] / 1024:.0f} MB of its own, "
                f"{side.memory['File'] / 1024:.0f} MB of mapped files"
            )


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--sides", default="native,pyfuse3,ext4")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--big", type=int, default=1024, help="MiB of the big file")
    parser.add_argument("--quick", action="store_true", help="two runs")
    arguments = parser.parse_args()
    program = prepare(arguments.big << 20)
    sides = [Side(name) for name in arguments.sides.split(",")]
    times: dict[tuple[str, str, bool], list[float]] = {}
    for number in range(2 if arguments.quick else arguments.runs):
        for workload in arguments.workloads.split(","):
            first = number % len(sides)
            for side in sides[first:] + sides[:first]:
                with side.mounted() as point:
                    measure(program, point, workload)
                with side.mounted() as point:
                    for warm in (False, True):
                        seconds = measure(program, point, workload)
                        times.setdefault((side.name, workload, warm), []).append(seconds)
    table(times, sides)


if __name__ == "__main__":
    main()
