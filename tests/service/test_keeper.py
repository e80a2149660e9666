"""The keeper's program, with toys in the place of servers."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.service.processes import keeper

SECONDS = 30
# Says what it was started with, and lives as its first argument wants it to.
SERVER = """
import os, sys, time
how, log, link, history = sys.argv[1:]
if link == "give-up":
    open(log, "a").write("gave up " + history)
    sys.exit()
with open(log, "a") as file:
    print(history.split(",")[0], file=file)
keeper = os.read(int(link), 16)
assert int(keeper) == os.getppid()
match how:
    case "die":
        sys.exit(1)
    case "serve and die":
        os.write(int(link), b"S")
    case "end":
        os.write(int(link), b"S")
        os.write(int(link), b"E")
        os.read(int(link), 16)
"""


@pytest.fixture
def link():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(SECONDS)
        yield ours, theirs


def run_keeper(link, how: str, log: Path, *, limit: int = 3, fuse: int | None = None):
    """Start a keeper at the other end of *link*; *fuse* is what it takes for the connection."""
    _, theirs = link
    keep = os.open("/dev/null", os.O_RDONLY) if fuse is None else fuse
    script = log.with_suffix(".py")
    script.write_text(SERVER)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno()), str(keep), str(limit),
         "0", "/mnt", sys.executable, str(script), how, str(log)],
        pass_fds=(theirs.fileno(), keep), stderr=subprocess.PIPE,
    )  # fmt: skip
    theirs.close()
    if fuse is None:
        os.close(keep)
    return process


def finish(process) -> str:
    try:
        _, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.communicate()
    return said.decode()


def test_end_is_the_end(link, tmp_path):
    process = run_keeper(link, "die", tmp_path / "log")
    assert int(link[0].recv(16)) == process.pid
    link[0].send(keeper.END)
    assert finish(process) == ""
    assert not (tmp_path / "log").exists()


def test_a_server_that_dies_is_succeeded_until_one_ends(link, tmp_path):
    process = run_keeper(link, "end", tmp_path / "log")
    link[0].send(keeper.SERVING)
    link[0].close()
    said = finish(process)
    assert said.count("/mnt: the server died; starting another") == 1
    assert (tmp_path / "log").read_text() == "1\n"


def test_a_planned_end_is_not_counted(link, tmp_path):
    process = run_keeper(link, "end", tmp_path / "log", limit=0)
    link[0].send(keeper.SERVING)
    link[0].send(keeper.PLANNED)
    link[0].close()
    assert finish(process) == ""
    assert (tmp_path / "log").read_text() == "1\n"


def test_giving_up(link, tmp_path):
    process = run_keeper(link, "serve and die", tmp_path / "log", limit=2)
    link[0].send(keeper.SERVING)
    link[0].close()
    said = finish(process)
    assert said.count("starting another") == 2
    assert "died 3 times in a minute; unmounting" in said
    assert (tmp_path / "log").read_text() == "1\n2\ngave up /mnt"


def test_nothing_is_started_for_a_connection_that_is_gone(link, tmp_path):
    reading, writing = os.pipe()
    os.close(writing)  # its end shows as an event that nobody asked for, as with FUSE
    try:
        process = run_keeper(link, "die", tmp_path / "log", fuse=reading)
        link[0].close()
        assert finish(process) == ""
    finally:
        os.close(reading)
    assert not (tmp_path / "log").exists()


def test_a_successor_that_does_not_serve_is_killed(link, monkeypatch):
    monkeypatch.setattr(keeper, "READY_SECONDS", 0.05)
    ours, theirs = link
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], pass_fds=[theirs.fileno()]
    ) as child:
        theirs.close()
        assert keeper.wait_end(ours.fileno(), child.pid) == (b"", False)
        assert child.wait(SECONDS) == -signal.SIGKILL


def test_words(link):
    ours, theirs = link
    for words, expected in (
        ([keeper.SERVING, keeper.END], (keeper.END, True)),
        ([keeper.END], (keeper.END, False)),
    ):
        for word in words:
            theirs.send(word)
        assert keeper.wait_end(ours.fileno(), 0) == expected
    theirs.send(keeper.SERVING)
    theirs.send(keeper.PLANNED)
    theirs.close()
    assert keeper.wait_end(ours.fileno(), 0) == (keeper.PLANNED, True)
    assert select.select([ours], [], [], 0)[0]
