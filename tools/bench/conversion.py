"""Converting an image, beside other converters: seconds, and the size of what came out.

From a layout on disk to a layout on disk, so that no network counts; programs are taken in turns,
and each conversion starts from nothing.  What a program used of the processors is told as well:
on a machine that does other things, those seconds say more.

    python -m tools.bench.conversion            the python image of make bench
    python -m tools.bench.conversion LAYOUT:TAG another one
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.images import layout
from tools.mounted import command

ROOT = Path(__file__).resolve().parents[2]
IMAGE = f"{ROOT / '.bench/images/python'}:plain"
ROUNDS = 3
SECONDS = 600
BAR = 0.7  # of skopeo's time
SKOPEO = ("skopeo", "--insecure-policy", "copy", "--dest-compress-format")


@dataclass
class Converter:
    """A command line that ends in source and destination; what its runs took."""

    name: str
    words: Sequence[str]
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    size: int = 0

    def run(self, image: str, folder: Path) -> None:
        """Convert *image* once."""
        target = folder / "made"
        shutil.rmtree(target, ignore_errors=True)
        started, before = time.perf_counter(), os.times()
        line = [*self.words, f"oci:{image}", f"oci:{target}:latest"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, check=False)
        self.seconds.append(time.perf_counter() - started)
        after = os.times()
        used = after.children_user + after.children_system
        self.processor_seconds.append(used - before.children_user - before.children_system)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)}: ended with {done.returncode}\n{done.stderr}")
        self.size = sum(each["size"] for each in layout.read_tagged(target, "latest")["layers"])


def converters() -> list[Converter]:
    """Return those that this machine has."""
    own = (command(), "convert", "--to")
    found = [
        Converter("lazyfs, zstd:chunked", (*own, "zstd-chunked")),
        Converter("lazyfs, eStargz", (*own, "estargz")),
        Converter("lazyfs, eStargz, level 6", (*own, "estargz", "--level", "6")),
    ]
    if shutil.which("skopeo"):
        found.append(Converter("skopeo, zstd:chunked", (*SKOPEO, "zstd:chunked")))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?", default=IMAGE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if not Path(options.image.rpartition(":")[0]).is_dir():
        print(f"bench: {options.image}: no such layout; make conformance makes it", file=sys.stderr)
        return 3
    found = converters()
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as name:
        for _ in range(options.rounds):
            for each in found:
                each.run(options.image, Path(name))
    show(found)
    return 0


def show(found: Sequence[Converter]) -> None:
    """Print a table, and whether the bar is met."""
    print(f"{'converter':28}{'seconds':>10}{'processor':>11}{'MB':>8}")
    for each in found:
        seconds = statistics.median(each.seconds)
        used = statistics.median(each.processor_seconds)
        print(f"{each.name:28}{seconds:10.2f}{used:11.2f}{each.size / 1e6:8.1f}")
    theirs = [each for each in found if each.name.startswith("skopeo")]
    if theirs:
        ratio = statistics.median(found[0].seconds) / statistics.median(theirs[0].seconds)
        print(f"zstd:chunked: {ratio:.2f} of skopeo's time, expected at most {BAR}")


if __name__ == "__main__":
    sys.exit(main())
