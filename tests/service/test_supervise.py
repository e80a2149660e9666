"""Two processes, a channel, and errors that cross it."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs import errors
from lazyfs.errors import FormatError, LazyfsError, MountFailed, NotFound
from lazyfs.service.processes.failures import ServerBug, document_of, error_of
from lazyfs.service.processes.supervise import (
    MAX_MESSAGE_SIZE,
    Channel,
    ChannelClosed,
    Link,
    Word,
    wait_ended,
)
from tests.support.mounts.mounting import ROOT, run

SECONDS = 30


@pytest.fixture
def channels():
    left, right = socket.socketpair()
    pair = Channel(left), Channel(right)
    yield pair
    for channel in pair:
        channel.close()


def travelled(error: BaseException) -> BaseException:
    """Return *error* as it arrives in another process."""
    return error_of(json.loads(json.dumps(document_of(error))))


class VeryBad(NotFound):
    code = "E_VERY_BAD"


def families():
    return [v for v in vars(errors).values() if isinstance(v, type) and v is not LazyfsError]


@pytest.mark.parametrize("family", families())
def test_errors_keep_their_family(family):
    error = travelled(family("what: got a, expected b", hint="do"))
    assert type(error) is family
    assert (error.message, error.hint, error.code) == (
        "what: got a, expected b",
        "do",
        family.code,
    )


def test_members_of_a_family_keep_their_code():
    error = travelled(VeryBad("gone"))
    assert type(error) is NotFound
    assert (error.code, error.hint) == ("E_VERY_BAD", None)


def test_other_errors_are_bugs():
    error = travelled(ZeroDivisionError("by zero"))
    assert isinstance(error, ServerBug)
    assert "ZeroDivisionError: by zero" in str(error)
    assert isinstance(travelled(KeyboardInterrupt()), KeyboardInterrupt)


@given(st.text(), st.none() | st.text())
def test_any_message_crosses(message, hint):
    error = travelled(FormatError(message, hint=hint))
    assert (error.message, error.hint) == (message, hint)


@pytest.mark.parametrize("size", [0, 1, 100, 5_000_000])
def test_messages(channels, size):
    left, right = channels
    payload = os.urandom(size)
    sender = threading.Thread(target=left.send, args=(Word.PREPARED, payload))
    sender.start()
    assert right.receive() == (Word.PREPARED, payload)
    sender.join(SECONDS)


def test_what_is_expected(channels):
    left, right = channels
    left.send(Word.PREPARED, b"image")
    assert right.expect(Word.PREPARED) == b"image"
    left.send(Word.ERROR, json.dumps(document_of(VeryBad("gone"))).encode())
    with pytest.raises(NotFound, match="gone"):
        right.expect(Word.PREPARED)
    left.send(Word.READY)
    with pytest.raises(ChannelClosed, match="READY"):
        right.expect(Word.PREPARED)


@pytest.mark.parametrize("sent", [b"", b"P", b"P\0\0\0\5", b"P\0\0\0\5abcd"])
def test_a_sender_that_goes(sent):
    left, right = socket.socketpair()
    left.sendall(sent)
    left.close()
    channel = Channel(right)
    with pytest.raises(ChannelClosed):
        channel.receive()
    channel.close()


def test_a_message_too_long():
    left, right = socket.socketpair()
    with left:
        left.sendall(b"P" + (MAX_MESSAGE_SIZE + 1).to_bytes(4, "big"))
        channel = Channel(right)
        with pytest.raises(ChannelClosed, match="bytes"):
            channel.receive()
        channel.close()


def test_nobody_waits_for_a_ready_mount_any_more(channels):
    left, right = channels
    left.close()
    with pytest.raises(ChannelClosed):
        Link(right).announce_ready()


def test_children():
    with subprocess.Popen(["true"]) as quick:
        assert wait_ended(quick.pid, SECONDS)
        quick.returncode = 0
    with subprocess.Popen(["sleep", "60"]) as slow:
        assert not wait_ended(slow.pid, 0.01)
        assert slow.wait(SECONDS) == -15


SCRIPT = """
import os, sys
from pathlib import Path
from lazyfs.errors import NotFound
from lazyfs.service.processes import supervise
from lazyfs.service.processes.supervise import run_in_background, run_in_foreground

log = Path(sys.argv[1])
def prepare(tell):
    {prepare}
def serve(link):
    {serve}
try:
    {run}
except BaseException as error:
    print(type(error).__name__, error)
