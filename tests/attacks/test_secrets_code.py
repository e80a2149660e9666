"""Code that lies where a user, or somebody else, happens to stand: what of it root might run.

Root runs lazyfs with a user's environment after ``sudo -E`` or ``su``, and so does ``mount -t
fuse.lazyfs``; anybody runs it in a directory that others can write to.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.environment import (
    DEFAULT_PATH,
    absolute_elements,
    harden,
    of_interpreter,
    python_command,
)
from lazyfs.registry.config.helpers import HelperFailed, find_credential
from lazyfs.registry.source import AccessOptions
from lazyfs.service.processes.interpreter import interpreter_command
from tests.support.formats.images import estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    ROOT,
    SECONDS,
    force_unmount,
    wait_until,
    why_no_mounts,
)

MARK = "somebody-elses-code-ran"
MODULES = ("lazyfs", "trio", "msgspec", "click", "site", "sitecustomize", "usercustomize", "runpy")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A directory with modules and programs that leave a mark when they are run."""
    folder = tmp_path / "trap"
    (folder / "bin").mkdir(parents=True)
    code = f"open({str(tmp_path / MARK)!r}, 'a').write(__name__ + '\\n')\n"
    for name in MODULES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
        (folder / name / "__main__.py").write_text(code)
    (folder / "startup.py").write_text(code)
    for name in ("docker-credential-test", "fusermount3", "python3", "mount", "umount"):
        for program in (folder / name, folder / "bin" / name):
            program.write_text(f"#!/bin/sh\necho {name} >>{tmp_path}/{MARK}\n")
            program.chmod(0o755)
    return folder


def marks(trap: Path) -> str:
    path = trap.parent / MARK
    return path.read_text() if path.exists() else ""


def hostile(trap: Path) -> dict[str, str]:
    """Return the environment of somebody who stands in the trap."""
    return {
        **os.environ,
        "PATH": f":.:bin:trap/bin:{os.environ['PATH']}:",
        "PYTHONPATH": f"{trap}:.:",
        "PYTHONSTARTUP": str(trap / "startup.py"),
        "PYTHONHOME": str(trap),
        "PYTHONUSERBASE": str(trap),
        "PYTHONINSPECT": "1",
        "PYTHONBREAKPOINT": "lazyfs.main",
        "PYTHONSAFEPATH": "",
    }


def run(*words: object, **options: object) -> subprocess.CompletedProcess:
    defaults = {"capture_output": True, "text": True, "timeout": SECONDS, "check": False}
    return subprocess.run([str(word) for word in words], **(defaults | options))


def test_an_interpreter_runs_what_this_one_runs(trap: Path) -> None:
    done = run(*interpreter_command("lazyfs"), "--version", cwd=trap, env=hostile(trap))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lazyfs ")
    assert marks(trap) == ""


def test_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "echo_words.py").write_text("import sys; print(sys.argv[1:], __name__)")
    words = python_command(
        sys.executable, [str(tmp_path), "", ".", "rel"], "echo_words", has_user_site=False
    )
    done = run(*words, "-c", "", "a b", "--", cwd="/")
    assert done.stdout == "['-c', '', 'a b', '--'] __main__\n", done.stderr
    assert "" not in words[: words.index("echo_words")]


def test_the_traps_work(trap: Path) -> None:
    """An interpreter that is started as one might think does run the code there."""
    run(sys.executable, "-m", "lazyfs", "--version", cwd=trap)
    assert "__main__" in marks(trap) or "lazyfs" in marks(trap)
    (trap.parent / MARK).unlink()
    run("sh", "-c", "docker-credential-test", cwd=trap, env=hostile(trap))
    assert "docker-credential-test" in marks(trap)


