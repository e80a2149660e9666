"""The ``lazyfs`` command itself: what it imports, how it fails, what it exits with."""

import inspect
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from lazyfs import errors
from lazyfs.cli.main import COMMANDS, EXIT_CODES, cli, exit_code_of

SECONDS = 30
HEAVY = {"trio", "httpx", "pyfuse3", "msgspec", "rich", "zstandard", "isal", "ssl", "asyncio"}


def python(code: str, *words: str, **options) -> subprocess.CompletedProcess:
    defaults = {"capture_output": True, "text": True, "timeout": SECONDS, "check": False}
    return subprocess.run([sys.executable, "-c", code, *words], **(defaults | options))


def imported_by(*words: str, **variables: str) -> set[str]:
    """Return the top-level modules that a command imports."""
    code = (
        "import sys\n"
        "from lazyfs.cli.main import cli\n"
        "try: cli.main(prog_name='lazyfs')\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = python(code, *words, env=os.environ | variables)
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["nonsense"], ["mount", "--help"]])
def test_little_is_imported(words):
    imported = imported_by(*words)
    assert "click" in imported
    assert not imported & HEAVY


def test_completion_imports_little():
    variables = {
        "_LAZYFS_COMPLETE": "bash_complete",
        "COMP_WORDS": "lazyfs mo",
        "COMP_CWORD": "1",
    }
    imported = imported_by(**variables)
    assert "click" in imported
    assert not imported & HEAVY
    code = "from lazyfs.cli.main import main; main()"
    done = python(code, env=os.environ | variables)
    assert "plain,mount" in done.stdout


# What a mount imports, as far as it comes: a function that must not be reached tells.
STOP = """
import os, socket, sys
def stop(*arguments):
    print(*sys.modules)
    sys.stdout.flush()
    os._exit(0)
{what} = stop
from lazyfs.cli.main import main
main()
"""
THIN = {
    "lazyfs",
    "lazyfs.cli",
    "lazyfs.cli.directories",
    "lazyfs.cli.start",
    "lazyfs.environment",
    "lazyfs.service",
    "lazyfs.service.processes",
    *(f"lazyfs.service.processes.{name}" for name in ("handover", "standing", "streams")),
}
NOT_BEFORE_THE_FORK = {
    *("pyfuse3", "_pyfuse3", "rich", "asyncio"),
    *("lazyfs.service.server", "lazyfs.image.open", "lazyfs.fetch.fetch", "lazyfs.formats.decode"),
    *("lazyfs.mount.native", "lazyfs.convert.convert"),
}


def imported_until(what: str, *words: str) -> set[str]:
    """Return the modules that a command has imported when it calls *what*."""
    done = python(STOP.format(what=what), *words)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# The interpreter tells of the connection itself: the client has no other name for it.
AT_CONNECT = """
import sys
before = set(sys.modules)
def hook(event, arguments):
    if event == "socket.connect":
        print(*(set(sys.modules) - before), flush=True)
        sys.modules["os"]._exit(0)
sys.addaudithook(hook)
from lazyfs.cli.start import main
main()
"""


def test_the_thin_client_imports_next_to_nothing(tmp_path):
    """Until it knows whether a service does the work: what fits on a page, and nobody else's."""
    variables = {"LAZYFS_RUNTIME_DIR": str(tmp_path)}
    done = python(AT_CONNECT, "mount", "image", str(tmp_path), env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) - {"_socket", "gc"} == THIN


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["status"], {}),
        (["mount", "--no-service", "image", "mnt"], {}),
        (["mount", "-f", "image", "mnt"], {}),
        (["mount", "image", "mnt"], {"LAZYFS_SERVICE": "No"}),
    ],
)
def test_nobody_is_asked_who_is_not_wanted(tmp_path, words, variables):
    code = (
        "import sys; from lazyfs.cli import start, main\n"
        "main.main = lambda words, alone: print(words, repr(alone))\n"
        "start.hand_over = None\n"
        "start.main()"
    )
    done = python(code, *words, env=os.environ | variables | {"LAZYFS_RUNTIME_DIR": str(tmp_path)})
    assert done.stdout == f"{words} ''\n", done.stderr


