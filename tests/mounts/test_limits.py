"""What a mount is held to, and what it counts: cache size, background limit, statistics."""

import json
import os
import random
import re
import signal
from pathlib import Path

import pytest

from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    SECONDS,
    available_drivers,
    force_unmount,
    is_mounted,
    needs_fuse,
    wait_until,
)
from tests.support.registries.registry import FakeRegistry

pytestmark = needs_fuse

FILES = [random.Random(seed).randbytes(400_000) for seed in range(10)]


def make_image(path, seed: int = 0) -> None:
    rng = random.Random(seed)
    entries = [directory("data")]
    entries += [file(f"data/{n}", data) for n, data in enumerate(FILES)]
    entries.append(file("data/own", rng.randbytes(100_000)))
    make_layout(path, [estargz_layer(tar_bytes(entries))])


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """An image of 4 MB in a layout on disk."""
    path = tmp_path_factory.mktemp("layout")
    make_image(path)
    return path


@pytest.fixture
def lazyfs(tmp_path):
    return Lazyfs(tmp_path, environment={"LAZYFS_SERVICE": "0"})


def usage(lazyfs: Lazyfs) -> dict:
    return json.loads(lazyfs("cache", "du", "--json").stdout)


def status_of(lazyfs: Lazyfs) -> dict:
    (status,) = lazyfs.status()
    return status


def resident_of(lazyfs: Lazyfs) -> int:
    return sum(layer["residentSize"] for layer in status_of(lazyfs)["layers"])


def is_filled(lazyfs: Lazyfs) -> bool:
    return all(
        layer["residentSize"] == layer["contentSize"] for layer in status_of(lazyfs)["layers"]
    )


# The cache's size


def test_a_mount_that_ends_leaves_the_cache_within_its_size(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint, "--prefetch", "none", "--cache-size", "2MB")
    for number, data in enumerate(FILES):
        assert (mountpoint / f"data/{number}").read_bytes() == data
    assert usage(lazyfs)["allocatedSize"] > 4_000_000, "what is mounted stays"
    assert status_of(lazyfs)["cacheSize"] == 2_000_000
    assert lazyfs("umount", mountpoint).returncode == 0
    found = usage(lazyfs)
    assert found["allocatedSize"] < 2_000_000
    assert len(found["images"]) == 1
    lazyfs.mount(f"oci:{layout}", mountpoint, "--prefetch", "none")
    assert (mountpoint / "data/0").read_bytes() == FILES[0]
    assert lazyfs("umount", mountpoint).returncode == 0
    assert usage(lazyfs)["layers"][0]["residentSize"] > 0, "20 % of the disk is enough"


def test_filling_makes_room_and_stops_where_there_is_none(lazyfs, tmp_path, layout, mountpoint):
    other = tmp_path / "other"
    make_image(other, seed=1)
    assert lazyfs("verify", f"oci:{other}").returncode == 0
    (old,) = usage(lazyfs)["layers"]
    words = ("-v", "mount", f"oci:{layout}", mountpoint, "-o", "cache_size=3MB")
    assert lazyfs(*words).returncode == 0
    log = Path(status_of(lazyfs)["log"])
    wait_until(lambda: "background fill stops" in log.read_text())
    layers = {layer["tocDigest"]: layer for layer in usage(lazyfs)["layers"]}
    assert layers[old["tocDigest"]]["residentSize"] == 0, "it was not in use"
    # What three workers have asked for when room runs out comes on top.
    assert 1_000_000 < resident_of(lazyfs) < 4_000_000
    assert not is_filled(lazyfs)
    for number, data in enumerate(FILES):
        assert (mountpoint / f"data/{number}").read_bytes() == data
    assert lazyfs("umount", mountpoint).returncode == 0


def test_two_mounts_share_a_size(lazyfs, tmp_path, layout, mountpoint):
    other, second = tmp_path / "other", tmp_path / "second"
    make_image(other, seed=1)
    second.mkdir()
    lazyfs.environment["LAZYFS_CACHE_SIZE"] = "1MB"
    try:
        lazyfs.mount(f"oci:{layout}", mountpoint, "--prefetch", "none")
        lazyfs.mount(f"oci:{other}", second, "--prefetch", "none")
        for number, data in enumerate(FILES):
            assert (mountpoint / f"data/{number}").read_bytes() == data
            assert (second / f"data/{number}").read_bytes() == data
        assert lazyfs("umount", second).returncode == 0
        living, idle = sorted(usage(lazyfs)["layers"], key=lambda layer: not layer["inUse"])
        assert living["residentSize"] >= 4_000_000
        assert idle["residentSize"] == 0, usage(lazyfs)
        for number, data in enumerate(FILES):
            assert (mountpoint / f"data/{number}").read_bytes() == data
        assert lazyfs("umount", mountpoint).returncode == 0
        assert usage(lazyfs)["allocatedSize"] < 1_000_000
    finally:
        force_unmount(second)


@pytest.mark.parametrize(
    "words",
    [
        ("--cache-size", "much"),
        ("-o", "cache_size=101%"),
        ("--background-limit", "fast"),
        ("-o", "background_limit=10Mb/s"),
    ],
)
def test_what_is_no_quantity(lazyfs, layout, mountpoint, words):
    done = lazyfs("mount", f"oci:{layout}", mountpoint, *words)
    assert done.returncode == 2
    assert re.search(r"is not a (size|rate) such as|is more than 100%", done.stderr)
    assert not is_mounted(mountpoint)


# The background limit