"""
BACKGROUND = "run_in_background(prepare, serve, log)"
UNWANTED = "supervise.LEAVE_SECONDS = 1000; run_in_background(prepare, serve, log, lambda: 1 / 0)"
FOREGROUND = "run_in_foreground(prepare, serve, lambda: print('live', flush=True))"
GOOD_PREPARE = "return b'image'"
GOOD_SERVE = "assert link.wait_prepared() == b'image'; link.announce_ready()"


def outcome(tmp_path, **parts: str) -> tuple[str, str]:
    """Run the script; return what it prints, and the server's log."""
    done = run(sys.executable, "-c", SCRIPT.format(**parts), tmp_path / "log", cwd=ROOT)
    log = tmp_path / "log"
    return done.stdout + done.stderr, log.read_text() if log.exists() else ""


def test_all_is_well(tmp_path):
    for way, said in ((BACKGROUND, ""), (FOREGROUND, "live\n")):
        parts = {"prepare": GOOD_PREPARE, "serve": GOOD_SERVE, "run": way}
        assert outcome(tmp_path, **parts) == (said, "")


def test_a_live_mount_that_nobody_wants_any_more(tmp_path):
    """Its server has let go of the channel by then, and is told by a signal."""
    serve = f"{GOOD_SERVE}; import signal; signal.pause()"
    said, log = outcome(tmp_path, prepare=GOOD_PREPARE, serve=serve, run=UNWANTED)
    assert (said, log) == ("ZeroDivisionError division by zero\n", "")


@pytest.mark.parametrize("way", [BACKGROUND, FOREGROUND], ids=["background", "foreground"])
@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("raise NotFound('image: got none')", "NotFound image: got none\n"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt \n"),
    ],
)
def test_preparing_fails(tmp_path, way, prepare, said):
    text, log = outcome(tmp_path, prepare=prepare, serve=GOOD_SERVE, run=way)
    assert (text, log) == (said, "")


def test_preparing_is_lost(tmp_path):
    text, _ = outcome(tmp_path, prepare="os._exit(3)", serve=GOOD_SERVE, run=FOREGROUND)
    assert text.startswith("ServerLost the process that prepares")


@pytest.mark.parametrize(
    ("serve", "said", "logged"),
    [
        ("link.wait_prepared(); raise NotFound('mount: got no')", "NotFound mount: got no\n", ""),
        ("raise NotFound('early')", "NotFound early\n", ""),
        ("link.wait_prepared(); 1 / 0", "ServerBug ZeroDivisionError", "Traceback"),
        ("link.wait_prepared(); os._exit(9)", "ServerLost the server ended before", ""),
        ("os._exit(9)", "ServerLost the server ended before", ""),
        ("link.wait_prepared()", "ServerLost the server ended before", ""),
        ("print('to the log', file=sys.stderr); 1 / 0", "ServerBug", "to the log"),
    ],
)
def test_serving_fails(tmp_path, serve, said, logged):
    text, log = outcome(tmp_path, prepare=GOOD_PREPARE, serve=serve, run=BACKGROUND)
    assert text.startswith(said), text
    assert logged in log
    assert bool(log) == bool(logged)


def test_serving_fails_in_the_foreground(tmp_path):
    serve = "link.wait_prepared(); raise NotFound('mount: got no')"
    text, _ = outcome(tmp_path, prepare=GOOD_PREPARE, serve=serve, run=FOREGROUND)
    assert text == "NotFound mount: got no\n"


def test_a_link_raises_what_preparing_raised(channels):
    left, right = channels
    left.send(Word.ERROR, json.dumps(document_of(MountFailed("no"))).encode())
    with pytest.raises(MountFailed, match="no"):
        Link(right).wait_prepared()


def test_what_is_foreseen_comes_before_what_is_prepared(channels):
    left, right = channels
    link = Link(right)
    assert link.fileno() == right.fileno()
    for word, payload in ((Word.FORESEEN, b"it"), (Word.FORESEEN, b"again"), (Word.PREPARED, b"x")):
        left.send(word, payload)
    assert link.wait_foreseen() == b"it"
    assert link.wait_prepared() == b"x"
    left.send(Word.PREPARED, b"at once")
    assert link.wait_foreseen() is None
    assert link.wait_prepared() == b"at once"
    left.send(Word.ERROR, json.dumps(document_of(MountFailed("no"))).encode())
    assert link.wait_foreseen() is None
    with pytest.raises(MountFailed, match="no"):
        link.wait_prepared()
    left.close()
    with pytest.raises(ChannelClosed):
        link.wait_foreseen()


def test_what_is_foreseen_arrives(tmp_path):
    serve = "assert link.wait_foreseen() == b'soon'; " + GOOD_SERVE
    for way, said in ((BACKGROUND, ""), (FOREGROUND, "live\n")):
        parts = {"prepare": f"tell(b'soon'); {GOOD_PREPARE}", "serve": serve, "run": way}
        assert outcome(tmp_path, **parts) == (said, "")
