"""A server that dies is succeeded by another one, and nobody who uses the mount can tell."""

import os
import shutil
import signal
import subprocess

import pytest

from lazyfs.service.record import start_ticks_of
from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.chaos import kill_once, kill_under_load, server_of
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    ROOT,
    SECONDS,
    available_drivers,
    force_unmount,
    is_mounted,
    needs_fuse,
    wait_until,
    why_no_erofs,
)

pytestmark = [
    *needs_fuse,
    pytest.mark.skipif("native" not in available_drivers(), reason="no native driver"),
]


KERNEL = ["erofs"] if os.geteuid() == 0 and why_no_erofs() is None else []


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("layout")
    items = [directory("own"), file("own/file", b"content" * 1000)]
    make_layout(path, [estargz_layer(tar_bytes(items))])
    return path


@pytest.fixture
def mountpoint(lazyfs, layout, tmp_path):
    """An image mounted, with a keeper that watches."""
    path = tmp_path / "mnt"
    path.mkdir()
    try:
        lazyfs.mount(f"oci:{layout}", path)
        wait_until(lambda: lazyfs.status()[0]["keeperPid"])
        yield path
    finally:
        force_unmount(path)


def read(mountpoint) -> bytes:
    path = mountpoint / "own/file"
    with path.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return opened.read()


def is_gone(pid: int) -> bool:
    return start_ticks_of(pid) is None


@pytest.mark.parametrize("driver", ["native", *KERNEL])
def test_no_read_fails_while_servers_are_killed(tmp_path, driver):
    """A few times; ``make kill-soak`` does it until one is content."""
    report = kill_under_load(tmp_path, kills=5, driver=driver)
    assert report.failures == []
    assert report.kills == 5
    assert report.looks > 100
    assert report.requests > 10, "chunks were to be fetched meanwhile"
    assert report.log.count("the server died; starting another") == 5
    assert "Traceback" not in report.log


def test_what_a_status_says(lazyfs, mountpoint):
    (before,) = lazyfs.status()
    assert (before["successions"], before["keeperNote"]) == (0, "")
    kill_once(lazyfs)
    (after,) = lazyfs.status()
    assert after["state"] == "serving"
    assert after["successions"] == 1
    assert after["pid"] != before["pid"]
    wait_until(lambda: lazyfs.status()[0]["keeperPid"] == before["keeperPid"])
    for name in ("mountId", "started", "driver", "resolved", "log"):
        assert after[name] == before[name]
    mount_id = os.getxattr(mountpoint, "user.lazyfs.mount.id").decode()
    assert mount_id == before["mountId"]
    assert f"keeper     pid {before['keeperPid']}" in lazyfs("status").stdout


def test_the_store_is_believed_by_a_successor(lazyfs, mountpoint):
    """The keeper holds the layers, so that nothing is hashed again, and nobody removes them."""
    assert read(mountpoint) == b"content" * 1000
    wait_until(lambda: all(layer["residentSize"] == layer["contentSize"]
                           for layer in lazyfs.status()[0]["layers"]))  # fmt: skip
    kill_once(lazyfs)
    (layer,) = lazyfs.status()[0]["layers"]
    assert layer["residentSize"] == layer["contentSize"]
    assert read(mountpoint) == b"content" * 1000


def test_unmounting_ends_everybody(lazyfs, mountpoint):
    (status,) = lazyfs.status()
    kill_once(lazyfs)
    successor = server_of(lazyfs)
    assert lazyfs("umount", mountpoint).returncode == 0
    assert not is_mounted(mountpoint)
    wait_until(lambda: is_gone(status["keeperPid"]) and is_gone(successor))
    assert lazyfs.records() == []


def test_a_clean_end_leaves_a_store_that_is_believed(lazyfs, mountpoint, layout):
    assert read(mountpoint) == b"content" * 1000
    assert lazyfs("umount", mountpoint).returncode == 0
    (presence,) = (lazyfs.folder / "cache").glob("layers/*/presence")
    clean = int.from_bytes(presence.read_bytes()[12:16], "little")
    assert clean == 1, "the keeper's hold on the map ended before the server's"


def test_sigterm_unmounts(lazyfs, mountpoint):
    (status,) = lazyfs.status()
    os.kill(status["pid"], signal.SIGTERM)
    wait_until(lambda: is_gone(status["pid"]) and is_gone(status["keeperPid"]))
    assert not is_mounted(mountpoint)


def test_a_killed_keeper_is_replaced(lazyfs, mountpoint):
    (status,) = lazyfs.status()
    os.kill(status["keeperPid"], signal.SIGKILL)
    wait_until(lambda: lazyfs.status()[0]["keeperPid"] not in (None, status["keeperPid"]))
    assert lazyfs.status()[0]["pid"] == status["pid"]
    kill_once(lazyfs)
    assert read(mountpoint) == b"content" * 1000


