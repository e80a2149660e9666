"""All cases by name."""

from tests.crash.cases import Case
from tests.crash.layout_cases import LAYOUT_CASES
from tests.crash.real_cases import REAL_CASES, possible_runs
from tests.crash.single_cases import SINGLE_CASES
from tests.crash.snapshot_cases import SNAPSHOT_CASES
from tests.crash.store_cases import MOUNT_CASES, STORE_CASES
from tests.support.mounts.mounting import available_drivers, why_no_mounts

CASES: tuple[Case, ...] = (
    *(*STORE_CASES, *MOUNT_CASES, *LAYOUT_CASES, *SNAPSHOT_CASES, *SINGLE_CASES),
    *REAL_CASES,
)


def case_named(name: str) -> Case:
    """Return a case."""
    return next(case for case in CASES if case.name == name)


def possible_cases() -> list[Case]:
    """Return the cases that can be done on this machine."""
    possible: list[Case] = [*STORE_CASES, *LAYOUT_CASES, *SNAPSHOT_CASES, *SINGLE_CASES]
    if why_no_mounts() is None:
        drivers = available_drivers()
        possible += [case for case in MOUNT_CASES if case.driver in drivers]
        possible += possible_runs()
    return possible
