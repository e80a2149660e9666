"""``make crash``: thousands of states that a loss of power may leave, each opened again.

Prints how the states of each case were found, and ends with 1 where one was found as it must not
be, or where there were fewer than ``LEAST``.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.crash.all_cases import case_named, possible_cases
from tests.crash.bench import Found, look_at_states, opened_place, record_case
from tests.crash.cases import FAULTS, Outcome
from tests.crash.recording import library, remove_library, why_no_recorder

LEAST = 2000
STATES = 150  # of each case
TOLD = 5  # faults of each case


class Task(NamedTuple):
    """A case to be done, with how many states, and where the first fault's tree is to be kept."""

    name: str
    count: int
    seed: int
    keep: Path | None


class Report(NamedTuple):
    """What became of a task: events, outcomes by name, and words about faults."""

    name: str
    events: int
    outcomes: dict[str, int]
    faults: list[str]
    seconds: float


def do(task: Task) -> Report:
    """Record a case and look at its states."""
    logging.disable()  # that chunks were damaged is what is wanted here
    begun = time.monotonic()
    case = case_named(task.name)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    with opened_place() as place:
        disk = record_case(case, place)

        def tell(found: Found) -> None:
            outcomes[found.verdict.outcome.value] += 1
            if found.verdict.outcome not in FAULTS:
                return
            faults.append(
                f"{found.verdict.outcome.value}: {found.verdict.why}\n"
                f"    {found.state.story}\n    {disk.events[found.state.place]}"
            )
            if task.keep is not None and len(faults) == 1:
                target = task.keep / task.name.replace(" ", "-")
                target.mkdir(parents=True)
                found.state.write(target)

        look_at_states(case, place, disk, task.count, task.seed, tell)
    seconds = time.monotonic() - begun
    return Report(task.name, len(disk.events), dict(outcomes), faults, seconds)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases; all that are possible here")
    parser.add_argument("--states", type=int, default=STATES, help="of each case, at most")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="a folder for the first bad tree of each case")
    words = parser.parse_args(arguments)
    if (reason := why_no_recorder()) is not None:
        print(f"crash: nothing can be recorded: {reason}", file=sys.stderr)
        return 1
    names = words.cases or [case.name for case in possible_cases()]
    tasks = [Task(name, words.states, words.seed, words.keep) for name in names]
    library()  # before there are others that would compile it, too
    total: Counter[str] = Counter()
    try:
        columns = [outcome.value for outcome in Outcome]
        print(f"{'case':24} events states {' '.join(f'{each:>8}' for each in columns)}      s")
        with multiprocessing.get_context("fork").Pool(words.jobs, maxtasksperchild=1) as pool:
            for report in pool.imap(do, tasks):
                _show(report, columns)
                total.update(report.outcomes)
    finally:
        remove_library()
    states = total.total()
    numbers = " ".join(f"{total[each]:8}" for each in columns)
    print(f"{'all':24}        {states:6} {numbers}")
    bad = sum(total[outcome.value] for outcome in FAULTS)
    if bad:
        print(f"crash: {bad} states were found as they must not be", file=sys.stderr)
    if not words.cases and words.states >= STATES and states < LEAST:
        print(f"crash: got {states} states, expected {LEAST} at least", file=sys.stderr)
        return 1
    return 1 if bad else 0


def _show(report: Report, columns: Sequence[str]) -> None:
    states = sum(report.outcomes.values())
    numbers = " ".join(f"{report.outcomes.get(each, 0):8}" for each in columns)
    print(f"{report.name:24} {report.events:6} {states:6} {numbers} {report.seconds:6.1f}")
    for text in report.faults[:TOLD]:
        print(f"  {text}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