def test_restart(lazyfs, mountpoint):
    (before,) = lazyfs.status()
    with (mountpoint / "own/file").open("rb") as opened:
        done = lazyfs("restart", mountpoint)
        assert done.returncode == 0, done.stderr
        (after,) = lazyfs.status()
        assert after["pid"] != before["pid"]
        assert opened.read() == b"content" * 1000
    assert read(mountpoint) == b"content" * 1000


def test_restart_without_a_mount(lazyfs, tmp_path):
    done = lazyfs("restart", tmp_path)
    assert done.returncode == 8
    assert "is not a lazyfs mount with a running server" in done.stderr


def test_a_server_that_dies_again_and_again(layout, tmp_path):
    """After so many in a minute the mount is given up, not left dead."""
    lazyfs = Lazyfs(tmp_path, environment={"LAZYFS_SUCCESSORS": "2"})
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    try:
        lazyfs.mount(f"oci:{layout}", mountpoint)
        for _ in range(2):
            wait_until(lambda: lazyfs.status()[0].get("keeperPid"))
            kill_once(lazyfs)
        keeper = lazyfs.status()[0]["keeperPid"]
        os.kill(server_of(lazyfs), signal.SIGKILL)
        wait_until(lambda: not is_mounted(mountpoint))
        wait_until(lambda: is_gone(keeper))
        (log,) = (tmp_path / "state/log").glob("*.log")
        assert "died 3 times in a minute; unmounting" in log.read_text()
    finally:
        force_unmount(mountpoint)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--driver", "pyfuse3"], "driver pyfuse3 cannot hand its mount to a new server"),
        (["-o", "auto_unmount"], "with auto_unmount the mount ends with its server"),
    ],
)
def test_mounts_without_a_keeper(lazyfs, layout, tmp_path, words, why):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    try:
        lazyfs.mount(f"oci:{layout}", mountpoint, *words)
        (status,) = lazyfs.status()
        assert (status["keeperPid"], status["keeperNote"]) == (None, why)
        assert f"keeper     none: {why}" in lazyfs("status").stdout
        done = lazyfs("restart", mountpoint)
        assert done.returncode == 8
        assert "has no keeper" in done.stderr
    finally:
        lazyfs("umount", mountpoint)
        force_unmount(mountpoint)


def test_the_foreground_has_no_keeper(lazyfs, layout, tmp_path):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    process = lazyfs.start("mount", "--foreground", f"oci:{layout}", mountpoint)
    try:
        assert process.stdout.readline() == f"{mountpoint}\n"
        (status,) = lazyfs.status()
        assert status["keeperPid"] is None
        assert "foreground" in status["keeperNote"]
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)
        force_unmount(mountpoint)


def test_a_keeper_is_small(lazyfs, mountpoint):
    keeper = lazyfs.status()[0]["keeperPid"]
    with open(f"/proc/{keeper}/smaps_rollup") as rollup:
        sizes = dict(line.split()[:2] for line in list(rollup)[1:])
    assert int(sizes["Private_Dirty:"]) < 5000, "in KiB"


OLD_KERNEL = """

decode = Legacy.decode

def without_resending(data):
    legacy = decode(data)
    old = msgspec.structs.replace(legacy.connection, flags=0)
    return msgspec.structs.replace(legacy, connection=old)

Legacy.decode = staticmethod(without_resending)
"""


def test_a_kernel_that_cannot_resend(lazyfs, layout, tmp_path):
    """Everything but what the dead server had taken is served, twice over; nobody hangs."""
    site, mountpoint = tmp_path / "site", tmp_path / "mnt"
    mountpoint.mkdir()
    # A package of its own: variables do not reach the next server's interpreter.
    shutil.copytree(ROOT / "lazyfs", site / "lazyfs", ignore=shutil.ignore_patterns("*.pyc"))
    with open(site / "lazyfs/service/processes/keeping.py", "a") as file:
        file.write(OLD_KERNEL)
    lazyfs.environment["PYTHONPATH"] = str(site)
    try:
        lazyfs.mount(f"oci:{layout}", mountpoint)
        for count in (1, 2):
            wait_until(lambda: lazyfs.status()[0].get("keeperPid"))
            keeper = lazyfs.status()[0]["keeperPid"]
            kill_once(lazyfs)
            wait_until(lambda: is_gone(keeper), 10)  # noqa: B023
            assert read(mountpoint) == b"content" * 1000
            assert lazyfs.status()[0]["successions"] == count
        assert lazyfs("umount", mountpoint).returncode == 0
    finally:
        force_unmount(mountpoint)


def test_nothing_is_left_running(lazyfs, mountpoint):
    (status,) = lazyfs.status()
    assert lazyfs("umount", mountpoint).returncode == 0
    wait_until(lambda: is_gone(status["keeperPid"]))
    done = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert str(mountpoint) not in done.stdout
