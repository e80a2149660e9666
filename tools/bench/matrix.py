"""Which cells a matrix has, and how often each is measured within a stated time.  Pure."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_RUNS = 5
START_SECONDS = 4.0  # a mount with a command, and what is cleaned up around it
STARTS = 8  # mounts of a run that read no more than a command does
READS = 2.5  # what its other mounts fetch, in images
UNPACK_RATE = 25e6  # compressed bytes a second: slow machines, not fast ones
LOCAL_RATE = 60e6  # loopback, with all that decoding costs
PULLERS = 2


@dataclass
class Cell:
    """One image over one link; ``seconds`` is a guess at what a run takes."""

    image: str
    link: str
    seconds: float
    runs: int = 1


def plan(
    sizes: Mapping[str, float], links: Sequence[tuple[str, float, float]], seconds: float
) -> list[Cell]:
    """Return the cells, one run each at least, more of the short ones while all fit in *seconds*.

    *sizes* are the compressed bytes of the images; *links* are (name, round-trip seconds, bytes a
    second, 0 for unlimited).
    """
    cells = [
        Cell(image, link, _run_seconds(size, round_trip, rate))
        for (image, size), (link, round_trip, rate) in itertools.product(sizes.items(), links)
    ]
    left = seconds - sum(cell.seconds for cell in cells)
    while True:
        fitting = [cell for cell in cells if cell.runs < MAX_RUNS and cell.seconds <= left]
        if not fitting:
            return cells
        cell = min(fitting, key=lambda cell: (cell.runs, cell.seconds))
        cell.runs += 1
        left -= cell.seconds


def _run_seconds(size: float, round_trip: float, rate: float) -> float:
    transfer = size / (rate or LOCAL_RATE)
    starts = STARTS * (START_SECONDS + 30 * round_trip + min(size / 8, 6e6) / (rate or LOCAL_RATE))
    return starts + (PULLERS + READS) * transfer + PULLERS * size / UNPACK_RATE
