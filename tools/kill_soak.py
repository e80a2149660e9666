"""Kill a mount's server again and again while programs read, map and list: ``make kill-soak``.

    python -m tools.kill_soak [--kills 200] [--seed 1] [--driver erofs]

Says how much was read meanwhile and how long the pauses were; exit code 1 if anything was wrong.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.mounts.chaos import Report, kill_under_load


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1000)
    parser.add_argument("--driver", choices=("native", "erofs"), default="native")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lazyfs-soak-") as folder:
        report = kill_under_load(Path(folder), arguments.kills, arguments.seed, arguments.driver)
    print(describe(report, arguments.seed))
    return 1 if report.failures else 0


def describe(report: Report, seed: int) -> str:
    """Return the lines that tell what came of it."""
    pauses = sorted(report.pauses)
    lines = [
        f"{report.kills} kills (seed {seed}), {report.looks} looks, "
        f"{report.requests} requests, {len(report.failures)} failures",
        f"pause until the next server's record: median {statistics.median(pauses):.2f} s, "
        f"longest {pauses[-1]:.2f} s",
    ]
    return "\n".join([*lines, *report.failures])


if __name__ == "__main__":
    sys.exit(main())
