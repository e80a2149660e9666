"""Mounts by a child that was forked in time: for commands that must not start another one."""

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.support.formats.images import estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, run, wait_until
from tests.support.mounts.serving import serving

pytestmark = needs_fuse

BEGIN = """
import os, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from lazyfs.cli.sandboxes.mounter import mounter
from lazyfs.errors import LazyfsError
from lazyfs.registry.config.access import AccessOptions
from lazyfs.service.processes.forks import Maker, forking
from lazyfs.service.processes.handover import TurnedAway

def refuse(*words, **options):
    raise AssertionError("a command was started")

def has_children():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True

access = AccessOptions(environment=dict(os.environ))
cache = Path(os.environ["LAZYFS_CACHE_DIR"])
"""

MOUNT = """
subprocess.run = refuse
image, *folders = sys.argv[1:]
mount = mounter(cache, access)
with mount.ready(), mount.ready(), ThreadPoolExecutor() as pool:
    list(pool.map(lambda folder: mount(image, Path(folder), "box:1"), folders))
print(has_children())
"""


@pytest.fixture
def lazyfs(tmp_path: Path) -> Lazyfs:
    return Lazyfs(tmp_path)


@pytest.fixture
def image(tmp_path: Path, lazyfs: Lazyfs) -> str:
    make_layout(tmp_path / "layout", [estargz_layer(tar_bytes([file("etc/a", b"content")]))])
    done = lazyfs("inspect", f"oci:{tmp_path}/layout", "--json")
    return f"oci:{tmp_path}/layout@{json.loads(done.stdout)['manifestDigest']}"


def script(lazyfs: Lazyfs, code: str, *words: object):
    """Run code in a process that has one thread."""
    return run(sys.executable, "-c", BEGIN + code, *words, env=lazyfs.variables, cwd=lazyfs.folder)


