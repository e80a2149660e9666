"""Tars compared one after the other, and counted."""

import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.differential.compare import differences, facts_of, reason
from tools.differential.oracle import Oracle, OracleFailed
from tools.differential.ours import ROUTES, tree_of
from tools.differential.peers import PEERS, is_here

SAME = "same"
REFUSED = "refused by all"
LISTED_ONLY = "listed differences only"
UNEXPLAINED = "not explained"
OUTCOMES = (SAME, REFUSED, LISTED_ONLY, UNEXPLAINED)


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
        self.counts["images"] += 1
        self.counts["tars"] += len(layers)
        try:
            outcome = self._compare(name, layers)
        except OracleFailed as exc:
            self.faults.append(f"{name}: {exc}")
            outcome = UNEXPLAINED
        self.counts[outcome] += 1

    def _compare(self, name: str, layers: Sequence[bytes]) -> str:
        theirs = self._oracle.tree_of(layers)
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
        if is_fault:
            return UNEXPLAINED
        if reasons:
            return LISTED_ONLY
        return REFUSED if is_refused else SAME

    def ask_peers(self, tar: bytes) -> None:
        """Count which of the other readers agree with a plain mount of *tar*."""
        ours = tree_of([tar], ROUTES["plain"], self._folder)
        for peer, is_same in PEERS.items():
            if not is_here(peer):
                continue
            try:
                word = "same" if is_same(tar, ours, self._folder) else "other"
            except subprocess.TimeoutExpired:
                word = "too slow"
            self.peers[f"{peer}: {word}"] += 1

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
