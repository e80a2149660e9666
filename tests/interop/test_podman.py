"""Converted images in the hands of podman: pulled whole, and in parts where it can."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.mount.point import load_mountinfo
from tests.interop.test_converted_images import TARGETS, convert, listing
from tests.interop.test_producers import newer
from tests.support.formats.images import (
    directory,
    file,
    make_layout,
    plain_layer,
    source_tar,
    symlink,
    tar_bytes,
)
from tests.support.mounts.mounting import force_unmount
from tests.support.registries.registry import FakeRegistry, Logged

pytestmark = [
    *(pytest.mark.interop, pytest.mark.anyio, pytest.mark.root),
    pytest.mark.skipif(os.geteuid() != 0, reason="podman's stores keep owners as root only"),
]

SECONDS = 120
OWN = {
    "estargz": (b".no.prefetch.landmark", b"stargz.index.json"),
    "external": (b".no.prefetch.landmark",),
    "zstd-chunked": (),
}
STORAGE = """[storage]
driver = "{driver}"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
[storage.options]
pull_options = {{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}}
"""
CONTAINERS = """[engine]
conmon_path = ["{folder}/conmon"]
helper_binaries_dir = ["{folder}"]
events_logger = "none"
cgroup_manager = "cgroupfs"
"""


class Podman:
    """podman with a store of its own below *folder*."""

    def __init__(self, words: list[str], folder: Path, driver: str) -> None:
        folder.mkdir()
        self.folder = folder
        # podman looks for these before it does anything; pulling and mounting runs none of them.
        for name in ("conmon", "netavark"):
            (folder / name).write_text("#!/bin/sh\necho conmon version 2.1.12\n")
            (folder / name).chmod(0o755)
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (folder / "storage.conf").write_text(STORAGE.format(folder=folder, driver=driver))
        (folder / "containers.conf").write_text(CONTAINERS.format(folder=folder))
        self._environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "XDG_RUNTIME_DIR": str(folder),
        }
        stores = (f"--root={folder}/graph", f"--runroot={folder}/run", f"--tmpdir={folder}/tmp")
        self._words = [*words, "--log-level=debug", *stores]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._words, *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    def pull(self, layout: Path) -> tuple[Path, list[Logged], str]:
        """Pull an image; return where it is mounted, the requests for blobs, and the log."""
        with FakeRegistry(layout) as registry:
            reference = f"{registry.host}/demo:latest"
            policy = f"--signature-policy={self.folder}/policy.json"
            log = self("pull", "--tls-verify=false", policy, reference).stderr
            blobs = [each for each in registry.requests if "/blobs/" in each.path]
        return Path(self("image", "mount", reference).stdout.strip()), blobs, log


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, which podman asks for; mounts below it go away in the end."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-") as name:
        try:
            yield Path(name)
        finally:
            for entry in reversed(load_mountinfo()):
                if entry.mountpoint.startswith(os.fsencode(f"{name}/")):
                    force_unmount(os.fsdecode(entry.mountpoint))


def podman() -> list[str]:
    """Return the command of the distribution's podman."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    return ["podman"]


def asked_size(requests: list[Logged]) -> int:
    """Return how many bytes were asked for by range."""
    ranges = (part for each in requests for part in re.findall(r"(\d+)-(\d+)", each.range or ""))
    return sum(int(last) - int(first) + 1 for first, last in ranges)


@pytest.mark.parametrize("target", TARGETS)
async def test_the_same_tree_comes_out(tmp_path: Path, folder: Path, target: str) -> None:
    make_layout(tmp_path / "source", [plain_layer(source_tar(n)) for n in ("real-pax", "big")])
    await convert(tmp_path, **TARGETS[target])
    started_ns = time.time_ns() - 10**9  # file systems have a coarser clock
    run = Podman(podman(), folder / "store", "vfs")
    trees = [listing(run.pull(tmp_path / name)[0], started_ns) for name in ("source", "made")]
    source, made = trees
    for name in OWN[target]:
        assert made.pop(name)
    assert made == source
    assert len(source) > 3


async def test_estargz_is_pulled_in_parts(tmp_path: Path, folder: Path) -> None:
    content = os.urandom(40_000)
    tar = tar_bytes([directory("d"), file("d/a", content), symlink("d/s", "a")])
    make_layout(tmp_path / "source", [plain_layer(tar), plain_layer(source_tar("real-pax"))])
    await convert(tmp_path, **TARGETS["estargz"])
    tree, blobs, log = Podman(podman(), folder / "store", "overlay").pull(tmp_path / "made")
    if "partial pulls with guaranteed consistency" in log:
        pytest.skip("podman 5 pulls eStargz whole: it cannot check the uncompressed layer")
    assert log.count("Retrieved partial blob") == 2
    assert sum(each.range is None for each in blobs) == 1, "only the config came whole"
    assert (tree / "d/a").read_bytes() == content
    assert os.readlink(tree / "d/s") == "a"
    assert (tree / "etc/alternatives").is_dir()


async def test_zstd_chunked_is_pulled_in_parts(tmp_path: Path, folder: Path) -> None:
    """A file that another layer has brought is not fetched again."""
    shared, own = os.urandom(60_000), os.urandom(3_000)
    for name, items in (
        ("one", [directory("d"), file("d/a", shared), symlink("d/s", "a")]),
        ("two", [file("b", own), file("other", shared)]),
    ):
        make_layout(tmp_path / name / "source", [plain_layer(tar_bytes(items))])
        await convert(tmp_path / name, **TARGETS["zstd-chunked"])
    run = Podman(newer("podman"), folder / "store", "overlay")
    one, blobs, log = run.pull(tmp_path / "one/made")
    assert log.count("Retrieved partial blob") == 1
    assert sum(each.range is None for each in blobs) == 1, "only the config came whole"
    assert asked_size(blobs) > len(shared)
    assert (one / "d/a").read_bytes() == shared
    assert os.readlink(one / "d/s") == "a"
    two, blobs, log = run.pull(tmp_path / "two/made")
    assert log.count("Retrieved partial blob") == 1
    assert (two / "other").read_bytes() == shared
    assert (two / "b").read_bytes() == own
    assert len(own) < asked_size(blobs) < len(own) + 5000
