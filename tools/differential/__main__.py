"""Compare lazyfs with containerd, umoci, GNU tar, bsdtar and tarfile over many tars.

Exit code 1 where a difference is none of those that are listed.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from tools.differential.corpora import fetch_all, tars_in
from tools.differential.oracle import NoOracle, Oracle, build_oracle
from tools.differential.ours import ROUTES
from tools.differential.run import OUTCOMES, UNEXPLAINED, Run
from tools.differential.tars import make_image

PEERS_EVERY = 20
"""Every so many tars the other readers are asked, too: each is a process."""


def generated(first: int, count: int) -> Iterator[tuple[str, Sequence[bytes]]]:
    """Yield images of as many tars as wanted, or a few more."""
    seed = first
    while count > 0:
        layers = make_image(seed).layers
        yield f"seed {seed}", layers
        seed += 1
        count -= len(layers)


def check_generated(here: Run, first: int, count: int) -> None:
    """Compare as many generated tars as wanted."""
    for number, (words, layers) in enumerate(generated(first, count)):
        here.check(words, layers)
        if number % PEERS_EVERY == 0:
            here.ask_peers(layers[0])
        if number % 500 == 499:
            print(
                f"{here.counts['tars']} tars, {here.counts[UNEXPLAINED]} {UNEXPLAINED} …",
                flush=True,
            )


def check_corpora(here: Run, folder: Path) -> None:
    """Compare the tars of other projects, and print the counts of each; none is taken twice."""
    seen: set[bytes] = set()
    for corpus, place in fetch_all(folder):
        if isinstance(place, str):
            print(f"{corpus}: skipped, not to be had here: {place}", flush=True)
            continue
        before = here.counts.copy()
        repeated = 0
        for name, tar in tars_in(place):
            digest = hashlib.sha256(tar).digest()
            if digest in seen:
                repeated += 1
                continue
            seen.add(digest)
            here.check(f"{corpus}, {name}", [tar])
            here.ask_peers(tar)
        counts = here.counts - before
        words = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES]
        more = f"; {repeated} seen before" if repeated else ""
        print(f"{corpus}: {counts['tars']} tars: {', '.join(words)}{more}", flush=True)


def run(arguments: argparse.Namespace) -> int:
    """Do it; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-differential-", dir=arguments.dir) as name:
        folder = Path(name)
        program = folder / "oracle"
        try:
            build_oracle(program, is_online=not arguments.offline)
        except NoOracle as exc:
            print(f"differential: {exc}", file=sys.stderr)
            return 2
        with Oracle(program, folder) as oracle:
            here = Run(oracle, folder, list(ROUTES))
            if arguments.corpora:
                check_corpora(here, folder / "corpora")
            else:
                check_generated(here, arguments.seed, arguments.tars)
        here.report()
        return 1 if here.faults else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="differential", description=__doc__)
    parser.add_argument("--tars", type=int, default=20_000, help="how many to generate")
    parser.add_argument("--seed", type=int, default=0, help="of the first image")
    parser.add_argument("--corpora", action="store_true", help="tars of other projects instead")
    parser.add_argument("--offline", action="store_true", help="only Go modules that are here")
    parser.add_argument("--dir", type=Path, help="for temporary files; a tmpfs is fast")
    arguments = parser.parse_args()
    code: int = trio.run(trio.to_thread.run_sync, run, arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
