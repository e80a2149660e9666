"""Programs that are started without the keys of the user, and whom they die with."""

import subprocess
import sys
import time

import pytest

from lazyfs.sandbox.specs.keyring import with_new_keyring

DIES_WITH_PARENT = """
import ctypes, sys, time
ctypes.CDLL(None).prctl(1, 9)
print("ready", flush=True)
time.sleep(60)
"""


def test_what_dies_with_its_parent_lives_as_long_as_that() -> None:
    """PR_SET_PDEATHSIG means the thread that started it."""

    def start() -> "subprocess.Popen[bytes]":
        started = subprocess.Popen([sys.executable, "-c", DIES_WITH_PARENT], stdout=subprocess.PIPE)
        assert started.stdout is not None
        started.stdout.readline()
        return started

    process = with_new_keyring(start)
    try:
        time.sleep(0.3)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_and_dies_with_it() -> None:
    code = (
        "import subprocess, sys\n"
        "from lazyfs.sandbox.specs.keyring import with_new_keyring\n"
        "made = with_new_keyring(lambda: subprocess.Popen([sys.executable, '-c', sys.argv[1]]))\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, DIES_WITH_PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"ready\n"
        starter.kill()
        assert starter.stdout.read() == b""  # nobody has it open any more


def test_errors_come_through() -> None:
    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        with_new_keyring(fail)
