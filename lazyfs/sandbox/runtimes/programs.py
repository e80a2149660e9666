"""Running other programs: to their end and within a time limit, and finding what they left.

A program that leaves processes behind must not be given pipes: they would keep them open, and
nobody could tell its end from theirs.
"""

import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from lazyfs.documents.errors import RuntimeFailed
from lazyfs.interrupts import is_interrupt_waiting, uninterrupted

OUTPUT_LIMIT = 1 << 20  # bytes of what a program says that are looked at
# Passed on to what runs on this terminal.  SIGINT comes from the terminal to both.
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
INSIST_SECONDS = 1.0  # between two interrupts that mean it
LOOK_SECONDS = 1.0
KILL_SECONDS = 10.0  # for processes to end that were killed


Spawning = Callable[[Callable[[], Any]], Any]  # calls what starts a program; returns what that does


class Done(msgspec.Struct, frozen=True):
    """How a program ended: its exit status (negative: the signal), and what it said."""

    status: int
    out: str
    err: str


class TimeExpired(RuntimeFailed):
    """A program did not end in time, and was killed."""


def run_program(
    words: Sequence[str | Path],
    *,
    seconds: float,
    output: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Done:
    """Run a program to its end, in a session of its own, with nothing to read.

    What it says comes back, or goes to the file *output*.  Raises RuntimeFailed if it cannot be
    started, TimeExpired when time is up: it and its session are killed then.
    """
    stream = subprocess.PIPE if output is None else output
    command = [os.fspath(word) for word in words]
    with uninterrupted() as held, _opened_again(output) as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream if errors is None else errors,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:
            raise _no_start(command, exc) from exc
        try:
            with held.opened():
                # Without pipes, communicate would look for the end at longer and longer intervals.
                if output is not None and not wait_gone([process.pid], seconds):
                    raise subprocess.TimeoutExpired(command, seconds)
                out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as exc:
            _end_session(process)
            raise TimeExpired(
                f"{' '.join(command)[:300]} did not finish within {seconds:g} s"
            ) from exc
        except BaseException:
            _end_session(process)
            raise
    return Done(process.returncode, _text(out), _text(err))


@contextmanager
def _opened_again(output: IO[bytes] | None) -> Iterator[int | None]:
    """Give the same pipe for standard error, not shared with standard output; None for no pipe.

    gVisor makes each stream that it inherits non-blocking and hides that from its programs, by
    what it finds.  Of two names for one it finds the second non-blocking already: programs got
    EAGAIN when the pipe was full.
    """
    if output is None or not stat.S_ISFIFO(os.fstat(output.fileno()).st_mode):
        yield None
        return
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK  # it would wait for a reader that is gone
    try:
        fd = os.open(f"/proc/self/fd/{output.fileno()}", flags)
    except OSError:
        yield None
        return
    try:
        os.set_blocking(fd, True)
        yield fd
    finally:
        os.close(fd)


def run_on_terminal(
    words: Sequence[str | Path],
    *,
    spawning: Spawning = lambda call: call(),
) -> int:
    """Run a program with this process's own terminal; return its exit status as a shell says it.

    An interrupt is the program's to act on; two within a second end it, since the first process of
    a container need not listen to any, and raise KeyboardInterrupt.  Other signals that would end
    us are passed on.  What came before we were asked is for us.  *spawning* calls what starts it.
    """
    if is_interrupt_waiting():
        raise KeyboardInterrupt
    command = [os.fspath(word) for word in words]
    signals = _Signals()
    handlers: dict[int, Any] = {signal.SIGINT: signals.interrupt}
    handlers |= dict.fromkeys(FORWARDED, signals.forward)
    before = {}
    try:
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
    except ValueError:
        pass  # not the main thread: it gets no signals
    try:
        try:
            process: subprocess.Popen[bytes] = spawning(lambda: subprocess.Popen(command))
        except (OSError, ValueError) as exc:
            raise _no_start(command, exc) from exc
        signals.begin(process)
        while not wait_gone([process.pid], LOOK_SECONDS):
            pass  # a signal that came just before we waited is handled now
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals.is_meant:
        raise KeyboardInterrupt
    return status if status >= 0 else 128 - status


def _no_start(command: list[str], exc: OSError | ValueError) -> RuntimeFailed:
    reason = exc.strerror if isinstance(exc, OSError) else exc  # a null byte is no OSError
    return RuntimeFailed(f"cannot start {command[0]}: {reason}")


class _Signals:
    """What becomes of signals while a program has the terminal.

    Handlers, and no exceptions: one that came between the program's end and its being noticed
    would lose the exit status.  What comes before the program runs is passed on once it does.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._last = -INSIST_SECONDS
        self.is_meant = False

    def begin(self, process: "subprocess.Popen[bytes]") -> None:
        """Say that the program runs."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def forward(self, number: int, frame: object) -> None:
        """Pass a signal on."""
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)

    def interrupt(self, number: int, frame: object) -> None:
        """End the program at the second interrupt, kill it at the third."""
        if self._process is None:
            self._early.append(number)
            return
        before, self._last = self._last, time.monotonic()
        if self.is_meant:
            self._process.kill()
        elif self._last - before < INSIST_SECONDS:
            self.is_meant = True
            self._process.terminate()


def spawn_background(words: Sequence[str | Path], output: IO[bytes]) -> int:
    """Start a program that may outlive this process; return its number.

    It has a session of its own, nothing to read, and *output* for what it says.  Raises
    RuntimeFailed.
    """
    command = [os.fspath(word) for word in words]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
        (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
    ]
    try:
        return os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setsid=True)
    except (OSError, ValueError) as exc:
        raise _no_start(command, exc) from exc


def reap(pid: int) -> None:
    """Take note of the end of a process, if it is our child and has ended."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # somebody else's: another command started it


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass
    process.kill()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    process.wait()


def _text(data: bytes | None) -> str:
    return (data or b"")[:OUTPUT_LIMIT].decode("utf-8", "replace")


# Processes that are not our children


def start_time(pid: int) -> int | None:
    """Return when a process began, in the kernel's ticks; None if it has ended.

    Number and start time together name a process: numbers come again.  A zombie has ended.
    """
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = data[data.rfind(b")") + 2 :].split()  # proc(5): from the third, "state"
    if len(fields) < 20 or fields[0] in (b"Z", b"X", b"x"):
        return None
    return int(fields[19])


def wait_gone(pids: Sequence[int], seconds: float) -> bool:
    """Wait until all of these processes have ended; say whether they have."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            left = max(0.0, deadline - time.monotonic())
            if not poller.poll(left * 1000):
                return False
        finally:
            os.close(descriptor)
    return True


def processes_with(word: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and words of each process that has *word* in its command line, but ours."""
    wanted = os.fsencode(word)
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in words:
            yield int(name), [os.fsdecode(each) for each in words]


def kill_processes(pids: Sequence[int]) -> bool:
    """Kill these processes and wait for their ends; say whether all have ended."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    return wait_gone(pids, KILL_SECONDS)
