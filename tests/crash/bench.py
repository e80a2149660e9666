"""A case recorded, and its states looked at, one after the other."""

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from tests.crash.cases import Case, Outcome, Place, Verdict
from tests.crash.disk import Disk, State, last_state
from tests.crash.recording import Incomplete, Recording, record
from tests.crash.states import all_states

MEMORY = Path("/dev/shm")


class Found(NamedTuple):
    """A state, and how it was found."""

    state: State
    verdict: Verdict


@contextmanager
def opened_place() -> Iterator[Place]:
    """Yield a place that is removed in the end; in memory, where there is some."""
    folder = Path(
        mkdtemp(prefix="lazyfs-crash-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
    )
    try:
        place = Place(folder.resolve())
        place.outside.mkdir()
        (folder / "recorder").mkdir()
        yield place
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def record_case(case: Case, place: Place, fault: str = "") -> Disk:
    """Do a case under the recorder; raises Incomplete where that has not seen all.

    A *fault* is built in; it must be found by order alone, without doubt after another boot.
    """
    place.clear()
    place.make_disks()
    case.prepare(place)
    command = [sys.executable, "-m", "tests.crash.act", case.name, str(place.folder), fault]
    recording = record(place.root, command, place.folder / "recorder", is_same_boot=bool(fault))
    return understood(recording, place)


def understood(recording: Recording, place: Place) -> Disk:
    """Return a recording as a disk, compared with the real tree."""
    disk = Disk(recording)
    copy = place.folder / "copy"
    copy.mkdir()
    try:
        last_state(disk).write(copy)
        differences = list(_differences(copy, place.root))
    finally:
        shutil.rmtree(copy)
    if differences:
        raise Incomplete(", ".join(differences[:10]))
    return disk


def _differences(copy: Path, real: Path) -> Iterator[str]:
    ours = {path.relative_to(copy) for path in copy.rglob("*")}
    theirs = {path.relative_to(real) for path in real.rglob("*")}
    for name in sorted(ours ^ theirs):
        yield f"{name}: {'not there' if name in ours else 'not recorded'}"
    for name in sorted(ours & theirs):
        if (copy / name).is_symlink() or (copy / name).is_dir():
            continue
        if (copy / name).read_bytes() != (real / name).read_bytes():
            yield f"{name}: other bytes"


def look_at_states(
    case: Case, place: Place, disk: Disk, count: int, seed: int, tell: Callable[[Found], None]
) -> int:
    """Judge up to *count* states of a case; return how many there were."""
    number = 0
    for state in all_states(disk, seed):
        if number == count:
            break
        tell(Found(state, judged(case, place, state, number)))
        number += 1
    return number


def judged(case: Case, place: Place, state: State, number: int) -> Verdict:
    """Make a state, and judge it."""
    place.clear()
    state.write(place.root)
    try:
        return case.check(place, state.disk.marks, state.place, number)
    except Exception:
        return Verdict(Outcome.BROKE, traceback.format_exc(limit=-6))
