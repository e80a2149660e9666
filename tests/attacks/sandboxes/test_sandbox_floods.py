"""A program in a sandbox that takes all that it can get: of disk, memory and processes."""

import contextlib
import json
from pathlib import Path

import pytest

from tests.attacks.conftest import RUNTIMES, WHO, Hostile
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import needs_fuse, needs_root, wait_until

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]

STAGED = ("crun", "runc", "bwrap")
FLOOD = 4 << 20
LOG = 1 << 16


@contextlib.contextmanager
def running(hostile: Hostile, who: str, runtime: str, *options: object, attack: tuple = ("wait",)):
    """Give the folder of a sandbox in the background; the id is the runtime's name."""
    lazyfs = hostile.commands[who]
    words = [*hostile.words_of(runtime), "--detach", "--id", f"flood-{runtime}", *options]
    done = lazyfs("run", *words, hostile.image, "--", "/bin/probe", *attack, timeout=90)
    assert done.returncode == 0, done.stderr
    try:
        yield lazyfs.folder / "state" / "sandboxes" / f"flood-{runtime}"
    finally:
        done = lazyfs("delete", "--force", f"flood-{runtime}", timeout=90)
    assert done.returncode == 0, done.stderr


def is_over(lazyfs: Lazyfs, name: str) -> bool:
    return lazyfs("recover").stdout.split() != [name, "RUNNING"]


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_flood_of_output(hostile: Hostile, runtime: str, who: str) -> None:
    """The newest output is kept, in files of the size that was asked for."""
    options = ("--log-opt", "max-size=64K", "--log-opt", "max-file=2")
    with running(hostile, who, runtime, *options, attack=("flood-log", FLOOD)) as folder:
        logs = folder / "logs"

        def is_whole() -> bool:
            try:
                return (logs / "layout.log").read_bytes().endswith(b"the end\n")
            except FileNotFoundError:  # not yet, or while the next file takes its place
                return False

        wait_until(is_whole)
        kept = sorted(path.name for path in logs.glob("layout.log*"))
        assert kept == ["layout.log", "layout.log.1"]
        sizes = [(logs / name).stat().st_size for name in kept]
        assert max(sizes) <= LOG
        assert sizes[1] == LOG
        assert (logs / "layout.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("runtime", STAGED)
def test_output_is_kept_in_order_and_whole(hostile: Hostile, runtime: str) -> None:
    with running(hostile, "root", runtime, attack=("flood-log", FLOOD)) as folder:
        path = folder / "logs" / "layout.log"
        wait_until(lambda: path.exists() and path.read_bytes().endswith(b"the end\n"))
        assert path.stat().st_size == FLOOD + len(b"the end\n")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("place", ["/dev/shm/flood", "/dev/flood"])
def test_a_flood_of_what_is_in_memory(hostile: Hostile, runtime: str, who: str, place: str) -> None:
    if runtime == "runsc" and place == "/dev/flood":
        pytest.skip("gVisor's /dev has no size: it counts as the sandbox's memory")
    done = hostile.run(runtime, who, "flood-file", place, 100 << 20)
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said["flood-file"] in ("ENOSPC", "EROFS"), done.stderr
    assert int(said["written"]) <= 64 << 20


@pytest.mark.parametrize("runtime", STAGED)
def test_a_flood_of_the_root(hostile: Hostile, runtime: str) -> None:
    options = ("--storage-opt", "size=8M")
    done = hostile.run(runtime, "root", "flood-file", "/tmp/flood", 64 << 20, options=options)
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said["flood-file"] == "ENOSPC", done.stderr
    assert int(said["written"]) <= 8 << 20


@pytest.mark.parametrize("runtime", STAGED)
def test_the_root_has_a_size_without_being_asked(hostile: Hostile, runtime: str) -> None:
    with running(hostile, "root", runtime) as folder:
        (known,) = (folder / "runtime").glob("*.json")
        shell = json.loads(known.read_text())["shell"]
        mounts = Path(f"/proc/{shell}/mounts").read_text().splitlines()
        (stage,) = [line for line in mounts if f"{folder}/runtime/stage tmpfs" in line]
        size = next(word for word in stage.split()[3].split(",") if word.startswith("size="))
        memory = Path("/proc/meminfo").read_text().split()[1]
        assert int(size.removeprefix("size=").removesuffix("k")) <= int(memory) // 4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_bomb_of_processes(hostile: Hostile, runtime: str) -> None:
    limit = 200 if runtime == "runsc" else 20  # gVisor's own threads count too
    done = hostile.run(runtime, "root", "flood-pids", 2000, options=("--pids-limit", str(limit)))
    said = [line for line in done.stdout.splitlines() if line.startswith("made ")]
    made = [int(line.split()[1]) for line in said]
    assert all(count < limit for count in made), done.stdout
    assert said or done.returncode != 0, done.stderr  # or it did not survive it itself
    assert no_groups_are_left(runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_too_much_memory(hostile: Hostile, runtime: str) -> None:
    limit = "256M" if runtime == "runsc" else "32M"
    options = ("--memory", limit)
    done = hostile.run(runtime, "root", "flood-memory", 1 << 30, options=options)
    assert "flood-memory ok" not in done.stdout
    assert done.returncode != 0
    assert no_groups_are_left(runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_limits_are_in_force_and_go_with_the_sandbox(hostile: Hostile, runtime: str) -> None:
    options = ("--memory", "512M", "--cpus", "0.5", "--pids-limit", "300")
    with running(hostile, "root", runtime, *options) as folder:
        kept = json.loads((folder / "runtime" / "cgroups.json").read_text())
        assert kept
        processes = set()
        for group in map(Path, kept):
            processes |= set((group / "cgroup.procs").read_text().split())
        assert processes
        texts = [
            path.read_text().strip()
            for group in map(Path, kept)
            for name in ("memory.max", "memory.limit_in_bytes", "pids.max")
            if (path := group / name).exists()
        ]
        assert sorted(texts) == sorted([str(512 << 20), "300"])
    assert not any(Path(group).exists() for group in kept)


def no_groups_are_left(runtime: str) -> bool:
    folders = Path("/sys/fs/cgroup").glob("**/lazyfs-probe-*")
    return not [path for path in folders if runtime in path.name]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_limits_that_cannot_be_set_are_refused_before_anything_starts(
    hostile: Hostile, runtime: str
) -> None:
    done = hostile.run(runtime, "user", "euid", options=("--memory", "64M"))
    if done.returncode == 0:
        pytest.skip("groups are delegated to this user")
    assert done.returncode == 54
    assert "memory cannot be limited here" in done.stderr
    assert not list((hostile.commands["user"].folder / "state" / "sandboxes").glob("*"))


def test_the_root_of_runsc_is_limited_by_its_memory_only(hostile: Hostile) -> None:
    done = hostile.run("runsc", "root", "euid", options=("--storage-opt", "size=8M"))
    assert done.returncode == 54
    assert "runsc cannot limit storage" in done.stderr
