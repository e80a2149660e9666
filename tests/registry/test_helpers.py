"""Credential helper programs, as small shell scripts."""

import os
import threading
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from lazyfs.registry.config.helpers import HelperFailed, find_credential
from lazyfs.registry.config.keychain import BadAuthFile, Credential, Kind
from lazyfs.registry.source import AccessOptions

pytestmark = pytest.mark.anyio


class Home:
    """A home directory with helpers on its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bin").mkdir()
        self.config = path / ".docker" / "config.json"
        self.config.parent.mkdir()

    def helper(self, name: str, script: str) -> None:
        program = self.path / "bin" / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    @property
    def options(self) -> AccessOptions:
        path = f"{self.path}/bin:{os.defpath}"
        return AccessOptions(
            environment={
                "HOME": str(self.path),
                "PATH": path,
                "XDG_RUNTIME_DIR": str(self.path / "run"),
            }
        )

    async def find(self, *, limit_seconds: float = 10.0) -> Credential | None:
        return await find_credential(
            "r.example", "team/app", self.options, limit_seconds=limit_seconds
        )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


async def test_a_helper_is_asked_about_the_registry(home: Home) -> None:
    home.config.write_text('{"credHelpers": {"r.example": "test"}}')
    home.helper(
        "test",
        f'echo "$@" >{home.path}/arguments; cat >{home.path}/input\n'
        """echo '{"ServerURL":"r.example","Username":"u","Secret":"p"}'""",
    )
    assert await home.find() == Credential("u", "p")
    assert (home.path / "arguments").read_text() == "get\n"
    assert (home.path / "input").read_text() == "r.example"


async def test_an_identity_token(home: Home) -> None:
    home.config.write_text('{"credsStore": "test"}')
    home.helper("test", """echo '{"Username":"<token>","Secret":"t"}'""")
    assert await home.find() == Credential("", "t", Kind.IDENTITY_TOKEN)


async def test_a_helper_that_does_not_know_leaves_the_search_going(home: Home) -> None:
    home.config.write_text('{"credsStore": "test", "auths": {"r.example": {"auth": "dTpw"}}}')
    home.helper("test", "echo credentials not found in native keychain; exit 1")
    assert await home.find() == Credential("u", "p")


async def test_nobody_knows(home: Home) -> None:
    home.config.write_text('{"credsStore": "test"}')
    home.helper("test", "echo credentials not found in native keychain >&2; exit 1")
    assert await home.find() is None


async def test_each_search_reads_everything_anew(home: Home) -> None:
    assert await home.find() is None
    home.config.write_text('{"auths": {"r.example": {"auth": "dTpw"}}}')
    assert await home.find() == Credential("u", "p")


async def test_a_helper_that_fails_says_why(home: Home) -> None:
    home.config.write_text('{"credsStore": "test"}')
    home.helper("test", "echo 'the keychain is locked'; exit 1")
    with pytest.raises(HelperFailed, match=r"exit code 1: the keychain is locked") as caught:
        await home.find()
    assert str(home.config) in str(caught.value)


async def test_a_helper_that_is_not_there(home: Home) -> None:
    home.config.write_text('{"credsStore": "nowhere"}')
    with pytest.raises(HelperFailed, match="cannot run docker-credential-nowhere: No such file"):
        await home.find()


async def test_a_helper_that_hangs_is_ended(home: Home) -> None:
    home.config.write_text('{"credsStore": "test"}')
    home.helper("test", f"echo $$ >{home.path}/pid; exec sleep 60")
    with pytest.raises(HelperFailed, match=r"did not answer within 0\.3 s"):
        await home.find(limit_seconds=0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((home.path / "pid").read_text()), 0)


async def test_the_event_loop_goes_on_while_a_helper_runs(home: Home) -> None:
    home.config.write_text('{"credsStore": "test"}')
    os.mkfifo(home.path / "gate")
    home.helper("test", f"""read x <{home.path}/gate; echo '{{"Username":"u","Secret":"p"}}'""")
    found: list[Credential | None] = []

    async def search() -> None:
        found.append(await home.find())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(search)
        # Only this task lets the helper end: were the loop blocked, both would wait for ever.
        await trio.to_thread.run_sync((home.path / "gate").write_text, "go\n")
    assert found == [Credential("u", "p")]


async def test_an_answer_that_is_none_shows_no_secret(home: Home) -> None:
    home.config.write_text('{"credsStore": "test"}')
    home.helper("test", "echo geheim")
    with pytest.raises(BadAuthFile) as caught:
        await home.find()
    assert "geheim" not in str(caught.value)


async def test_a_file_that_cannot_be_read(home: Home) -> None:
    home.config.mkdir()
    with pytest.raises(BadAuthFile, match="not a regular file"):
        await home.find()


# Files that the user names


SECRET = b'{"auths": {"r.example": {"username": "u", "password": "p"}}}'


def feed(path: Path) -> threading.Thread:
    thread = threading.Thread(target=lambda: path.write_bytes(SECRET), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("way", ["option", "environment"])
async def test_a_named_pipe_is_read_once_and_serves_each_search(home: Home, way: str) -> None:
    """As ``--authfile <(program)`` is one."""
    pipe = home.path / "pipe"
    os.mkfifo(pipe)
    options = named(home, pipe, way)
    writer = feed(pipe)
    with trio.fail_after(60):
        for _ in range(3):
            found = await find_credential("r.example", "team/app", options)
            assert found == Credential("u", "p")
    writer.join(60)


@pytest.mark.parametrize("way", ["option", "environment"])
async def test_dev_null_is_nobody(home: Home, way: str) -> None:
    home.config.write_bytes(SECRET)
    options = named(home, Path(os.devnull), way)
    assert await find_credential("r.example", "team/app", options) is None


async def test_no_other_device_is_read(home: Home) -> None:
    with pytest.raises(BadAuthFile, match="cannot be read: it is not a file, a pipe or /dev/null"):
        await find_credential("r.example", "a", named(home, Path("/dev/zero"), "option"))


async def test_what_is_found_by_search_must_be_a_file(home: Home) -> None:
    os.mkfifo(home.config)
    with (
        trio.fail_after(60),
        pytest.raises(BadAuthFile, match="cannot be read: it is not a regular file"),
    ):
        await home.find()


def named(home: Home, path: Path, way: str) -> AccessOptions:
    options = home.options
    if way == "option":
        return replace(options, authfile=path)
    return replace(
        options, environment={**options.environment, "REGISTRY_AUTH_FILE": os.fspath(path)}
    )


ANSWER = """echo '{"Username":"u","Secret":"p"}'"""


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about root's own path")
@pytest.mark.parametrize("kind", ["another user's", "group", "others", "sticky"])
async def test_root_looks_where_only_root_can_put_programs(home: Home, kind: str) -> None:
    home.config.write_text('{"credsStore": "test"}')
    home.helper("test", ANSWER)
    assert await home.find() == Credential("u", "p")
    modes = {"group": 0o775, "others": 0o757, "sticky": 0o1777}
    if kind in modes:
        (home.path / "bin").chmod(modes[kind])
    else:
        os.chown(home.path / "bin", 12345, 0)
    with pytest.raises(HelperFailed, match="No such file") as told:
        await home.find()
    assert str(home.path / "bin") in (told.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about root's own path")
async def test_a_path_of_which_nothing_is_left_means_nowhere(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.config.write_text('{"credsStore": "test"}')
    home.helper("test", ANSWER)
    monkeypatch.chdir(home.path / "bin")
    (home.path / "bin").chmod(0o777)
    options = replace(home.options, environment={**home.options.environment, "PATH": "/nothing"})
    with pytest.raises(HelperFailed, match="No such file"):
        await find_credential("r.example", "team/app", options)