@pytest.mark.parametrize(
    ("image", "is_asked"),
    [("image:tag", True), (f"image@sha256:{'0' * 64}", False), ("oci:/image", False)],
)
def test_what_is_imported_before_there_are_two_processes(tmp_path, monkeypatch, image, is_asked):
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    for name in ("STATE", "RUNTIME"):
        monkeypatch.setenv(f"LAZYFS_{name}_DIR", str(tmp_path / name))
    (tmp_path / "mnt").mkdir()
    imported = imported_until("os.fork", "mount", "--no-service", image, str(tmp_path / "mnt"))
    assert not imported & NOT_BEFORE_THE_FORK
    assert {"trio", "msgspec", "lazyfs.image.prepare"} <= imported
    assert ({"httpx", "httpcore", "lazyfs.registry.client"} <= imported) == is_asked
    # A value's class takes the interpreter 0.01 ms as a Struct and 0.5 ms as a dataclass.
    assert ("dataclasses" in imported) == is_asked


def test_a_server_imports_nothing_that_it_only_may_need():
    done = python("import sys, lazyfs.service.server, lazyfs.registry.layout; print(*sys.modules)")
    imported = set(done.stdout.split())
    assert {"pyfuse3", "lazyfs.mount.native"} <= imported, done.stderr
    assert not imported & {"dataclasses", "httpx", "click", "email", "importlib.metadata"}


@pytest.mark.parametrize(("word", "is_enabled"), [("status", True), ("mount", False)])
def test_the_collector_waits_until_everything_is_imported(tmp_path, word, is_enabled):
    """Looking for garbage where there is none; a mount's server turns it on again."""
    code = (
        "import gc; from lazyfs.cli import main, start\n"
        "main.leave = lambda code: print(before, gc.isenabled())\n"
        "alone = main.main\n"
        "def work_alone(*words):\n"
        "    global before; before = gc.isenabled()\n"
        "    alone(*words)\n"
        "main.main = work_alone\n"
        "start.main()"
    )
    variables = {f"LAZYFS_{name}_DIR": str(tmp_path) for name in ("CACHE", "STATE", "RUNTIME")}
    done = python(code, word, "image", str(tmp_path / "no"), env=os.environ | variables)
    assert done.stdout.split() == ["False", str(is_enabled)], done.stderr


def test_the_package_says_its_version():
    done = python("from lazyfs.cli.main import main; main()", "--version")
    assert done.stdout == "lazyfs 0.2.0\n"
    assert done.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(name):
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, click.Command)
    assert command.help, "it says what it does"