def test_the_background_is_limited_and_readers_are_not(lazyfs, layout, mountpoint):
    rate = 500_000
    with FakeRegistry(layout) as registry:
        image = f"{registry.host}/data"
        lazyfs.mount(image, mountpoint, "--background-limit", "4Mbit/s")
        status = status_of(lazyfs)
        assert status["backgroundLimit"] == rate
        wait_until(lambda: status_of(lazyfs)["fetch"]["background"]["requests"] >= 3)
        status = status_of(lazyfs)
        background = status["fetch"]["background"]["size"]
        assert background <= (status["uptimeSeconds"] + 1) * rate + 400_000
        assert background < 3_000_000
        for number, data in enumerate(FILES):
            assert (mountpoint / f"data/{number}").read_bytes() == data
        fetch = status_of(lazyfs)["fetch"]
        assert fetch["demand"]["size"] + fetch["ahead"]["size"] > 1_000_000
        assert lazyfs("umount", mountpoint).returncode == 0


# Statistics


@pytest.mark.parametrize("driver", available_drivers())
def test_what_was_fetched_and_used(lazyfs, layout, mountpoint, driver):
    with FakeRegistry(layout) as registry:
        image = f"{registry.host}/data"
        lazyfs.mount(image, mountpoint, "--driver", driver, "--prefetch", "none")
        status = status_of(lazyfs)
        assert status["driver"] == driver
        assert 0 < status["readySeconds"] < SECONDS
        assert (status["reads"]["hits"], status["reads"]["misses"]) == (0, 0)
        assert status["link"] == {"roundTripSeconds": None, "bandwidth": None}
        assert (mountpoint / "data/3").read_bytes() == FILES[3]
        status = status_of(lazyfs)
        fetch = status["fetch"]
        assert fetch["demand"]["requests"] > 0
        assert 400_000 <= fetch["demand"]["usedSize"] <= fetch["demand"]["contentSize"]
        assert fetch["background"] == {
            "requests": 0,
            "size": 0,
            "contentSize": 0,
            "usedSize": 0,
        }
        assert status["reads"]["misses"] > 0
        assert status["reads"]["waits"]["count"] > 0
        assert status["reads"]["waits"]["longestSeconds"] > 0
        assert status["link"]["roundTripSeconds"] > 0
        (endpoint,) = status["endpoints"]
        assert endpoint["requests"] == status["source"]["requests"] > 0
        assert endpoint["receivedSize"] == status["source"]["receivedSize"] > 400_000
        assert lazyfs("umount", mountpoint).returncode == 0

        # Profile and background now; what they bring is hit, and used when it is read.
        assert lazyfs("cache", "prune", "--size", "0").returncode == 0
        lazyfs.mount(image, mountpoint, "--driver", driver)
        wait_until(lambda: is_filled(lazyfs))
        fetch = status_of(lazyfs)["fetch"]
        assert fetch["profile"]["contentSize"] >= 400_000
        assert fetch["background"]["contentSize"] > 3_000_000
        assert fetch["background"]["usedSize"] == fetch["profile"]["usedSize"] == 0
        assert (mountpoint / "data/3").read_bytes() == FILES[3]
        assert (mountpoint / "data/8").read_bytes() == FILES[8]
        status = status_of(lazyfs)
        assert status["fetch"]["profile"]["usedSize"] == 400_000
        assert status["fetch"]["background"]["usedSize"] == 400_000
        assert status["reads"]["hits"] > 0
        assert status["reads"]["misses"] == 0
        text = lazyfs("status", "--stats").stdout
        assert re.search(r"^  ready      .*s after the command$", text, re.MULTILINE)
        assert re.search(r"^  read       781.2 KiB of the 3.9 MiB fetched", text, re.MULTILINE), (
            text
        )
        assert re.search(r"^  reads      \d+ hits, 0 misses$", text, re.MULTILINE)
        assert re.search(r"^  readers    no waits$", text, re.MULTILINE)
        assert re.search(r"^  link       round trip .* ms, .*/s$", text, re.MULTILINE)
        assert re.search(r"^  background \d+ requests, ", text, re.MULTILINE)
        assert "  queue " not in lazyfs("status").stdout
        assert lazyfs("umount", mountpoint).returncode == 0


def test_statistics_at_the_end(lazyfs, layout, mountpoint):
    words = ("mount", "-f", "--stats", "--prefetch", "none", f"oci:{layout}", mountpoint)
    process = lazyfs.start(*words)
    assert process.stdout.readline() == f"{mountpoint}\n"
    assert (mountpoint / "data/3").read_bytes() == FILES[3]
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=SECONDS)
    (line,) = [line for line in errors.splitlines() if line.startswith("{")]
    document = json.loads(line)
    assert document["type"] == "statistics"
    assert document["fetch"]["demand"]["usedSize"] >= 400_000
    assert document["mountpoint"] == str(mountpoint)


@pytest.mark.parametrize("words", [[], ["--foreground"]])
def test_a_mount_over_its_own_folders_is_refused(lazyfs: Lazyfs, layout, words):
    """Its server would look for the cache in the mount."""
    for folder in (lazyfs.folder, lazyfs.folder / "cache", lazyfs.folder / "run"):
        folder.mkdir(exist_ok=True)
        done = lazyfs("mount", *words, f"oci:{layout}", folder)
        assert done.returncode == 8
        assert f"mountpoint {folder} contains the " in done.stderr
        assert "Traceback" not in done.stderr
        assert not is_mounted(folder)
    assert lazyfs.status() == []
