"""The units for systemd: commands that exist, and nothing that would take mounts away."""

import shutil
from configparser import ConfigParser
from pathlib import Path

import click
import pytest

from lazyfs.cli.directories import runtime_directory
from lazyfs.cli.main import cli
from lazyfs.service.processes.handover import CONTROL_SOCKET
from tests.support.mounts.mounting import ROOT, run

UNITS = sorted((ROOT / "tools/packaging/systemd").glob("*/*"))
# Anything that gives a service a mount namespace of its own hides its mounts from everybody.
NAMESPACES = ("Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "Root", "Temp")


def unit(path: Path) -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_units(path):
    parsed = unit(path)
    if path.suffix == ".socket":
        return
    service = parsed["Service"]
    assert service["Type"] == "notify"
    assert not [name for name in service if name.startswith(NAMESPACES)]
    program, name, *words = service["ExecStart"].split()
    assert program == "/usr/bin/lazyfs"
    command = cli.get_command(click.Context(cli), name)
    words = [word.replace("${LAZYFS_OPTIONS}", "ro") for word in words]
    context = command.make_context(name, words, parent=click.Context(cli))  # raises UsageError
    assert name in ("serve", "mount")
    if name == "serve":
        assert service["KillMode"] == "process", "its mounts are in its control group"
    else:
        assert context.params["foreground"]


@pytest.mark.parametrize(
    ("kind", "runtime", "uid"), [("system", "/run", 0), ("user", "/run/user/7", 7)]
)
def test_the_socket_is_where_the_command_looks(kind, runtime, uid):
    parsed = unit(ROOT / f"tools/packaging/systemd/{kind}/lazyfs.socket")
    environment = {} if uid == 0 else {"XDG_RUNTIME_DIR": runtime}
    expected = Path(runtime_directory(environment, uid), CONTROL_SOCKET)
    assert parsed["Socket"]["ListenStream"].replace("%t", runtime) == str(expected)
    assert parsed["Socket"]["SocketMode"] == "0600"


@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_understands_them(kind, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    for path in UNITS:
        if path.parent.name == kind:
            name = path.name.replace("@.", "@srv-app.")
            text = path.read_text().replace("/usr/bin/lazyfs", "/bin/true")
            (tmp_path / name).write_text(text)
    command = ["systemd-analyze", f"--{kind}", "verify", "--man=no"]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = run(*command, *tmp_path.glob("lazyfs*"), env=environment)
    complaints = [line for line in done.stderr.splitlines() if "lazyfs" in line]
    assert complaints == [], done.stderr
