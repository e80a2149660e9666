"""The serving process: connections, children, its end.  The work is a toy's."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from functools import partial

import pytest

from lazyfs.errors import NotFound
from lazyfs.service import handover
from lazyfs.service.failures import ServerBug, ServerLost
from lazyfs.service.handover import CONTROL_SOCKET, hand_over, receive_message
from lazyfs.service.standing import build, standing
from lazyfs.service.warm import MAX_CHILDREN
from tests.support.mounting import ROOT, SECONDS, needs_root, wait_until
from tests.support.serving import children_of, is_listened_to

SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from lazyfs.errors import NotFound
from lazyfs.service.warm import WarmService, listening

folder = Path(sys.argv[1])

def work(arguments, confirm):
    match arguments["do"]:
        case "confirm":
            confirm(arguments["mountpoint"])
        case "say":
            os.write(2, b"said")
            Path("said").write_text(json.dumps(
                [os.getcwd(), dict(os.environ), os.umask(0), os.getsid(0) == os.getpid(),
                 time.tzname[0]]))
            confirm("/said")
        case "raise":
            raise NotFound("what: got none", hint="look")
        case "bug":
            raise RuntimeError("no idea")
        case "die":
            os._exit(9)
        case "wait":
            try:
                (folder / "waiting").touch()
                signal.pause()
            except KeyboardInterrupt:
                (folder / "interrupted").touch()
                raise
        case "late":
            heard, say = os.pipe()
            signal.signal(signal.SIGINT, lambda *_: os.write(say, b"x"))
            (folder / "waiting").touch()
            os.read(heard, 1)
            try:
                confirm("/late")
            except BaseException as error:
                (folder / "late").write_text(type(error).__name__)
                raise

assert threading.active_count() == 1
options = json.loads(sys.argv[2])
with listening(folder / "control.sock") as listener:
    WarmService(listener, work, **options).run()
"""


class Toy:
    """A serving process whose folder is *folder*."""

    def __init__(self, folder, *, is_known_by_path=True, **options) -> None:
        self.folder = folder
        self.log = folder / "log"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(folder), json.dumps(options)],
                stderr=stderr, cwd=ROOT,
            )  # fmt: skip
        self.path = folder / CONTROL_SOCKET
        is_ready = partial(is_listened_to, self.path) if is_known_by_path else self.path.exists
        wait_until(lambda: self.process.poll() is not None or is_ready())
        assert self.process.poll() is None, self.log.read_text()

    def ask(self, **arguments) -> str | None:
        return hand_over(self.folder, arguments, {"WHO": "client \udcff"})

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        connection.connect(str(self.path))
        return connection

    def wait_childless(self) -> None:
        wait_until(lambda: not children_of(self.process.pid))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        self.process.wait(SECONDS)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """The machine may be busy; what the limit is for has its own test."""
    monkeypatch.setattr(handover, "PATIENCE_SECONDS", SECONDS)


@pytest.fixture
def toy(tmp_path):
    toy = Toy(tmp_path)
    yield toy
    toy.close()
    assert toy.process.returncode in (0, -signal.SIGKILL), toy.log.read_text()
    assert "Traceback" not in toy.log.read_text()


def test_a_mount_that_is_made(toy):
    assert toy.ask(do="confirm", mountpoint="/mnt/\udcfe") == "/mnt/\udcfe"
    assert toy.path.stat().st_mode & 0o777 == 0o600


def test_the_child_takes_the_place_of_its_client(toy, tmp_path, capfd, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    previous = os.umask(0o027)
    try:
        environment = {"WHO": "client", "TZ": "XYZ-3"}
        assert hand_over(tmp_path, {"do": "say"}, environment) == "/said"
    finally:
        os.umask(previous)
    assert capfd.readouterr().err == "said"
    said = json.loads((here / "said").read_text())
    assert said == [str(here), environment, 0o027, True, "XYZ"]


def test_errors_come_back(toy):
    with pytest.raises(NotFound, match="got none") as caught:
        toy.ask(do="raise")
    assert caught.value.hint == "look"
    with pytest.raises(ServerBug, match="RuntimeError: no idea"):
        toy.ask(do="bug")
    with pytest.raises(ServerLost):
        toy.ask(do="die")
    with pytest.raises(ServerLost):
        toy.ask(do="nothing")
    assert toy.ask(do="confirm", mountpoint="/still") == "/still"


def test_a_bug_shows_its_traceback_when_asked(toy, capfd):
    with pytest.raises(ServerBug):
        toy.ask(do="bug", verbosity=1)
    assert "Traceback" in capfd.readouterr().err


def test_many_at_once(toy):
    answers = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(toy.ask(do="confirm", mountpoint=f"/{n}"))
        )
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(answers) == sorted(f"/{n}" for n in range(12))


