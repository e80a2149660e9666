"""The control socket's messages."""

import json
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.service.processes.control import (
    MAX_SOCKET_PATH,
    ServerSilent,
    answer_question,
    ask,
    decode_message,
    encode_message,
    short_path,
)


def status():
    return {"type": "status", "health": "ok"}


@pytest.fixture
def server(tmp_path):
    """A server that answers one question with the bytes of the test's choice."""
    threads = []

    def serve(answer: bytes):
        path = tmp_path / "sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def run():
            with listener:
                connection, _ = listener.accept()
                with connection:
                    connection.makefile("rb").readline()
                    connection.sendall(answer)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return path

    yield serve
    for thread in threads:
        thread.join(30)


def test_asking(server):
    assert ask(server(b'{"type":"pong"}\n'), {"type": "ping"}) == {"type": "pong"}


@pytest.mark.parametrize("answer", [b"", b"\n", b"{}\n", b"[1]\n", b"\xff\n", b'{"type":'])
def test_answers_that_are_none(server, answer):
    with pytest.raises(ServerSilent, match="is not a JSON object"):
        ask(server(answer), {"type": "ping"})


def test_nobody_there(tmp_path):
    with pytest.raises(ServerSilent):
        ask(tmp_path / "none", {"type": "ping"})
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))
    left.close()
    with pytest.raises(ServerSilent):
        ask(tmp_path / "left", {"type": "ping"})


def test_a_server_that_never_answers(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mute"))
        listener.listen()
        with pytest.raises(ServerSilent, match="timed out"):
            ask(tmp_path / "mute", {"type": "ping"}, seconds=0.05)


def test_long_names(tmp_path):
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    with short_path(deep / "sock") as name:
        assert len(name) <= MAX_SOCKET_PATH
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    assert (deep / "sock").exists()
    with short_path(tmp_path / "sock") as name:
        assert name == str(tmp_path / "sock")


def test_questions():
    assert answer_question(b'{"type":"ping"}', status) == {"type": "pong"}
    assert answer_question(b'{"type":"status"}', status) == {"type": "status", "health": "ok"}
    assert answer_question(b'{"type":"other"}', status)["type"] == "error"


def test_a_status_that_fails_ends_nothing(caplog):
    def broken():
        raise RuntimeError("a bug")

    assert answer_question(b'{"type":"status"}', broken)["type"] == "error"
    assert "a bug" in caplog.text


@given(st.binary(max_size=200))
def test_any_line_is_answered(line):
    answer = answer_question(line, status)
    assert decode_message(encode_message(answer)) == answer


@given(st.dictionaries(st.text(), st.text() | st.integers()))
def test_messages_are_one_line(message):
    line = encode_message({"type": "x"} | message)
    assert line.count(b"\n") == 1
    assert json.loads(line)
