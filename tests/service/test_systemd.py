"""What systemd passes and hears."""

import os
import socket
import sys

import pytest

from lazyfs.service.processes.systemd import notify, take_listener
from tests.support.mounts.mounting import ROOT, run
from tests.support.mounts.serving import activated

TAKE = """
import os
from lazyfs.service.processes.systemd import take_listener
environment = {variables}
listener = take_listener(environment)
print(None if listener is None else listener.getsockname(), environment)
if listener is not None:
    print(os.get_inheritable(listener.fileno()))
"""


def take_in_a_process(tmp_path, **variables: str) -> str:
    """Take what a process was started with on descriptor 3."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        text = ", ".join(f"{k!r}: {v}" for k, v in variables.items())
        code = TAKE.format(variables="{" + text + "}")
        command = activated(listener, sys.executable, "-c", code)
        done = run(*command.pop("args"), **command, cwd=ROOT)
        assert done.stderr == ""
        return done.stdout


def test_a_passed_socket_is_taken(tmp_path):
    said = take_in_a_process(
        tmp_path, LISTEN_FDS="'1'", LISTEN_PID="str(os.getpid())", LISTEN_FDNAMES="'x'"
    )
    assert said == f"{tmp_path}/socket {{}}\nFalse\n"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "-1", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_what_was_meant_for_others_is_left(variables):
    environment = {"HOME": "/root", **variables}
    assert take_listener(environment) is None
    assert environment == {"HOME": "/root"}


@pytest.mark.parametrize("is_abstract", [False, True])
def test_notify(tmp_path, is_abstract):
    name = f"lazyfs-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind("\0" + name if is_abstract else name)
        environment = {"NOTIFY_SOCKET": "@" + name if is_abstract else name}
        assert notify(environment, "READY=1", "STATUS=well")
        assert manager.recv(100) == b"READY=1\nSTATUS=well"


def test_nobody_to_notify(tmp_path):
    assert not notify({}, "READY=1")
    assert not notify({"NOTIFY_SOCKET": "relative"}, "READY=1")
    assert not notify({"NOTIFY_SOCKET": str(tmp_path / "none")}, "READY=1")