def commands_below(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for child in command.list_commands(context):
        yield from commands_below(command.get_command(context, child), f"{name} {child}")


def test_every_parameter_has_its_option():
    """A function that wants what no option gives fails whenever it is called."""
    made = {"ctx", "access", "confinement", "arguments", "others"}  # by decorators
    for name, command in commands_below(cli, "lazyfs"):
        parameters = inspect.signature(inspect.unwrap(command.callback)).parameters.values()
        wanted = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
        assert wanted <= {each.name for each in command.params} | made, name


def test_help_lists_every_command():
    shown = CliRunner().invoke(cli, ["--help"]).output
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in shown
        assert text.split()[0] in shown


@pytest.mark.parametrize(
    "words",
    [[], ["cache"], ["snapshot"], ["golden"], ["index"], ["profile"], ["trust"], ["verity"]],
)
def test_a_group_alone_shows_its_help(words):
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert "\n\nCommands:\n" in done.stderr


# Failing


def families() -> list[type[errors.LazyfsError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.LazyfsError)
    ][1:]


EXPECTED = {
    "UsageError": 2,
    "NotFound": 3,
    "AccessDenied": 4,
    "Unavailable": 5,
    "DeadlineExceeded": 5,
    "VerificationFailed": 6,
    "FormatError": 7,
    "MountFailed": 8,
    "StoreError": 1,
}


@pytest.mark.parametrize("family", families())
def test_every_family_has_an_exit_code(family):
    assert exit_code_of(family("x")) == EXPECTED[family.__name__]


def test_the_table_names_families_once():
    assert len({family for family, _ in EXIT_CODES}) == len(EXIT_CODES)
    assert exit_code_of(ValueError("x")) == 1


@pytest.fixture
def failing(monkeypatch):
    """A command ``fail`` that raises what the test says."""
    box = {}

    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    @click.option("--number", type=int)
    def fail(as_json, number):
        raise box["error"]

    module = types.ModuleType("lazyfs.cli.fail")
    module.fail = fail
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(COMMANDS, "fail", ("fail", "Fails."))

    def run(error, *words):
        box["error"] = error
        return CliRunner().invoke(cli, list(words))

    return run


class BadThing(errors.VerificationFailed):
    code = "E_BAD_THING"


def test_errors_as_text(failing):
    result = failing(BadThing("thing: got a, expected b", hint="do c"), "fail")
    assert result.exit_code == 6
    assert result.stdout == ""
    assert result.stderr == "lazyfs: thing: got a, expected b\nhint: do c\n"


def test_errors_as_json(failing):
    result = failing(BadThing("thing: got a, expected b", hint="do c"), "fail", "--json")
    assert result.exit_code == 6
    assert result.stdout == ""
    assert json.loads(result.stderr) == {
        "type": "error",
        "code": "E_BAD_THING",
        "message": "thing: got a, expected b",
        "hint": "do c",
        "exitCode": 6,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command"),
        (["fail", "--nonsense"], "No such option"),
        (["fail", "--number", "x"], "not a valid integer"),
        (["fail", "one"], "unexpected extra argument"),
    ],
)
def test_usage_errors(failing, words, message):
    result = failing(None, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Usage: " in result.stderr
    result = failing(None, *words, "--json")
    document = json.loads(result.stderr)
    assert (document["code"], document["exitCode"]) == ("E_USAGE", 2)


def test_no_command_shows_the_help():
    result = CliRunner().invoke(cli, [])
    assert result.exit_code in (0, 2)
    assert "mount" in result.output


def test_a_bug_is_one_line(failing):
    result = failing(RuntimeError("no idea"), "fail")
    assert result.exit_code == 1
    assert result.stderr.startswith("lazyfs: RuntimeError: no idea\n")
    assert "Traceback" not in result.stderr


def test_a_bug_has_its_traceback_when_asked(failing):
    result = failing(RuntimeError("no idea"), "-v", "fail")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_a_bug_as_json(failing):
    result = failing(RuntimeError("no idea"), "fail", "--json")
    document = json.loads(result.stderr)
    assert (document["code"], document["exitCode"]) == ("E_BUG", 1)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        click.Abort(),
        BaseExceptionGroup("nursery", [KeyboardInterrupt()]),
        BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [KeyboardInterrupt()])]),
    ],
)
def test_interrupted(failing, error):
    result = failing(error, "fail")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


def test_a_group_with_more_than_an_interrupt_is_a_bug(failing):
    group = BaseExceptionGroup("nursery", [KeyboardInterrupt(), ValueError("x")])
    assert failing(group, "fail").exit_code == 1


def test_a_reader_that_leaves(failing):
    code = "from lazyfs.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(SECONDS) in (0, 1)
    assert b"Traceback" not in said
    assert b"Exception ignored" not in said


def test_main_leaves_at_once():
    code = (
        "import atexit; atexit.register(print, 'late'); print('early');"
        "from lazyfs.cli.main import main; main()"
    )
    done = python(code, "--version")
    assert (done.returncode, done.stdout) == (0, "early\nlazyfs 0.2.0\n")
    assert python(code, "nonsense").returncode == 2


def test_logging_levels(failing):
    import logging

    for words, level in (
        (["-q"], logging.ERROR),
        ([], logging.WARNING),
        (["-v"], logging.INFO),
        (["-vv"], logging.DEBUG),
    ):
        root = logging.getLogger()
        kept = root.handlers[:], root.level
        try:
            failing(BadThing("x"), *words, "fail")
            assert root.level == level
        finally:
            root.handlers[:], root.level = kept
