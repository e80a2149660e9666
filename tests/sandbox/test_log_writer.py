"""Logs that stay bounded: what is written into them, by a real shell."""

import os
from pathlib import Path

import pytest

from lazyfs.sandbox.runtimes.log_writer import open_writer, wait_written
from tests.support.mounts.mounting import wait_until

LIMIT = 10_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "main.log"


def write(log: Path, data: bytes, *, limit: int = LIMIT, count: int = 3, pieces: int = 0) -> None:
    record = log.with_suffix(".writer")
    with open(open_writer(log, record, limit=limit, count=count), "wb", buffering=0) as pipe:
        for start in range(0, len(data), pieces or len(data) or 1):
            left = data[start : start + (pieces or len(data))]
            while left:
                left = left[pipe.write(left) :]
    wait_written(record)


def kept(log: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(log.parent.glob("main.log*"), reverse=True)]


def test_all_that_fits(log: Path) -> None:
    write(log, b"one\ntwo\n")
    write(log, b"three\n")
    assert kept(log) == [b"one\ntwo\nthree\n"]


@pytest.mark.parametrize("pieces", [0, 7, 4096])
def test_the_newest_is_kept(log: Path, pieces: int) -> None:
    data = b"".join(b"%07d\n" % number for number in range(8000))
    write(log, data, pieces=pieces)
    files = kept(log)
    assert [len(each) for each in files] == [LIMIT, LIMIT, len(data) % LIMIT or LIMIT]
    assert data.endswith(b"".join(files))


def test_one_file_only(log: Path) -> None:
    write(log, b"x" * (2 * LIMIT) + b"end", count=1)
    assert kept(log) == [b"end"]


def test_exactly_full(log: Path) -> None:
    write(log, b"a" * LIMIT)
    write(log, b"b")
    assert kept(log) == [b"a" * LIMIT, b"b"]


def test_what_is_said_can_be_read_at_once(log: Path) -> None:
    record = log.with_suffix(".writer")
    with open(open_writer(log, record, limit=LIMIT, count=2), "wb", buffering=0) as pipe:
        for number in range(3):
            pipe.write(b"%d\n" % number)
            wait_until(lambda: log.exists() and log.stat().st_size == 2 * number + 2)  # noqa: B023
    wait_written(record)


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    """As on a full disk: what is said is lost."""
    log = tmp_path / "no-such-folder" / "main.log"
    record = tmp_path / "record"
    with open(open_writer(log, record, limit=LIMIT, count=2), "wb", buffering=0) as pipe:
        for _ in range(64):
            assert pipe.write(b"x" * 65536)  # more than any pipe holds
    wait_written(record)
    assert not log.exists()


def test_a_log_is_its_owners(log: Path) -> None:
    before = os.umask(0)
    try:
        write(log, b"x" * (LIMIT + 1))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in log.parent.glob("main.log*")} == {0o600}
