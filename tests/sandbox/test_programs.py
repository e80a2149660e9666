"""Running programs: limits of time, ends, and processes that are not children."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lazyfs.documents.errors import RuntimeFailed
from lazyfs.sandbox.runtimes.programs import (
    TimeExpired,
    kill_processes,
    processes_with,
    reap,
    run_on_terminal,
    run_program,
    spawn_background,
    start_time,
    wait_gone,
)
from tests.support.mounts.mounting import wait_until


def test_what_it_says_and_how_it_ends():
    done = run_program(["sh", "-c", "echo out; echo err >&2; exit 3"], seconds=20)
    assert (done.status, done.out, done.err) == (3, "out\n", "err\n")
    assert run_program(["sh", "-c", "kill -9 $$"], seconds=20).status == -9
    assert run_program(["cat"], seconds=20).out == ""  # there is nothing to read


def test_output_may_go_to_a_file(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        done = run_program(["sh", "-c", "echo out; echo err >&2"], seconds=20, output=file)
    assert (done.out, done.err) == ("", "")
    assert (tmp_path / "log").read_text() == "out\nerr\n"


@pytest.mark.parametrize("words", [["/nothing/there"], ["/etc"], ["true", "a\0b"]])
def test_what_does_not_start(words, tmp_path):
    for call in (lambda: run_program(words, seconds=1), lambda: run_on_terminal(words)):
        with pytest.raises(RuntimeFailed, match="cannot start"):
            call()
    with (tmp_path / "log").open("wb") as file, pytest.raises(RuntimeFailed, match="cannot start"):
        spawn_background(words, file)


def test_time_is_up_for_all_of_its_session():
    marker = f"61.{os.getpid()}"
    begun = time.monotonic()
    with pytest.raises(TimeExpired, match=r"did not finish within 0\.2 s"):
        run_program(["sh", "-c", f"sleep {marker} & sleep {marker}"], seconds=0.2)
    assert time.monotonic() - begun < 60  # it did not wait for the pipe
    wait_until(lambda: not [pid for pid, _ in processes_with(marker) if start_time(pid)])


def test_the_background(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        pid = spawn_background(["sh", "-c", "echo said; exec sleep 62"], file)
    started = start_time(pid)
    assert started is not None
    assert os.getsid(pid) == pid
    assert not wait_gone([pid], 0.05)
    wait_until(lambda: (tmp_path / "log").read_text() == "said\n")
    assert kill_processes([pid])
    assert start_time(pid) is None  # a zombie has ended
    reap(pid)
    reap(pid)
    assert wait_gone([pid], 0)
    assert kill_processes([pid])


def test_start_times_name_processes():
    assert start_time(os.getpid()) == start_time(os.getpid())
    assert start_time(2**22 + 1) is None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert start_time(child.pid) >= start_time(os.getpid())
        child.kill()


def test_processes_are_found_by_a_whole_word():
    marker = f"63.{os.getpid()}"
    with subprocess.Popen(["sleep", marker]) as child:
        try:
            wait_until(lambda: list(processes_with(marker)))
            assert list(processes_with(marker)) == [(child.pid, ["sleep", marker, ""])]
            assert list(processes_with(marker[:-1])) == []
        finally:
            child.kill()


def test_a_signal_is_passed_on_to_what_has_the_terminal(tmp_path):
    script = "trap 'exit 9' TERM; : >ready; while :; do sleep 0.02; done"
    code = (
        "import sys; from lazyfs.sandbox.runtimes.programs import run_on_terminal; "
        "sys.exit(run_on_terminal(sys.argv[1:]))"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, "-c", code, "sh", "-c", script], cwd=tmp_path, env=environment
    ) as process:
        wait_until(lambda: (tmp_path / "ready").exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 9


def test_exit_statuses_on_the_terminal_are_a_shells():
    assert run_on_terminal(["sh", "-c", "exit 4"]) == 4
    assert run_on_terminal(["sh", "-c", "kill -9 $$"]) == 137


def test_streams_of_a_pipe_are_apart(tmp_path):
    """What is done to one, as gVisor does, is not done to the other."""
    code = "import os, sys; os.set_blocking(1, False); sys.exit(0 if os.get_blocking(2) else 7)"
    reading, writing = os.pipe()
    with open(reading, "rb") as said, open(writing, "wb", buffering=0) as output:
        done = run_program([sys.executable, "-c", code], seconds=30, output=output)
        assert done.status == 0
        output.close()
        assert said.read() == b"", "nobody has it open any more"


def test_a_pipe_that_nobody_reads_is_no_wait(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as output:
        assert run_program(["true"], seconds=30, output=output).status == 0
