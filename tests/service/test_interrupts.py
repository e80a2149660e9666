"""Interrupts: the first one counts, it comes where it loses nothing, and no other one follows."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from lazyfs.interrupts import (
    REQUESTS,
    Interrupts,
    is_interrupt_waiting,
    run_trio,
    uninterrupted,
)
from lazyfs.sandbox.runtimes.programs import run_program
from lazyfs.sandbox.threads import Threads, wait_all
from lazyfs.service.workload import Command, run_for
from tests.support.mounts.mounting import ROOT, SECONDS

LINES = 120  # starting a program takes as many


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    """What a command has; put away afterwards."""
    before = {number: signal.getsignal(number) for number in (*REQUESTS, signal.SIGALRM)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    interrupts = Interrupts()
    interrupts.install()
    yield interrupts
    for number, handler in before.items():
        signal.signal(number, handler)


def test_they_wait_for_the_end_of_a_block() -> None:
    handler = signal.getsignal(signal.SIGINT)
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():  # noqa: PT012
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert is_interrupt_waiting()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is handler
    assert not is_interrupt_waiting()


def test_they_come_where_a_block_is_opened() -> None:
    done = []
    with uninterrupted() as held:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), held.opened():
            done.append("opened")
        assert signal.getsignal(signal.SIGINT) == held.note
        with held.opened():
            done.append("again")
        with pytest.raises(KeyboardInterrupt), held.opened():
            signal.raise_signal(signal.SIGINT)
    assert done == ["again"]


def test_other_threads_are_not_interrupted() -> None:
    seen = []

    def look() -> None:
        with uninterrupted() as held, held.opened():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_the_first_one_counts(interrupts: Interrupts) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    for number in REQUESTS:
        signal.raise_signal(number)
    assert interrupts.came == [signal.SIGTERM, *REQUESTS]


def test_what_is_to_be_ignored_is(interrupts: Interrupts) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    Interrupts().install()
    signal.raise_signal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt), uninterrupted():  # noqa: PT012
        signal.raise_signal(signal.SIGHUP)
        assert not is_interrupt_waiting()
        signal.raise_signal(signal.SIGTERM)


def test_one_that_a_destructor_swallows_comes_again(interrupts: Interrupts) -> None:
    class Unlucky:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    unlucky = Unlucky()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        del unlucky
        signal.pause()
    assert interrupts.came == [signal.SIGTERM]


@pytest.mark.parametrize("number", REQUESTS)
def test_under_trio_they_come_at_checkpoints(interrupts: Interrupts, number: int) -> None:
    import trio

    done = []

    async def work(name: str) -> None:
        trio.lowlevel.spawn_system_task(say)
        try:
            await trio.sleep(SECONDS)
        finally:
            signal.raise_signal(number)
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            done.append(name)

    async def say() -> None:
        signal.raise_signal(number)  # trio's own tasks are never interrupted

    with pytest.raises(KeyboardInterrupt):
        run_trio(work, "cleaned")
    assert done == ["cleaned"]
    assert interrupts.came == [number, number]
    assert signal.getsignal(signal.SIGINT) == interrupts.interrupt


def test_trio_without_an_interrupt(interrupts: Interrupts) -> None:
    async def work(number: int) -> int:
        return number + 1

    assert run_trio(work, 1) == 2
    assert signal.getsignal(signal.SIGINT) == interrupts.interrupt
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize("work", [run_for, run_program])
def test_no_line_loses_a_process(work, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt at each line of what starts, waits for and ends a program."""
    started = []
    popen = subprocess.Popen

    def start(*arguments, **options) -> subprocess.Popen:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    hooked = (sys.unraisablehook, [signal.getsignal(each) for each in (*REQUESTS, signal.SIGALRM)])
    for line in range(1, LINES, 2):
        left = line

        def trace(frame: FrameType, event: str, argument: object):
            nonlocal left
            if frame.f_code.co_filename.endswith("interrupts.py"):
                return None  # its own are looked at by the tests above
            if event == "line":
                left -= 1
                if left in (0, -1):  # and another one at the next line
                    signal.raise_signal(signal.SIGTERM)
            return trace

        Interrupts().install()
        sys.settrace(trace)
        try:
            if work is run_for:
                run_for(Command(("sleep",), ("0.01",)), SECONDS)
            else:
                run_program(["sleep", "0.01"], seconds=SECONDS)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert all(each.returncode is not None for each in started), line
        started.clear()
    sys.unraisablehook = hooked[0]
    for number, handler in zip((*REQUESTS, signal.SIGALRM), hooked[1], strict=True):
        signal.signal(number, handler)


def test_threads_end_before_an_interrupt_goes_on() -> None:
    told = threading.Event()
    ended = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(told.wait(SECONDS))

    with pytest.raises(KeyboardInterrupt), Threads(2, give_up=told.set) as pool:
        wait_all([pool.submit(work)])
    assert ended == [True]


@pytest.mark.parametrize("number", REQUESTS)
def test_a_command_ends_by_what_ended_it(number: int, tmp_path) -> None:
    script = (
        "import click, os, signal, sys\n"
        "from lazyfs.cli import main as module\n"
        "@module.cli.command('wait')\n"
        "def wait():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        [signal.raise_signal(each) for each in (15, 1, 2)]\n"
        "        print('cleaned', flush=True)\n"
        "module.cli.get_command = lambda ctx, name: wait\n"
        "module.main(['wait'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=SECONDS)[0] == "cleaned\n"
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
