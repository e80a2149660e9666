"""Compare lazyfs with containerd, umoci, GNU tar, bsdtar and tarfile over many tars.

Exit code 1 where a difference is none of those that are listed.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import trio

from tools.differential.compare import differences, facts_of, reason
from tools.differential.corpora import fetch_all, tars_in
from tools.differential.oracle import NoOracle, Oracle, build_oracle
from tools.differential.ours import ROUTES, tree_of
from tools.differential.peers import READERS, agrees, by_umoci, is_here
from tools.differential.tars import make_image

PEERS_EVERY = 20
"""Every so many tars the other readers are asked, too: each is a process."""


class Run:
    """Counts, and what is not explained."""

    def __init__(self, oracle: Oracle, folder: Path, routes: Sequence[str]) -> None:
        self._oracle = oracle
        self._folder = folder
        self._routes = routes
        self._started = int(time.time())
        self.counts: Counter[str] = Counter()
        self.listed: Counter[str] = Counter()
        self.peers: Counter[str] = Counter()
        self.faults: list[str] = []

    def check(self, name: str, layers: Sequence[bytes]) -> None:
        """Compare what containerd makes of *layers* with each route of ours."""
        theirs = self._oracle.tree_of(layers)
        self.counts["images"] += 1
        self.counts["tars"] += len(layers)
        facts = None
        reasons: set[str] = set()
        is_fault = is_refused = False
        for route in self._routes:
            ours = tree_of(layers, ROUTES[route], self._folder)
            is_refused = is_refused or bool(ours.refusal and theirs.refusal)
            for each in differences(ours, theirs):
                facts = facts or facts_of(layers, self._started)
                words = reason(facts, each)
                if words is None:
                    is_fault = True
                    self.faults.append(f"{name}, {route}: {each}")
                else:
                    reasons.add(words)
        self.listed.update(reasons)
        outcome = "refused by all" if is_refused else "same"
        if reasons:
            outcome = "listed differences only"
        self.counts["not explained" if is_fault else outcome] += 1

    def ask_peers(self, tar: bytes) -> None:
        """Count which of the other readers agree with a plain mount of *tar*."""
        ours = tree_of([tar], ROUTES["plain"], self._folder)
        for peer, read in READERS.items():
            if is_here(peer):
                word = "same" if agrees(read(tar, self._folder), ours) else "other"
                self.peers[f"{peer}: {word}"] += 1
        if is_here("umoci"):
            theirs = by_umoci(tar, self._folder / "umoci")
            fields = ("refusal", "name", "kind", "content", "link")
            is_same = not any(each.field in fields for each in differences(ours, theirs))
            self.peers[f"umoci: {'same' if is_same else 'other'}"] += 1

    def report(self) -> None:
        """Print all of it."""
        for title, counts in (
            ("", self.counts),
            ("images with a listed difference (docs/reference/formats.md)", self.listed),
            ("other readers, where they were asked", self.peers),
        ):
            if title:
                print(f"\n{title}")
            for words, count in sorted(counts.items(), key=lambda each: -each[1]):
                print(f"{count:8} {words}")
        for fault in self.faults[:50]:
            print(fault)


def generated(first: int, count: int) -> Iterator[tuple[str, Sequence[bytes]]]:
    """Yield images of as many tars as wanted, or a few more."""
    seed = first
    while count > 0:
        layers = make_image(seed).layers
        yield f"seed {seed}", layers
        seed += 1
        count -= len(layers)


def collected(folder: Path) -> Iterator[tuple[str, Sequence[bytes]]]:
    """Yield the tars of other projects, each as an image."""
    for corpus, place in fetch_all(folder):
        found = list(tars_in(place)) if place is not None else []
        print(f"{corpus}: {len(found)} tars" if place else f"{corpus}: not to be had here")
        for name, tar in found:
            yield f"{corpus}, {name}", [tar]


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
            images: Iterable[tuple[str, Sequence[bytes]]]
            images = generated(arguments.seed, arguments.tars)
            if arguments.corpora:
                images = collected(folder / "corpora")
            for number, (words, layers) in enumerate(images):
                here.check(words, layers)
                if number % PEERS_EVERY == 0:
                    here.ask_peers(layers[0])
                if number % 500 == 499:
                    print(f"{here.counts['tars']} tars …", flush=True)
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
