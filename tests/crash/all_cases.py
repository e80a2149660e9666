"""All cases by name."""

from tests.crash.cases import Case
from tests.crash.layout_cases import LAYOUT_CASES
from tests.crash.snapshot_cases import SNAPSHOT_CASES
from tests.crash.store_cases import MOUNT_CASES, STORE_CASES
from tests.support.mounting import available_drivers

CASES: tuple[Case, ...] = (*STORE_CASES, *MOUNT_CASES, *LAYOUT_CASES, *SNAPSHOT_CASES)


def case_named(name: str) -> Case:
    """Return a case."""
    return next(case for case in CASES if case.name == name)


def possible_cases() -> list[Case]:
    """Return the cases that can be done on this machine."""
    drivers = available_drivers()
    return [
        case
        for case in CASES
        if case not in MOUNT_CASES or case.name.removeprefix("mount, ") in drivers
    ]