BY_COMMAND = """
import os, sys
from pathlib import Path
from lazyfs.registry.source import AccessOptions
from lazyfs.service.processes.mount_command import MountCommand

os.chdir(sys.argv[1])
mount = MountCommand(Path("cache"), AccessOptions(environment=dict(os.environ)))
try:
    mount("oci:nowhere", Path("mnt"), "oci:nowhere")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_mount_by_a_command_of_its_own(trap: Path) -> None:
    """What ``lazyfs run`` falls back to where a service does not answer."""
    command = [sys.executable, "-P", "-c", BY_COMMAND, trap]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run(*command, cwd=trap.parent, env=environment)
    assert done.stdout.startswith("MountFailed mountpoint mnt does not exist\n"), (
        done.stdout + done.stderr
    )
    assert marks(trap) == ""


def test_the_successor_of_a_server(trap: Path, tmp_path: Path) -> None:
    """A keeper starts it, years later perhaps, wherever the first command stood."""
    command = [*interpreter_command("lazyfs.cli.mounts.successor"), "999", "give-up", str(tmp_path)]
    done = run(*command, cwd=trap, env=of_interpreter(hostile(trap)))
    assert done.returncode in (0, 1), done.stderr
    assert marks(trap) == ""


@pytest.mark.fuse
@pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))
def test_a_mount_with_somebodys_environment(trap: Path, tmp_path: Path) -> None:
    """Its server, its keeper and the next server; the first interpreter is the caller's choice."""
    make_layout(tmp_path / "layout", [estargz_layer(tar_bytes([file("a", b"data")]))])
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environment = hostile(trap)
    # What decides over the first one is not ours to mend: it has run before we do.
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONINSPECT"):
        del environment[name]
    lazyfs = Lazyfs(tmp_path, environment={"PATH": environment["PATH"]})
    lazyfs.interpreter = (sys.executable, "-P")
    try:
        done = lazyfs("mount", f"oci:{tmp_path}/layout", mountpoint, cwd=trap)
        assert done.returncode == 0, done.stderr
        (status,) = lazyfs.status()
        if status["keeperPid"] is not None:
            assert lazyfs("restart", mountpoint, cwd=trap).returncode == 0
            wait_until(lambda: lazyfs.status()[0]["pid"] != status["pid"])
        assert (mountpoint / "a").read_bytes() == b"data"
        assert lazyfs("umount", mountpoint, cwd=trap).returncode == 0
    finally:
        force_unmount(mountpoint)
    assert marks(trap) == ""


# Programs that are looked for by name.


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/usr/bin:/bin", "/usr/bin:/bin"),
        (":/bin", "/bin"),
        ("/bin:", "/bin"),
        ("/usr/bin::/bin", "/usr/bin:/bin"),
        (".:bin:../x:~/bin:/bin", "/bin"),
        ("", ""),
        (":", ""),
    ],
)
def test_elements_that_mean_the_working_directory(path: str, kept: str) -> None:
    assert absolute_elements(path) == kept
    environment = {"PATH": path, "HOME": "/root"}
    harden(environment)
    assert environment == {"PATH": kept or DEFAULT_PATH, "HOME": "/root"}


def test_an_environment_without_a_path_stays_so() -> None:
    environment: dict[str, str] = {}
    harden(environment)
    assert environment == {}


def test_variables_of_the_interpreter() -> None:
    assert of_interpreter({"PYTHONPATH": "x", "PYTHONX": "", "PATH": "/bin", "MYPYTHON": "1"}) == {
        "PATH": "/bin",
        "MYPYTHON": "1",
    }


@pytest.mark.anyio
async def test_a_credential_helper(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trap)
    (trap / "config.json").write_text('{"credsStore": "test"}')
    for path in (":", ".", "bin", f"::{os.defpath}"):
        options = AccessOptions(environment={"DOCKER_CONFIG": str(trap), "PATH": path})
        with pytest.raises(HelperFailed, match="No such file"):
            await find_credential("r.example", "a", options)
    assert marks(trap) == ""


def test_a_command_hardens_itself(trap: Path) -> None:
    code = (
        "import os, sys; sys.argv = ['lazyfs', '--version']\n"
        "import atexit; from lazyfs.cli import main\n"
        "main.leave = lambda code: print('PATH', os.environ['PATH'])\n"
        "from lazyfs.cli.start import main as start; start()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f":.:{os.environ['PATH']}"}
    done = run(sys.executable, "-P", "-c", code, cwd=trap, env=environment)
    assert f"PATH {absolute_elements(os.environ['PATH'])}\n" in done.stdout, done.stderr


def test_no_interpreter_is_started_otherwise() -> None:
    """Whoever starts one does it by ``interpreter_command``, or isolated as the keeper is."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lazyfs").rglob("*.py")
        if "sys.executable" in path.read_text()
    }
    assert found == {
        "lazyfs/sandbox/runtimes/protections.py",
        "lazyfs/service/processes/interpreter.py",
        "lazyfs/service/processes/keeping.py",
    }
    assert '(sys.executable, "-I", "-S", program.__file__)' in (
        ROOT / "lazyfs/service/processes/keeping.py"
    ).read_text().replace("*(", "(")
    protections = (ROOT / "lazyfs/sandbox/runtimes/protections.py").read_text()
    assert protections.count("sys.executable") == 1
    assert "program = os.path.realpath(sys.executable)" in protections
    assert '(program, "-I", "-S", "-c", PROBE, *words)' in protections
