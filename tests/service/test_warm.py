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
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.service.processes import handover
from lazyfs.service.processes.handover import (
    CONTROL_SOCKET,
    Lost,
    TurnedAway,
    encode_fields,
    hand_over,
    receive_fields,
)
from lazyfs.service.processes.standing import build, standing
from lazyfs.service.processes.warm import MAX_CHILDREN
from tests.support.mounts.mounting import ROOT, SECONDS, needs_root, wait_until
from tests.support.mounts.serving import children_of, is_listened_to

SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from lazyfs.service.processes.warm import WarmService, listening

folder = Path(sys.argv[1])

def work(words, client):
    match words[0]:
        case "confirm":
            client.confirm()
            os.write(1, os.fsencode(words[1]))
        case "say":
            os.write(1, os.read(0, 99))
            os.write(2, b"said")
            Path("said").write_text(json.dumps(
                [os.getcwd(), dict(os.environ), os.umask(0), os.getsid(0) == os.getpid(),
                 time.tzname[0], client.begun]))
            client.confirm()
        case "away":
            client.turn_away("not for me")
        case "fail":
            return 3
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
                client.confirm()
            except BaseException as error:
                (folder / "late").write_text(type(error).__name__)
                raise
    return 0

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

    def ask(self, *words) -> int:
        return hand_over(str(self.folder), words, {"WHO": "client \udcff"}, 0.0)

    def works(self) -> bool:
        return self.ask("confirm", "") == 0

    def is_there(self) -> bool:
        try:
            return self.works()
        except TurnedAway:
            return False

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


def test_a_mount_that_is_made(toy, capfd):
    assert toy.ask("confirm", "/mnt/ä") == 0
    assert capfd.readouterr().out == "/mnt/ä"
    assert toy.path.stat().st_mode & 0o777 == 0o600


def test_the_child_takes_the_place_of_its_client(toy, tmp_path, capfd, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    reader, writer = os.pipe()
    os.write(writer, b"typed")
    kept, previous = os.dup(0), os.umask(0o027)
    os.dup2(reader, 0)
    try:
        environment = {"WHO": "client \udcff", "TZ": "XYZ-3", "EMPTY": "", "EQUALS": "a=b\n"}
        given = {**environment, "PATH": ".::/bin:bin"}
        environment["PATH"] = "/bin"  # what is found in the working directory is not run
        assert hand_over(str(tmp_path), ["say"], given, 12.5) == 0
    finally:
        os.umask(previous)
        os.dup2(kept, 0)
        for descriptor in (kept, reader, writer):
            os.close(descriptor)
    assert capfd.readouterr() == ("typed", "said")
    said = json.loads((here / "said").read_text())
    assert said == [str(here), environment, 0o027, True, "XYZ", 12.5]


def test_what_was_said_is_the_answer(toy):
    assert toy.ask("fail") == 3
    for words in (["bug"], ["die"]):
        with pytest.raises(Lost, match="ended before the mount was live"):
            toy.ask(*words)
    with pytest.raises(TurnedAway, match="not for me"):
        toy.ask("away")
    assert toy.works()


def test_a_bug_shows_its_traceback(toy, capfd):
    with pytest.raises(Lost):
        toy.ask("bug")
    assert "no idea" in capfd.readouterr().err


def test_many_at_once(toy, capfd):
    answers = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(toy.ask("confirm", f"/{n} ")))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert answers == [0] * 12
    assert sorted(capfd.readouterr().out.split()) == sorted(f"/{n}" for n in range(12))


def test_nothing_is_kept_of_a_connection(toy):
    toy.works()
    toy.wait_childless()
    before = os.listdir(f"/proc/{toy.process.pid}/fd")
    for _ in range(10):
        toy.works()
        toy.connect().close()
    toy.wait_childless()
    assert len(os.listdir(f"/proc/{toy.process.pid}/fd")) == len(before)


@pytest.fixture
def place():
    """What a client passes: its working directory, and its standard streams."""
    here = os.open(".", os.O_PATH)
    yield [here, 0, 1, 2]
    os.close(here)


def asked(*words: str) -> bytes:
    return encode_fields(["mount", "0.0", "18", str(len(words)), *words, "A=b"])


def ask_by_hand(toy, data: bytes, descriptors) -> list[str] | None:
    """Send *data* as a client does; return the answer."""
    with toy.connect() as connection:
        assert receive_fields(connection)[0] == "hello"
        socket.send_fds(connection, [data], descriptors)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            return receive_fields(connection)
    return None


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\1\0\0\0x",
        encode_fields(["dance"]),
        encode_fields(["mount"]),
        encode_fields(["mount", "x", "18", "1", "confirm"]),
        encode_fields(["mount", "0.0", "-", "1", "confirm"]),
        encode_fields(["mount", "0.0", "18", "y", "confirm"]),
        asked("confirm", "")[:-1],
    ],
    ids=range(10),
)
def test_nonsense_gets_no_answer(toy, place, data):
    assert ask_by_hand(toy, data, place) is None
    assert toy.works()


