"""What the recorder runs: one case, or one with a fault built in."""

import sys
from pathlib import Path

from tests.crash.all_cases import case_named
from tests.crash.cases import Place


def main(name: str, folder: str, fault: str = "") -> None:
    """Do the case *name*, with *fault* if that is not empty."""
    if fault:
        from tests.crash.built_in_faults import FAULTS

        FAULTS[fault]()
    case_named(name).act(Place(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