def test_nothing_is_kept_of_a_connection(toy):
    toy.ask(do="confirm", mountpoint="/a")
    toy.wait_childless()
    before = os.listdir(f"/proc/{toy.process.pid}/fd")
    for _ in range(10):
        toy.ask(do="confirm", mountpoint="/a")
        toy.connect().close()
    toy.wait_childless()
    assert len(os.listdir(f"/proc/{toy.process.pid}/fd")) == len(before)


@pytest.fixture
def place():
    """What a client passes: its working directory, and its standard error."""
    here = os.open(".", os.O_PATH)
    yield [here, 2]
    os.close(here)


def asked(**changes) -> bytes:
    request = {
        "type": "mount", "umask": 0o22, "environment": {},
        "arguments": {"do": "confirm", "mountpoint": "/x"},
    }  # fmt: skip
    return json.dumps(request | changes).encode() + b"\n"


def ask_by_hand(toy, data: bytes, descriptors) -> dict | None:
    """Send *data* as a client does; return the answer."""
    with toy.connect() as connection, connection.makefile("rb") as stream:
        assert receive_message(stream)["type"] == "hello"
        socket.send_fds(connection, [data], descriptors)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            return receive_message(stream)
    return None


@pytest.mark.parametrize(
    "data",
    [b"\n", b"[]\n", b"\xff\xfe\n", b"[" * 60000 + b"\n", b"x", asked(type="dance"), asked()[:-1]],
    ids=range(7),
)
def test_nonsense_gets_no_answer(toy, place, data):
    assert ask_by_hand(toy, data, place) is None
    assert toy.ask(do="confirm", mountpoint="/still") == "/still"


def test_who_passes_no_descriptors_gets_no_answer(toy, place):
    assert ask_by_hand(toy, asked(), place[:1]) is None
    assert toy.ask(do="confirm", mountpoint="/still") == "/still"


# Clients that go away


def test_a_client_that_goes_interrupts_the_work(toy, tmp_path, place):
    with toy.connect() as connection:
        socket.send_fds(connection, [asked(arguments={"do": "wait"})], place)
        wait_until((tmp_path / "waiting").exists)
        assert children_of(toy.process.pid)
    wait_until((tmp_path / "interrupted").exists)
    toy.wait_childless()


def test_a_client_that_is_interrupted_waits_until_the_work_is_undone(toy, tmp_path):
    script = (
        "import sys; from pathlib import Path; from lazyfs.service.handover import hand_over;"
        "hand_over(Path(sys.argv[1]), {'do': 'wait'}, {})"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE
    )
    wait_until((tmp_path / "waiting").exists)
    client.send_signal(signal.SIGINT)
    _, said = client.communicate(timeout=SECONDS)
    assert (tmp_path / "interrupted").exists()
    assert said.count(b"Traceback") == 1, "the client's own"


def test_a_client_that_goes_at_the_last_moment(toy, tmp_path, place):
    with toy.connect() as connection:
        socket.send_fds(connection, [asked(arguments={"do": "late"})], place)
        wait_until((tmp_path / "waiting").exists)
    wait_until((tmp_path / "late").exists)
    toy.wait_childless()
    assert (tmp_path / "late").read_text() == "ClientGone"


# Services that are not there, or not for us


def test_nobody_listens(tmp_path):
    assert hand_over(tmp_path, {}, {}) is None
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / CONTROL_SOCKET))
    assert hand_over(tmp_path, {}, {}) is None


def test_a_service_that_takes_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "PATIENCE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / CONTROL_SOCKET))
        listener.listen()
        assert hand_over(tmp_path, {}, {}) is None