def check_mounts(lazyfs: Lazyfs, image: str, code: str) -> None:
    """Make three mounts by *code* and look at them."""
    folders = [lazyfs.folder / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    try:
        done = script(lazyfs, code, image, *folders)
        assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
        shown = lazyfs.status()
        assert {each["requested"] for each in shown} == {"box:1"}
        assert sorted(each["mountpoint"] for each in shown) == [str(each) for each in folders]
        assert [(folder / "etc/a").read_bytes() for folder in folders] == [b"content"] * 3
    finally:
        for folder in folders:
            force_unmount(folder)


def test_several_come_up_side_by_side(lazyfs: Lazyfs, image: str) -> None:
    check_mounts(lazyfs, image, MOUNT)


def test_the_service_makes_them_where_it_listens(lazyfs: Lazyfs, image: str) -> None:
    with serving(lazyfs):
        check_mounts(lazyfs, image, "os.fork = refuse\n" + MOUNT)


def test_what_was_prepared_is_not_prepared_again(lazyfs: Lazyfs, image: str) -> None:
    """The layout may go: what is asked for is in the store."""
    code = """
import trio
from lazyfs.image.prepare import Request, prepare
found = trio.run(prepare, Request(sys.argv[1], None, cache, access))
import lazyfs.cli.mounts.mounting
lazyfs.cli.mounts.mounting.prepare_shown = refuse
mount = mounter(cache, access)
with mount.ready():
    mount(sys.argv[1], Path(sys.argv[2]), "box:1", found.encode())
"""
    folder = lazyfs.folder / "mnt"
    folder.mkdir()
    try:
        done = script(lazyfs, code, image, folder)
        assert done.returncode == 0, done.stderr
        assert (folder / "etc/a").read_bytes() == b"content"
    finally:
        force_unmount(folder)


def test_what_the_child_meets_is_raised_here(lazyfs: Lazyfs, image: str) -> None:
    code = """
mount = mounter(cache, access, ("-o", sys.argv[3]))
with mount.ready():
    try:
        mount(sys.argv[1], Path(sys.argv[2]), "box:1")
    except LazyfsError as error:
        print(type(error).__name__, error.code, error.message)
"""
    (lazyfs.folder / "mnt").mkdir()
    lost = f"{image.rpartition(':')[0]}:{'0' * 64}"
    for wanted, option, expected in (
        (lost, "noatime", "NotFound"),
        (image, "no-such", "UsageError"),
        (image, "driver=none", "UsageError"),
    ):
        done = script(lazyfs, code, wanted, lazyfs.folder / "mnt", option)
        assert done.stdout.startswith(expected), (done.stdout, done.stderr)


def test_without_a_child_a_command_mounts(lazyfs: Lazyfs, image: str) -> None:
    """A process with threads forks none; nor does one outside of the block."""
    code = """
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
mount = mounter(cache, access)
first, second = sys.argv[2:]
mount(sys.argv[1], Path(first), "box:1")
thread.start()
with mount.ready():
    assert not has_children()
    mount(sys.argv[1], Path(second), "box:1")
stop.set()
thread.join()
"""
    folders = [lazyfs.folder / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    try:
        done = script(lazyfs, code, image, *folders)
        assert done.returncode == 0, done.stderr
        assert len(lazyfs.status()) == 2
    finally:
        for folder in folders:
            force_unmount(folder)


TOY = """
here = Path(sys.argv[1])

def work(words, client, prepared):
    match words[0]:
        case "die":
            os._exit(3)
        case "say":
            os.write(1, sys.stdin.read().encode() + (prepared or b"none"))
            client.confirm()
            return 7
        case "wait":
            try:
                (here / "waiting").touch()
                signal.pause()
            except KeyboardInterrupt:
                (here / "undone").touch()
                raise

def wait(name):
    while not (here / name).exists():
        os.sched_yield()

def ask(forks, word, streams=(0, 1, 2), prepared=None):
    try:
        print(forks.run([word], {}, streams, prepared), flush=True)
    except (LazyfsError, TurnedAway) as error:
        print(type(error).__name__, flush=True)

maker = Maker(work, (), None)
"""


def test_streams_and_what_is_prepared(lazyfs: Lazyfs) -> None:
    """What the parent has read ahead of its standard input is not the child's."""
    code = """
sys.stdin.readline()
(here / "said").write_text("word ")
with forking(maker) as forks, (here / "said").open() as said:
    ask(forks, "say", (said.fileno(), 1, 2), b"known ")
    ask(forks, "say", (0, 1, 2))
"""
    done = run(
        *(sys.executable, "-c", BEGIN + TOY + code, lazyfs.folder),
        env=lazyfs.variables,
        cwd=lazyfs.folder,
        input="first\nsecond\n",
    )
    assert done.stdout == "word known 7\nnone7\n", done.stderr


@pytest.mark.parametrize("way", ["forks.give_up()", "pass"])
def test_what_is_given_up_is_undone(lazyfs: Lazyfs, way: str) -> None:
    """By a word, or by the end of the block: nobody waits then, and nothing is made."""
    code = f"""
with forking(maker) as forks:
    thread = threading.Thread(target=ask, args=(forks, "wait"))
    thread.start()
    wait("waiting")
    {way}
thread.join()
wait("undone")
ask(forks, "wait")
print(has_children())
"""
    done = script(lazyfs, TOY + code, lazyfs.folder)
    assert done.stdout.split() == ["ServerLost", "ServerLost", "False"], done.stderr


def test_a_child_that_dies_is_no_harm(lazyfs: Lazyfs) -> None:
    code = """
with forking(maker) as forks:
    ask(forks, "die")
maker = Maker(work, ("no.such.module",), None)
with forking(maker) as forks:
    ask(forks, "wait")
"""
    done = script(lazyfs, TOY + code, lazyfs.folder)
    assert done.stdout.split() == ["ServerLost", "TurnedAway"], done.stderr


def test_the_end_of_the_parent_ends_all(lazyfs: Lazyfs) -> None:
    """Killed, so that it can tell nobody."""
    code = """
with forking(maker) as forks:
    threading.Thread(target=ask, args=(forks, "wait")).start()
    wait("waiting")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = script(lazyfs, TOY + code, lazyfs.folder)  # returns when nobody has its output open
    assert done.returncode == -signal.SIGKILL
    wait_until((lazyfs.folder / "undone").exists)
