"""A store that is damaged under a live mount: each file, each damage, each driver.

No server dies of it, nobody reads zeros for bytes, and what a command finds to be rotten is gone
from the kernel's memory, too.
"""

import mmap
import os
import random
import signal
from pathlib import Path

import pytest

from lazyfs.service.record import start_ticks_of
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.presence import RESIDENT
from lazyfs.store.layers import load_table
from lazyfs.store.paths import Store, digest_named
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    plain_layer,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.damage import LIVE_DAMAGES, copy_over
from tests.support.mounts.mounting import available_drivers, force_unmount, needs_fuse, wait_until

pytestmark = needs_fuse

CHOSEN = random.Random(28)
FILES = {
    **{f"lazy/small{number}": CHOSEN.randbytes(500 + number) for number in range(8)},
    "lazy/big": CHOSEN.randbytes(3_000_000),
    "lazy/zeros": bytes(100_000) + b"end",
    **{f"plain/small{number}": CHOSEN.randbytes(700 + number) for number in range(8)},
    "plain/big": CHOSEN.randbytes(1_000_000),
}
OTHERS = (
    *("layers/*/table", "layers/*/toc.zst", "layers/*/spans", "layers/*/checked", "passes/*"),
    *("images/*/index.erofs", "images/*/provenance", "images/*/record.json", "blobs/*/*"),
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("layout")
    tars = [
        tar_bytes(
            [
                directory(part),
                *(file(name, data) for name, data in FILES.items() if name.startswith(part)),
            ]
        )
        for part in ("lazy", "plain")
    ]
    make_layout(path, [estargz_layer(tars[0], chunk_size=64 << 10), plain_layer(tars[1])])
    return path


@pytest.fixture(params=available_drivers())
def driver(request) -> str:
    return request.param


@pytest.fixture
def mounted(tmp_path, layout, driver):
    """A mount of which everything is resident; yields (lazyfs, mountpoint)."""
    lazyfs = Lazyfs(tmp_path, environment={"LAZYFS_SERVICE": "0"})
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    try:
        lazyfs.mount("--driver", driver, "--prefetch", "none", f"oci:{layout}", mountpoint)
        assert wrong_files(mountpoint) == {}
        yield lazyfs, mountpoint
    finally:
        force_unmount(mountpoint)
        force_unmount(tmp_path / "other")


def wrong_files(mountpoint: Path, *, drops: bool = True) -> dict[str, object]:
    """Read all; return what is wrong with which file.  *drops*: what the kernel has is dropped."""
    wrong: dict[str, object] = {}
    for name, data in FILES.items():
        with open(mountpoint / name, "rb") as opened:
            if drops:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                got = opened.read()
            except OSError as error:
                wrong[name] = error
                continue
        if got != data:
            wrong[name] = "zeros" if not got.strip(b"\0") else "other bytes"
    return wrong


def paths_of(lazyfs: Lazyfs, pattern: str) -> list[Path]:
    return [path for path in (lazyfs.folder / "cache").glob(pattern) if path.is_file()]


def remounted(lazyfs: Lazyfs, mountpoint: Path, *words: object) -> None:
    (status,) = lazyfs.status()
    image = status["requested"]
    assert lazyfs("umount", mountpoint).returncode == 0
    lazyfs.mount("--prefetch", "none", *words, image, mountpoint)


@pytest.mark.parametrize("damage", LIVE_DAMAGES)
def test_contents(mounted, damage) -> None:
    lazyfs, mountpoint = mounted
    (before,) = lazyfs.status()
    for _ in range(2):
        for path in paths_of(lazyfs, "layers/*/content"):
            LIVE_DAMAGES[damage](path)
        assert wrong_files(mountpoint) == {}
    (after,) = lazyfs.status()
    assert after["pid"] == before["pid"]
    assert (after["state"], after["health"]) == ("serving", "ok")
    remounted(lazyfs, mountpoint)
    assert wrong_files(mountpoint) == {}


@pytest.mark.parametrize("damage", LIVE_DAMAGES)
def test_presence_maps(mounted, damage) -> None:
    lazyfs, mountpoint = mounted
    (before,) = lazyfs.status()
    for _ in range(2):
        for path in paths_of(lazyfs, "layers/*/presence"):
            LIVE_DAMAGES[damage](path)
        assert wrong_files(mountpoint) == {}
        assert lazyfs.status()[0]["pid"] == before["pid"], "a server must not die of SIGBUS"
    remounted(lazyfs, mountpoint)
    assert wrong_files(mountpoint) == {}


def test_everything_else(mounted) -> None:
    """It was read once, and is not looked at again."""
    lazyfs, mountpoint = mounted
    (before,) = lazyfs.status()
    for damage in LIVE_DAMAGES.values():
        for pattern in OTHERS:
            for path in paths_of(lazyfs, pattern):
                damage(path)
        assert wrong_files(mountpoint) == {}
        assert sorted(os.listdir(mountpoint / "lazy")) == sorted(
            name.partition("/")[2] for name in FILES if name.startswith("lazy/")
        )
        os.getxattr(mountpoint / "lazy/big", "user.lazyfs.file.layer")
    assert lazyfs.status()[0]["pid"] == before["pid"]
    remounted(lazyfs, mountpoint)
    assert wrong_files(mountpoint) == {}


@pytest.mark.parametrize("damage", ["delete", "copy_over", "put_zeros_over", "empty"])
@pytest.mark.parametrize("name", ["content", "presence"])
def test_a_second_mount_of_damaged_layers(mounted, tmp_path, driver, name, damage) -> None:
    """What the first one has open is not what the second one finds."""
    lazyfs, mountpoint = mounted
    (first,) = lazyfs.status()
    for path in paths_of(lazyfs, f"layers/*/{name}"):
        LIVE_DAMAGES[damage](path)
    other = tmp_path / "other"
    other.mkdir()
    lazyfs.mount("--driver", driver, "--prefetch", "none", first["requested"], other)
    for _ in range(2):
        assert wrong_files(other) == {}
        assert wrong_files(mountpoint) == {}
    assert lazyfs("umount", mountpoint).returncode == 0
    assert wrong_files(other) == {}
    assert lazyfs("umount", other).returncode == 0
    lazyfs.mount("--prefetch", "none", first["requested"], mountpoint)
    assert wrong_files(mountpoint) == {}


def rot_under(lazyfs: Lazyfs, mountpoint: Path) -> dict[str, object]:
    """Change bytes of all contents in place, have them read; return what is wrong then."""
    for path in paths_of(lazyfs, "layers/*/content"):
        with path.open("r+b") as content:
            for place in range(50, path.stat().st_size, 200_000):
                content.seek(place)
                content.write(b"rotten")
    return wrong_files(mountpoint)


@pytest.mark.parametrize("how", ["repair", "look", "verify"])
def test_what_a_command_finds_leaves_live_mounts(mounted, how) -> None:
    lazyfs, mountpoint = mounted
    (status,) = lazyfs.status()
    assert rot_under(lazyfs, mountpoint), "a change in place has no trace while it is mounted"
    with (
        open(mountpoint / "lazy/big", "rb") as opened,
        mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[:] != FILES["lazy/big"]
        if how == "verify":
            done = lazyfs("verify", status["requested"])
            assert done.returncode == 0, done.stderr
        else:
            words = ("--repair",) if how == "repair" else ()
            done = lazyfs("cache", "verify", *words)
            assert done.returncode == 6, done.stderr
        assert mapped[:] == FILES["lazy/big"], "also of who had it mapped"
        assert wrong_files(mountpoint, drops=False) == {}
    assert lazyfs.status()[0]["health"] == "ok"


@pytest.mark.parametrize("left", ["another file", "fewer marks"])
def test_what_a_dead_server_has_shown(mounted, left) -> None:
    """Its successor has the kernel forget it: nothing in the store tells of it any more."""
    lazyfs, mountpoint = mounted
    (status,) = lazyfs.status()
    if status["driver"] != "native":
        pytest.skip("this driver has no successors")
    wait_until(lambda: lazyfs.status()[0]["keeperPid"])
    keeper = lazyfs.status()[0]["keeperPid"]
    assert rot_under(lazyfs, mountpoint)
    os.kill(keeper, signal.SIGSTOP)
    try:
        os.kill(status["pid"], signal.SIGKILL)
        wait_until(lambda: start_ticks_of(status["pid"]) is None)
        for path in paths_of(lazyfs, "layers/*/content"):
            if left == "another file":
                copy_over(path)
            else:
                unmark_what_is_wrong(lazyfs, path.parent)
    finally:
        os.kill(keeper, signal.SIGCONT)
    done = lazyfs("cache", "verify")
    assert done.returncode == 0, done.stderr
    assert wrong_files(mountpoint, drops=False) == {}
    (after,) = lazyfs.status()
    assert (after["successions"], after["health"]) == (1, "ok")


def unmark_what_is_wrong(lazyfs: Lazyfs, folder: Path) -> None:
    """Do what a server does with rot that it finds, and tell nobody."""
    digest = digest_named(folder.name)
    table = load_table(Store(lazyfs.folder / "cache"), digest)
    content = LayerContent(folder, table)
    assert False in [content.check_again(chunk) for chunk in range(table.count)]
    content.close()


def test_a_server_that_finds_rot_tells_the_others(mounted, tmp_path, driver) -> None:
    """One mount doubts its layers, since their file was cut; the other one shows rotten bytes."""
    lazyfs, mountpoint = mounted
    (first,) = lazyfs.status()
    other = tmp_path / "other"
    other.mkdir()
    lazyfs.mount("--driver", driver, "--prefetch", "none", first["requested"], other)
    assert rot_under(lazyfs, mountpoint)
    assert wrong_files(other)
    for path in paths_of(lazyfs, "layers/*/content"):
        os.truncate(path, path.stat().st_size - 4096)
    deadline = 40
    while wrong_files(other, drops=False) and deadline:
        wrong_files(mountpoint)  # finds out, and tells
        deadline -= 1
    assert wrong_files(mountpoint, drops=False) == {}
    assert wrong_files(other, drops=False) == {}


def test_marks_that_appear_under_a_mount(mounted) -> None:
    """A map that claims what was never written: the holes of the file tell."""
    lazyfs, mountpoint = mounted
    (status,) = lazyfs.status()
    assert lazyfs("umount", mountpoint).returncode == 0
    assert lazyfs("cache", "prune", "--cache-size", "1").returncode == 0
    lazyfs.mount(
        "--prefetch", "none", "--driver", status["driver"], status["requested"], mountpoint
    )
    for path in paths_of(lazyfs, "layers/*/presence"):
        with path.open("r+b") as presence:
            presence.seek(4096)
            presence.write(bytes([RESIDENT]) * (path.stat().st_size - 4096))
    assert wrong_files(mountpoint) == {}