def hello(**changes) -> bytes:
    message = {"type": "hello", "build": build(), "standing": standing()}
    return json.dumps(message | changes).encode() + b"\n"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "did not say hello"),
        (b"x\n", "did not say hello"),
        (hello(type="dance"), "did not say hello"),
        (hello()[:-2], "did not say hello"),
        (hello(build="0.0.1"), "another version: 0.0.1"),
        (hello(standing=None), "another mnt, user"),
        (hello(standing=standing() | {"net": "net:[1]"}), "another net$"),
    ],
    ids=range(7),
)
def test_a_service_that_cannot_do_our_work(tmp_path, caplog, said, reason):
    caplog.set_level("DEBUG")
    heard = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / CONTROL_SOCKET))
        listener.listen()

        def speak() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                heard.append(connection.recv(1 << 16))

        other = threading.Thread(target=speak)
        other.start()
        assert hand_over(tmp_path, {"secret": 1}, {"PASSWORD": "x"}) is None
        other.join(SECONDS)
    assert heard == [b""]
    assert re.search(reason, caplog.text)


@needs_root[0]
@needs_root[1]
def test_a_service_of_another_user_gets_no_request(tmp_path):
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "os.setresuid(65534, 65534, 65534); s.listen(); print('listening', flush=True);"
        "print(s.accept()[0].recv(100))"
    )
    path = tmp_path / CONTROL_SOCKET
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as stranger:
        assert stranger.stdout.readline() == "listening\n"
        assert hand_over(tmp_path, {"secret": 1}, {"PASSWORD": "x"}) is None
        assert stranger.stdout.readline() == "b''\n"


@needs_root[0]
@needs_root[1]
def test_another_user_is_turned_away(toy, tmp_path):
    tmp_path.chmod(0o711)
    toy.path.chmod(0o666)
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('control.sock');"
        "print(s.recv(100))"
    )
    # inside the folder already: its parents are root's
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.setresuid(65534, 65534, 65534); {script}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.stdout == "b''\n", done.stderr
    assert "turned away user 65534" in toy.log.read_text()


# The socket


def test_one_is_enough(toy, tmp_path):
    second = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "{}"],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "AlreadyServing" in second.stderr
    assert toy.ask(do="confirm", mountpoint="/still") == "/still"


def test_what_a_killed_one_leaves_is_replaced(toy, tmp_path):
    toy.process.kill()
    toy.process.wait(SECONDS)
    assert toy.path.exists()
    assert toy.ask(do="confirm", mountpoint="/x") is None
    second = Toy(tmp_path)
    assert second.ask(do="confirm", mountpoint="/x") == "/x"
    second.close()
    assert not toy.path.exists()


def test_a_long_path(tmp_path):
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    toy = Toy(folder, is_known_by_path=False)
    wait_until(lambda: toy.ask(do="confirm", mountpoint="/x") == "/x")
    toy.close()
    assert not toy.path.exists()


# Its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_nothing_else(toy, tmp_path, place, number):
    with toy.connect() as connection:
        socket.send_fds(connection, [asked(arguments={"do": "wait"})], place)
        wait_until((tmp_path / "waiting").exists)
        (child,) = children_of(toy.process.pid)
        toy.process.send_signal(number)
        assert toy.process.wait(SECONDS) == 0
        assert not toy.path.exists()
        os.kill(child, 0)
    wait_until((tmp_path / "interrupted").exists)


def test_its_death_does_not_stop_the_work(toy, tmp_path, place):
    with toy.connect() as connection:
        socket.send_fds(connection, [asked(arguments={"do": "wait"})], place)
        wait_until((tmp_path / "waiting").exists)
        toy.process.kill()
        toy.process.wait(SECONDS)
    wait_until((tmp_path / "interrupted").exists)


def test_it_ends_when_nobody_asks(tmp_path):
    toy = Toy(tmp_path, idle_seconds=0.05)
    assert toy.process.wait(SECONDS) == 0
    assert not toy.path.exists()


def test_it_is_not_idle_while_a_child_works(tmp_path, place):
    toy = Toy(tmp_path, idle_seconds=0.3)
    with toy.connect() as connection:
        socket.send_fds(connection, [asked(arguments={"do": "wait"})], place)
        with pytest.raises(subprocess.TimeoutExpired):
            toy.process.wait(0.6)
    assert toy.process.wait(SECONDS) == 0


def test_there_is_a_limit(toy):
    waiting = [toy.connect() for _ in range(MAX_CHILDREN)]
    try:
        wait_until(lambda: len(children_of(toy.process.pid)) == MAX_CHILDREN)
        waiting.pop(0).close()
        assert toy.ask(do="confirm", mountpoint="/x") == "/x"
    finally:
        for connection in waiting:
            connection.close()
    toy.wait_childless()
    assert toy.ask(do="confirm", mountpoint="/x") == "/x"
