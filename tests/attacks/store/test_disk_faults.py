"""A disk that is full, read-only, failing or gone: mounts go on, say so once, and recover."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.fuse_disk import failing_disk
from tests.support.mounts.mounting import (
    available_drivers,
    force_unmount,
    needs_fuse,
    needs_root,
    run,
    wait_until,
)

pytestmark = [*needs_fuse, *needs_root]

FILES = {f"file{number}": random.Random(number).randbytes(300_000) for number in range(12)}
LARGE = random.Random(99).randbytes(9 << 20)
"""One chunk, larger than what is kept in memory while it is decoded."""


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("layout")
    entries = [directory("d"), *(file(f"d/{name}", data) for name, data in FILES.items())]
    large = estargz_layer(tar_bytes([file("large", LARGE)]), chunk_size=16 << 20)
    make_layout(path, [estargz_layer(tar_bytes(entries)), large])
    return path


class Place:
    """A command whose cache is on a disk of its own."""

    def __init__(self, layout: Path, folder: Path, cache: Path) -> None:
        self.image = f"oci:{layout}"
        self.lazyfs = Lazyfs(folder, environment={"LAZYFS_CACHE_DIR": str(cache)})
        self.cache = cache
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()

    def mount(self, *words: object) -> None:
        self.lazyfs.mount("--no-service", "--prefetch", "none", *words, self.image, self.mountpoint)

    def check(self, *names: str) -> None:
        for name in names or FILES:
            assert (self.mountpoint / "d" / name).read_bytes() == FILES[name]

    def status(self) -> dict:
        (status,) = self.lazyfs.status()
        return status

    def log(self) -> str:
        return "".join(path.read_text() for path in (self.lazyfs.folder / "state").rglob("*.log"))

    def end(self) -> None:
        """Unmount, and see that no server has met a bug."""
        before = self.status()
        done = self.lazyfs("umount", self.mountpoint)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in self.log()
        assert "the server died" not in self.log()
        assert before["successions"] == 0


@contextmanager
def place_on(layout: Path, folder: Path, cache: Path) -> Iterator[Place]:
    here = Place(layout, folder, cache)
    try:
        yield here
    finally:
        force_unmount(here.mountpoint)


@contextmanager
def volume(folder: Path, *options: str, size: int = 64 << 20) -> Iterator[Path]:
    """Mount a fresh ext4 for the time of the block."""
    image, mountpoint = folder / "volume.img", folder / "volume"
    mountpoint.mkdir()
    with image.open("wb") as stream:
        stream.truncate(size)
    if not shutil.which("mkfs.ext4"):
        pytest.skip("no mkfs.ext4")
    done = run("mkfs.ext4", "-q", "-F", "-m", "0", *options, image)
    assert done.returncode == 0, done.stderr
    done = run("mount", "-o", "loop", image, mountpoint)
    if done.returncode != 0:
        pytest.skip(f"no loop devices: {done.stderr}")
    try:
        mountpoint.chmod(0o700)
        yield mountpoint
    finally:
        run("umount", "-l", mountpoint)


def fill(folder: Path) -> Path:
    """Take all room of the disk that *folder* is on."""
    path = folder / "tmp" / "filling"
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096, 1):
            try:
                while stream.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return path


def test_a_fresh_volume_is_a_cache(layout, tmp_path):
    with volume(tmp_path) as cache, place_on(layout, tmp_path, cache) as place:
        assert (cache / "lost+found").is_dir()
        place.mount()
        place.check()
        place.end()


@pytest.mark.parametrize("driver", available_drivers())
def test_a_disk_that_fills_up_and_is_cleared(layout, tmp_path, driver):
    with volume(tmp_path) as cache, place_on(layout, tmp_path, cache) as place:
        place.mount("--driver", driver)
        place.check("file0")
        assert place.status()["health"] == "ok"
        filling = fill(cache)
        place.check()
        status = place.status()
        assert status["health"].startswith("unstored since 2")
        assert "No space left" in status["health"]
        assert status["unstored"]["reason"] == "No space left on device"
        assert status["fetch"]["unstoredChunks"] > 0
        health = os.getxattr(place.mountpoint, "user.lazyfs.health").decode()
        assert health == status["health"]
        assert place.log().count("without being stored") == 1
        assert (place.mountpoint / "large").read_bytes() == LARGE, "large chunks, too"
        filling.unlink()
        resident = sum(layer["residentSize"] for layer in place.status()["layers"])
        wait_until(lambda: place.status()["unstored"] is None)
        assert place.status()["health"] == "ok"
        assert sum(layer["residentSize"] for layer in place.status()["layers"]) > resident
        place.check()
        place.end()


def test_no_inodes(layout, tmp_path):
    with volume(tmp_path, "-N", "64") as cache, place_on(layout, tmp_path, cache) as place:
        (cache / "lost+found").rmdir()
        place.mount()
        number = 0
        try:
            while True:
                (cache / "tmp" / f"x{number}").touch()
                number += 1
        except OSError:
            pass
        place.check()
        assert place.lazyfs("umount", place.mountpoint).returncode == 0
        place.mount()
        place.check()
        place.end()


def test_a_full_disk_from_the_beginning(layout, tmp_path):
    with volume(tmp_path) as cache, place_on(layout, tmp_path, cache) as place:
        assert place.lazyfs("cache", "ls").returncode == 0
        done = place.lazyfs("ls", place.image, "/")
        assert done.returncode == 0
        shutil.rmtree(cache / "layers")
        shutil.rmtree(cache / "images")
        (cache / "layers").mkdir()
        (cache / "images").mkdir()
        fill(cache)
        place.mount()
        place.check()
        assert place.status()["health"].startswith("unstored since")
        place.end()


@pytest.mark.parametrize("words", [(), ("--driver", "pyfuse3")])
def test_a_cache_that_becomes_read_only(layout, tmp_path, words):
    with volume(tmp_path) as cache, place_on(layout, tmp_path, cache) as place:
        place.mount(*words)
        place.check("file0")
        assert place.lazyfs("umount", place.mountpoint).returncode == 0
        assert run("mount", "-o", "remount,ro", cache).returncode == 0
        place.mount(*words)
        place.check()
        status = place.status()
        assert status["health"].startswith("unstored since")
        assert "Read-only" in status["health"]
        assert status["layers"][0]["residentSize"] >= len(FILES["file0"]), "what is here is used"
        place.end()
        for command in (("ls", place.image, "/"), ("cat", place.image, "d/file1")):
            done = place.lazyfs(*command, text=False)
            assert done.returncode == 0
        for command in (("pull", place.image), ("cache", "prune", "--cache-size", "0")):
            done = place.lazyfs(*command)
            assert "OSError" not in done.stderr
            assert "report it" not in done.stderr
            if done.returncode:
                assert "Read-only file system" in done.stderr


def test_an_empty_cache_directory_that_is_read_only(layout, tmp_path):
    with volume(tmp_path) as cache, place_on(layout, tmp_path, cache) as place:
        assert run("mount", "-o", "remount,ro", cache).returncode == 0
        place.mount()
        place.check()
        assert "Read-only" in place.status()["health"]
        place.end()


@pytest.mark.parametrize("content", [b"", bytes(4096), b"\n"])
def test_a_version_that_a_loss_of_power_has_left(layout, tmp_path, content):
    with place_on(layout, tmp_path, tmp_path / "cache") as place:
        assert place.lazyfs("ls", place.image, "/").returncode == 0
        version = tmp_path / "cache/version"
        written = version.read_bytes()
        version.write_bytes(content)
        done = place.lazyfs("ls", place.image, "/")
        assert done.returncode == 0, done.stderr
        assert version.read_bytes() == written
        version.write_bytes(b"7\n")
        done = place.lazyfs("ls", place.image, "/")
        assert done.returncode == 1
        assert "got version '7'" in done.stderr


@pytest.mark.parametrize("words", [(), ("--driver", "pyfuse3"), ("-f",)])
def test_a_cache_that_is_deleted_under_a_mount(layout, tmp_path, words):
    with place_on(layout, tmp_path, tmp_path / "cache") as place:
        process: subprocess.Popen | None = None
        if words == ("-f",):
            process = place.lazyfs.start(
                "mount", "-f", "--prefetch", "none", place.image, place.mountpoint
            )
            assert process.stdout.readline()
        else:
            place.mount(*words)
        place.check("file0")
        shutil.rmtree(tmp_path / "cache")
        place.check()
        assert (place.mountpoint / "large").read_bytes() == LARGE
        if not words:
            before = place.status()["pid"]
            os.kill(before, signal.SIGKILL)
            place.check()
            assert place.status()["pid"] != before
            done = place.lazyfs("restart", place.mountpoint)
            assert done.returncode == 0, done.stderr
            place.check()
        assert place.lazyfs("umount", place.mountpoint).returncode == 0
        assert "Traceback" not in place.log()
        if process is not None:
            _, errors = process.communicate(timeout=20)
            assert process.returncode == 0
            assert "Traceback" not in errors


@pytest.mark.parametrize("driver", available_drivers())
@pytest.mark.parametrize("fault", ["read", "write", "full"])
def test_a_disk_that_fails(layout, tmp_path, driver, fault):
    with failing_disk(tmp_path) as disk, place_on(layout, tmp_path, disk.path) as place:
        place.mount("--driver", driver)
        place.check("file0", "file1")
        disk.fail(fault)
        for name in ("file0", "file1"):
            fd = os.open(place.mountpoint / "d" / name, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        place.check()
        assert (place.mountpoint / "large").read_bytes() == LARGE
        status = place.status()
        if fault != "read":
            assert status["health"].startswith("unstored since")
        disk.fail()
        place.check()
        place.end()


def test_no_room_for_a_log(layout, tmp_path):
    with (
        volume(tmp_path, size=16 << 20) as state,
        place_on(layout, tmp_path, tmp_path / "c") as place,
    ):
        place.lazyfs.environment["LAZYFS_STATE_DIR"] = str(state)
        assert run("mount", "-o", "remount,ro", state).returncode == 0
        done = place.lazyfs("mount", "--no-service", place.image, place.mountpoint)
        assert done.returncode == 0, done.stderr
        assert "there is no log" in done.stderr
        place.check()
        assert place.lazyfs("umount", place.mountpoint).returncode == 0
        assert Path("/dev/null").is_char_device()
