"""What is done to a disk, and how what a loss of power leaves of it is judged."""

import ctypes
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple


class Outcome(Enum):
    """How a state was found; those of ``FAULTS`` must not be."""

    RIGHT = "right"  # all that was asked for, right
    REFUSED = "refused"  # an error of ours, and right the second time
    REPAIRED = "repaired"  # an error of ours, and right after a repair
    WRONG = "wrong"  # other bytes, or another sandbox, than were saved
    BELIEVED = "believed"  # something counts as present that is not
    LOST = "lost"  # what was promised is not there
    STUCK = "stuck"  # nothing works until somebody removes files by hand
    BROKE = "broke"  # an error that is not ours


FAULTS = frozenset(
    {Outcome.WRONG, Outcome.BELIEVED, Outcome.LOST, Outcome.STUCK, Outcome.BROKE},
)


class Verdict(NamedTuple):
    """An outcome, and why."""

    outcome: Outcome
    why: str = ""


RIGHT = Verdict(Outcome.RIGHT)


class Place(NamedTuple):
    """Where a case happens: ``root`` is the disk that loses power, the rest stays."""

    folder: Path

    @property
    def root(self) -> Path:
        """What is recorded."""
        return self.folder / "root"

    @property
    def outside(self) -> Path:
        """Images, and what else is on other machines."""
        return self.folder / "outside"

    def clear(self) -> None:
        """Begin with an empty disk."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(mode=0o700, parents=True)

    def make_disks(self) -> None:
        """Make the filesystems: one for the machine, one that is shared, one far away."""
        for name in ("disk", "shared", "elsewhere"):
            (self.root / name).mkdir(mode=0o700)


Mark = tuple[int, str]
"""What was said in the recording, and after how many events."""


class Case(ABC):
    """One workload; ``name`` says what is done."""

    name: str

    @abstractmethod
    def prepare(self, place: Place) -> None:
        """Make what is there before; it is on the disk."""

    @abstractmethod
    def act(self, place: Place) -> None:
        """Do what is recorded, in a process of its own."""

    @abstractmethod
    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        """Judge what the disk has when the power was lost after the event *at*.

        *marks* are all that were made, those after *at*, too.  *number* counts the states: what
        takes long is done for some.
        """


def mark(text: str) -> None:
    """Say something in the recording: most often, what is promised from here on."""
    mark_it = getattr(ctypes.CDLL(None), "crash_mark", None)
    if mark_it is not None:
        mark_it(text.encode())


def promised(marks: Sequence[Mark], at: int) -> list[str]:
    """Return what was said up to the event *at*."""
    return [text for place, text in marks if place <= at]