def test_who_passes_too_few_descriptors_gets_no_answer(toy, place):
    assert ask_by_hand(toy, asked("confirm", ""), place[:3]) is None
    assert toy.works()


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_fields_come_as_they_were_sent(fields):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = encode_fields(fields)
        for start in range(0, 9, 3):  # more pieces would fill the socket's queue
            ours.sendall(data[start : start + 3] if start < 6 else data[start:])
        ours.shutdown(socket.SHUT_WR)
        assert receive_fields(theirs) == (fields or None)


# Clients that go away


def test_a_client_that_goes_interrupts_the_work(toy, tmp_path, place):
    with toy.connect() as connection:
        socket.send_fds(connection, [asked("wait")], place)
        wait_until((tmp_path / "waiting").exists)
        assert children_of(toy.process.pid)
    wait_until((tmp_path / "interrupted").exists)
    toy.wait_childless()


def test_a_client_that_is_interrupted_waits_until_the_work_is_undone(toy, tmp_path):
    script = (
        "import sys; from lazyfs.service.processes.handover import hand_over;"
        "hand_over(sys.argv[1], ['wait'], {}, 0.0)"
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
        socket.send_fds(connection, [asked("late")], place)
        wait_until((tmp_path / "waiting").exists)
    wait_until((tmp_path / "late").exists)
    toy.wait_childless()
    assert (tmp_path / "late").read_text() == "ClientGone"


# Services that are not there, or not for us


def refused(folder) -> str:
    """Return why nobody there does what is asked."""
    with pytest.raises(TurnedAway) as caught:
        hand_over(str(folder), ["secret"], {"PASSWORD": "x"}, 0.0)
    return str(caught.value)


def test_nobody_listens(tmp_path):
    assert "No such file" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / CONTROL_SOCKET))
    assert "refused" in refused(tmp_path)


def test_a_service_that_takes_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "PATIENCE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / CONTROL_SOCKET))
        listener.listen()
        assert "timed out" in refused(tmp_path)


def hello(word: str = "hello", version: str | None = None, **changes: str) -> bytes:
    place = dict(text.split(" ", 1) for text in standing()) | changes
    said = [f"{name} {value}" for name, value in place.items()]
    return encode_fields([word, version or build(), *said])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "did not say hello"),
        (b"x\n", "did not say hello"),
        (hello("dance"), "did not say hello"),
        (hello()[:-2], "did not say hello"),
        (encode_fields(["hello"]), "did not say hello"),
        (hello(version="0.0.1"), "another version: 0.0.1"),
        (encode_fields(["hello", build()]), "another mnt, user"),
        (hello(net="net:[1]"), "another net$"),
    ],
    ids=range(8),
)
def test_a_service_that_cannot_do_our_work(tmp_path, said, reason):
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
        why = refused(tmp_path)
        other.join(SECONDS)
    assert heard == [b""]
    assert re.search(reason, why)


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
        assert "user 65534" in refused(tmp_path)
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
    assert "refused a connection of user 65534" in toy.log.read_text()


# The socket


def test_one_is_enough(toy, tmp_path):
    second = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "{}"],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "AlreadyServing" in second.stderr
    assert toy.works()


def test_what_a_killed_one_leaves_is_replaced(toy, tmp_path):
    toy.process.kill()
    toy.process.wait(SECONDS)
    assert toy.path.exists()
    with pytest.raises(TurnedAway, match="refused"):
        toy.works()
    second = Toy(tmp_path)
    assert second.works()
    second.close()
    assert not toy.path.exists()


def test_a_long_path(tmp_path):
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    toy = Toy(folder, is_known_by_path=False)
    wait_until(lambda: toy.works())
    toy.close()
    assert not toy.path.exists()


# Its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_nothing_else(toy, tmp_path, place, number):
    with toy.connect() as connection:
        socket.send_fds(connection, [asked("wait")], place)
        wait_until((tmp_path / "waiting").exists)
        (child,) = children_of(toy.process.pid)
        toy.process.send_signal(number)
        assert toy.process.wait(SECONDS) == 0
        assert not toy.path.exists()
        os.kill(child, 0)
    wait_until((tmp_path / "interrupted").exists)


def test_its_death_does_not_stop_the_work(toy, tmp_path, place):
    with toy.connect() as connection:
        socket.send_fds(connection, [asked("wait")], place)
        wait_until((tmp_path / "waiting").exists)
        toy.process.kill()
        toy.process.wait(SECONDS)
    wait_until((tmp_path / "interrupted").exists)


def test_it_ends_when_nobody_asks(tmp_path):
    toy = Toy(tmp_path, idle_seconds=1.0)  # long enough to be seen while it waits
    assert toy.process.wait(SECONDS) == 0
    assert not toy.path.exists()


def test_it_is_not_idle_while_a_child_works(tmp_path, place):
    toy = Toy(tmp_path, idle_seconds=0.3)
    with toy.connect() as connection:
        socket.send_fds(connection, [asked("wait")], place)
        with pytest.raises(subprocess.TimeoutExpired):
            toy.process.wait(0.6)
    assert toy.process.wait(SECONDS) == 0


def test_there_is_a_limit(toy):
    waiting = [toy.connect() for _ in range(MAX_CHILDREN)]
    try:
        wait_until(lambda: len(children_of(toy.process.pid)) == MAX_CHILDREN)
        waiting.pop(0).close()
        assert toy.works()
    finally:
        for connection in waiting:
            connection.close()
    toy.wait_childless()
    assert toy.works()
