"""Layers of zstd frames with holes, on every driver: what is read, and what a crash leaves."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.formats.images import make_layout
from tests.support.formats.stargz import stargz_layer
from tests.support.formats.zstdchunked import Part, contents, zstd_layer
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    available_drivers,
    force_unmount,
    needs_fuse,
    needs_root,
    run,
    why_no_erofs,
)
from tests.support.registries.registry import FakeRegistry

pytestmark = [*needs_fuse, *needs_root]

NOISE = random.Random(0).randbytes
FILES: dict[str, list[Part]] = {
    "plain": [NOISE(5000)],
    "sparse": [NOISE(70_001), 1 << 20, NOISE(300), 4097, NOISE(64 << 10)],
    "starts-with-a-hole": [5000, NOISE(123_456)],
    "ends-with-a-hole": [NOISE(4096), 123_457],
    "zeros": [300_000],
    "many": [part for seed in range(40) for part in (NOISE(3000 + seed), 2000 + seed)],
}
DRIVERS = [*available_drivers(), *(["erofs"] if why_no_erofs() is None else [])]


@contextmanager
def mounted(lazyfs: Lazyfs, image: str, *words: str) -> Iterator[Path]:
    point = lazyfs.folder / "mnt"
    point.mkdir(exist_ok=True)
    try:
        lazyfs.mount(image, point, *words)
        yield point
    finally:
        lazyfs("umount", point)
        force_unmount(point)


@pytest.fixture(params=["stargz", "containers"])
def layout(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    make_layout(tmp_path / "layout", [zstd_layer(FILES, dialect=request.param)])
    return tmp_path / "layout"


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layout", ["containers"], indirect=True)
def test_contents_by_every_driver(tmp_path: Path, layout: Path, driver: str) -> None:
    lazyfs, expected = Lazyfs(tmp_path), contents(FILES)
    words = ("--driver", driver, "--prefetch", "none", "-o", "allow_other")
    with mounted(lazyfs, f"oci:{layout}", *(words if os.geteuid() == 0 else words[:4])) as point:
        for name, data in expected.items():
            with open(point / name, "rb", buffering=0) as file:
                # From the end to the start, across the borders of holes and data.
                for offset in range((len(data) - 1) // 50_000 * 50_000, -1, -50_000):
                    piece = os.pread(file.fileno(), 60_000, offset)
                    assert piece == data[offset : offset + 60_000], (name, offset)
                # SEEK_HOLE may know of no holes, but must not invent any.
                assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
                assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == len(data)
        copy = tmp_path / "copy"
        assert run("cp", "--sparse=always", point / "sparse", copy).returncode == 0
        assert copy.read_bytes() == expected["sparse"]


def test_killed_and_resumed(tmp_path: Path, layout: Path) -> None:
    """kill -9 of server and keeper; what they had marked is hashed again and served."""
    expected = contents(FILES)
    with FakeRegistry(layout) as registry:
        lazyfs = Lazyfs(tmp_path)
        image = f"{registry.host}/test/image:latest"
        with mounted(lazyfs, image, "--prefetch", "none") as point:
            for name in ("plain", "sparse"):
                assert (point / name).read_bytes() == expected[name]
            lazyfs.kill_server()
            force_unmount(point)
        registry.forget_requests()
        with mounted(lazyfs, image, "--prefetch", "none") as point:
            for name in ("zeros", "plain", "sparse"):
                assert (point / name).read_bytes() == expected[name]
            assert registry.count("GET", "/blobs/") == 0
            for name, data in expected.items():
                assert (point / name).read_bytes() == data
            serving = [each for each in lazyfs.status() if each["state"] == "serving"]
            assert [each["health"] for each in serving] == ["ok"]
        done = lazyfs("cache", "verify")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [("--verify", "blob"), ("-o", "verify=blob")])
def test_a_layer_that_its_blob_vouches_for(tmp_path: Path, words: tuple[str, str]) -> None:
    files = {"small": b"text", "large": NOISE(5 << 20)}
    make_layout(tmp_path / "layout", [stargz_layer(files)])
    with mounted(Lazyfs(tmp_path), f"oci:{tmp_path}/layout", *words) as point:
        assert {name: (point / name).read_bytes() for name in files} == files
