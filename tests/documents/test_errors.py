"""Every reason of snapshots has a code, an exit code, and a line in the reference."""

import inspect
import re
from pathlib import Path

import pytest

from lazyfs.cli.main import exit_code_of
from lazyfs.documents import errors
from lazyfs.documents.errors import SnapshotError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md"
CLASSES = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, SnapshotError)
]


@pytest.mark.parametrize("reason", CLASSES)
def test_a_reason_is_documented_with_its_exit_code(reason: type[SnapshotError]) -> None:
    error = reason("what: got, expected", hint="advice", details={"a": 1})
    assert exit_code_of(error) == reason.exit_code
    assert str(error) == "what: got, expected\nadvice"
    assert error.details == {"a": 1}
    row = rf"^\| {reason.exit_code} \| `{reason.code}` \|"
    assert re.search(row, PAGE.read_text(), re.MULTILINE)


def test_codes_are_not_used_twice() -> None:
    codes = [each.code for each in CLASSES if "code" in vars(each)]
    assert len(set(codes)) == len(codes) > 20
