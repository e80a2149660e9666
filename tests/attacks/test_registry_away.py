"""A registry that is away, throttles or stalls: who reads waits, is told, leaves when he likes,
and goes on when it is back."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    tampered,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    available_drivers,
    force_unmount,
    needs_erofs,
    needs_fuse,
    wait_until,
)
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry

pytestmark = needs_fuse

FILES = {f"file{number}": random.Random(number).randbytes(200_000) for number in range(8)}
LONG = "60s"
"""Longer than anything here takes."""

SHORT = 1.5
DRIVERS = [
    *available_drivers(),
    pytest.param("erofs", marks=needs_erofs),
]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("layout")
    entries = [directory("d"), *(file(f"d/{name}", data) for name, data in FILES.items())]
    make_layout(path, [estargz_layer(tar_bytes(entries))])
    return path


class Place:
    """A registry on one port that can go away and come back, and a mount of an image of it."""

    def __init__(self, layout: Path, folder: Path) -> None:
        self.layout = layout
        self.lazyfs = Lazyfs(folder)
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.registry = FakeRegistry(layout).start()
        self.port = self.registry.port
        self.readers = ThreadPoolExecutor(80)

    def mount(self, *words: object) -> None:
        image = f"{self.registry.host}/image"
        open_to_all = ("-o", "allow_other") if "erofs" in words else ()
        words = ("--no-service", "--prefetch", "none", *open_to_all, *words)
        self.lazyfs.mount(*words, image, self.mountpoint)
        assert self.read("file0") == FILES["file0"]

    def read(self, name: str) -> bytes:
        return (self.mountpoint / "d" / name).read_bytes()

    def reading(self, name: str) -> "Future[bytes]":
        return self.readers.submit(self.read, name)

    def health(self) -> str:
        return os.getxattr(self.mountpoint, "user.lazyfs.health").decode()

    def status(self) -> dict:
        def is_one() -> bool:
            found[:] = self.lazyfs.status()
            return len(found) == 1

        found: list[dict] = []
        wait_until(is_one)  # there may be none while a successor takes over
        return found[0]

    def wait_away(self) -> None:
        wait_until(lambda: self.status()["health"].startswith("unavailable since 2"))

    def close_registry(self) -> None:
        self.registry.close()

    def reopen_registry(self) -> None:
        self.registry = FakeRegistry(self.layout, port=self.port).start()

    def close(self) -> None:
        force_unmount(self.mountpoint)  # readers get errors
        self.readers.shutdown()
        self.registry.close()


@pytest.fixture
def place(layout, tmp_path) -> Iterator[Place]:
    here = Place(layout, tmp_path)
    try:
        yield here
    finally:
        here.close()


@contextmanager
def throttled(place: Place, behaviour: faults.Behaviour) -> Iterator[None]:
    place.registry.faults.add(behaviour, path="/blobs/", times=None)
    try:
        yield
    finally:
        place.registry.faults.clear()
        place.registry.release_once()


@contextmanager
def refusing(place: Place) -> Iterator[None]:
    place.close_registry()
    try:
        yield
    finally:
        place.reopen_registry()


KINDS: dict[str, Callable[[Place], object]] = {
    "refused": refusing,
    "429": lambda place: throttled(place, faults.status(429)),
    "429 with Retry-After": lambda place: throttled(
        place, faults.status(429, {"Retry-After": "1"})
    ),
    "503": lambda place: throttled(place, faults.status(503)),
    "black hole": lambda place: throttled(place, faults.hang(-1)),
    "stalls": lambda place: throttled(place, faults.hang(0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_readers_wait_and_go_on(place, kind):
    place.mount("--patience", LONG)
    with KINDS[kind](place):
        reader = place.reading("file5")
        place.wait_away()
        assert not reader.done()
        assert place.status()["unavailable"]["reason"]
        assert place.health().startswith("unavailable since 2")
        assert "unavailable since" in place.lazyfs("status").stdout
        assert place.read("file0") == FILES["file0"], "what is here needs nobody"
    assert reader.result(30) == FILES["file5"]
    wait_until(lambda: place.health() == "ok")
    assert place.status()["health"] == "ok"
    assert place.status()["unavailable"] is None


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_waits(place, driver):
    place.mount("--patience", LONG, "--driver", driver)
    with refusing(place):
        reader = place.reading("file5")
        place.wait_away()
        assert not reader.done()
    assert reader.result(30) == FILES["file5"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_one_number(place, kind):
    place.mount("--patience", f"{SHORT}s")
    assert place.status()["patienceSeconds"] == SHORT
    with KINDS[kind](place):
        began = time.monotonic()
        with pytest.raises(OSError) as caught:
            place.read("file5")
        assert caught.value.errno == errno.ETIMEDOUT
        assert time.monotonic() - began >= SHORT
    wait_until(lambda: place.status()["health"] == "ok")
    assert place.read("file6") == FILES["file6"]


def test_who_has_no_patience_is_told_at_once(place):
    place.mount("--patience", "0")
    with throttled(place, faults.status(503)):
        with pytest.raises(OSError) as caught:
            place.read("file5")
        assert caught.value.errno == errno.EIO
        assert place.health() == "ok"


def test_wrong_bytes_never_wait(layout, place):
    """Whatever is the matter with the registry: a chunk that is wrong is EIO, now."""
    place.mount("--patience", LONG)

    def garbled(request, answer):
        return faults.replaced(tampered(answer.content(), len(answer.content()) // 2, 0xFF))(
            request, answer
        )

    with throttled(place, garbled):
        with pytest.raises(OSError) as caught:
            place.read("file5")
        assert caught.value.errno == errno.EIO
    assert place.health().startswith("corrupt")


@pytest.mark.parametrize("driver", available_drivers())
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_reader_that_is_killed_leaves(place, driver, number):
    place.mount("--patience", LONG, "--driver", driver)
    with refusing(place):
        path = place.mountpoint / "d/file5"
        reader = subprocess.Popen(
            [sys.executable, "-c", "import sys; open(sys.argv[1],'rb').read()", path]
        )
        place.wait_away()
        reader.send_signal(number)
        assert reader.wait(20) == -number
        assert place.read("file0") == FILES["file0"]


def test_a_successor_has_the_same_patience(place):
    place.mount("--patience", LONG)
    with refusing(place):
        reader = place.reading("file5")
        place.wait_away()
        before = place.status()
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: place.status()["pid"] != before["pid"])
        wait_until(lambda: place.status()["state"] == "serving")
        assert place.status()["patienceSeconds"] == before["patienceSeconds"] == 60
        place.wait_away()
        assert not reader.done()
        done = place.lazyfs("restart", place.mountpoint)
        assert done.returncode == 0, done.stderr
        assert place.status()["patienceSeconds"] == 60
        assert not reader.done()
    assert reader.result(30) == FILES["file5"]


def test_preparing_has_a_short_bound(place):
    """A command that somebody waits for fails soon, whatever the patience."""
    place.close_registry()
    try:
        done = place.lazyfs(
            "mount", "--patience", "24h", f"127.0.0.1:{place.port}/image", place.mountpoint
        )
        assert done.returncode == 5
        assert "cannot reach" in done.stderr
    finally:
        place.reopen_registry()


def test_the_environment_and_fstab_have_a_word_for_it(place):
    place.lazyfs.environment["LAZYFS_PATIENCE"] = "7m"
    place.mount()
    assert place.status()["patienceSeconds"] == 420
    assert place.lazyfs("umount", place.mountpoint).returncode == 0
    place.mount("-o", "ro,patience=5m")
    assert place.status()["patienceSeconds"] == 300
    done = place.lazyfs("mount", "--patience", "soon", "x/y", place.mountpoint)
    assert done.returncode == 2
    assert "is not a time such as 90s" in done.stderr


@pytest.mark.parametrize("driver", DRIVERS)
def test_many_that_wait_are_in_nobodys_way(place, layout, driver):
    """More readers than the kernel lets be under way by itself: hits of other files go on."""
    place.mount("--patience", LONG, "--driver", driver)
    with refusing(place):
        waiting = [place.reading(f"file{1 + number % 7}") for number in range(70)]
        place.wait_away()
        wait_until(lambda: place.status()["reads"]["misses"] >= 7)
        fd = os.open(place.mountpoint / "d/file0", os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        hit = place.reading("file0")
        assert hit.result(20) == FILES["file0"]
        assert not any(each.done() for each in waiting)
    for number, each in enumerate(waiting):
        assert each.result(30) == FILES[f"file{1 + number % 7}"]


def is_one_byte(text: str | None) -> bool:
    return bool(text) and len({*text.removeprefix("bytes=").split("-")}) == 1


def test_waiting_readers_share_one_probe(place):
    place.mount("--patience", LONG)
    with throttled(place, faults.status(503)):
        waiting = [place.reading(f"file{1 + number % 7}") for number in range(70)]
        place.wait_away()
        asked = threading.Event()

        def counted(request, answer):
            seen.append(request.headers.get("range"))
            if all(is_one_byte(text) for text in seen[-4:]) and len(seen) >= 4:
                asked.set()  # what was on its way before has failed by now
            return faults.status(503)(request, answer)

        seen: list[str | None] = []
        place.registry.faults.clear()
        place.registry.faults.add(counted, path="/blobs/", times=None)
        assert asked.wait(30), seen
        before = len(seen)
        time.sleep(1)
        assert all(is_one_byte(text) for text in seen[before:]), seen
    assert all(each.result(30) for each in waiting)


def test_a_retry_after_is_obeyed_by_the_probe(place):
    place.mount("--patience", LONG)
    times: list[float] = []

    def later(request, answer):
        times.append(time.monotonic())
        return faults.status(429, {"Retry-After": "2"})(request, answer)

    with throttled(place, later):
        reader = place.reading("file5")
        place.wait_away()
        wait_until(lambda: len(times) >= 3)
    assert reader.result(30) == FILES["file5"]
    assert times[2] - times[1] >= 1.9


def test_a_connection_that_stalls_is_given_up(place):
    """The registry answers, but one answer ends in silence: it is asked for again, by another."""
    place.mount("--patience", LONG)
    rule = place.registry.faults.add(faults.hang(1000), path="/blobs/", ranged=True)
    assert place.reading("file5").result(25) == FILES["file5"], "before the idle limit of 30 s"
    assert rule.hits == 1
    assert place.health() == "ok"


def test_json_says_what_status_says(place):
    place.mount("--patience", LONG)
    with refusing(place):
        reader = place.reading("file5")
        place.wait_away()
        found = json.loads(place.lazyfs("attrs", "--json", place.mountpoint).stdout)
        assert found["attributes"]["user.lazyfs.health"].startswith("unavailable since")
    assert reader.result(30) == FILES["file5"]
