"""The EROFS driver on real images: what the other drivers' tests cannot ask of it."""

import hashlib
import json
import os
import random
import signal
import stat
import subprocess

import pytest

from lazyfs.mount.kernel import NoErofs, attributes_of, check_erofs
from lazyfs.mount.point import load_mountinfo
from lazyfs.service.record import start_ticks_of
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    layer_from_fixture,
    make_layout,
    tar_bytes,
)
from tests.support.mounts.chaos import kill_once
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    ROOT,
    SECONDS,
    is_mounted,
    needs_erofs,
    run,
    serving_made,
    wait_until,
)
from tests.support.registries.registry import FakeRegistry

OPEN = ("-o", "allow_other")  # what the driver wants to be told
pytestmark = needs_erofs

BIG = random.Random(3).randbytes(6 << 20)
PRODUCER = ROOT / "tests/fixtures/estargz-go-0.12"


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("layout")
    own = [directory("own"), file("own/big", BIG), file("own/small", b"small")]
    layers = [layer_from_fixture("estargz-go-0.12/real-gnu"), estargz_layer(tar_bytes(own))]
    make_layout(path, layers)
    return path


def entries(lazyfs: Lazyfs) -> list:
    """Return the mounts of this test; others may run at the same time."""
    folder = os.fsencode(lazyfs.folder) + b"/"
    return [entry for entry in load_mountinfo() if entry.mountpoint.startswith(folder)]


def tree(root) -> dict:
    """Return what lstat, the links, the xattrs and the bytes are, by path."""
    found = {}
    for folder, directories, files in os.walk(os.fsencode(root)):
        for name in [b".", *directories, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as opened:
                    content = hashlib.file_digest(opened, "sha256").hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if not key.startswith("user.lazyfs.")
            }
            numbers = status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size
            found[os.path.relpath(path, os.fsencode(root))] = (
                *numbers, status.st_rdev, status.st_mtime_ns, status.st_blocks, content, xattrs,
            )  # fmt: skip
    return found


@pytest.mark.parametrize("name", sorted(path.name[:-7] for path in PRODUCER.glob("*.tar.gz")))
def test_images_by_other_producers(lazyfs, mountpoint, tmp_path, name):
    """The same tree as through FUSE, fetched through the kernel's mount first."""
    make_layout(tmp_path / "layout", [layer_from_fixture(f"{PRODUCER.name}/{name}")])
    trees = []
    for driver in ("erofs", "pyfuse3"):
        words = ("--prefetch", "none", "-o", "suid,dev")
        lazyfs.mount(f"oci:{tmp_path / 'layout'}", mountpoint, "--driver", driver, *OPEN, *words)
        trees.append(tree(mountpoint))
        assert lazyfs("umount", mountpoint).returncode == 0
    assert trees[0] == trees[1]


def test_one_mount_in_the_table(lazyfs, layout, mountpoint):
    """The private mount is gone from the tree at once; flags are as FUSE's are."""
    before = entries(lazyfs)
    lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN, "--prefetch", "none")
    (entry,) = [each for each in entries(lazyfs) if each not in before]
    assert entry.filesystem_type == "erofs"
    assert os.statvfs(mountpoint).f_flag & 0xF == os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
    assert [path.suffix for path in lazyfs.records()] == [".json", ".sock"]
    (status,) = lazyfs.status()
    assert (status["driver"], status["state"]) == ("erofs", "serving")
    assert status["driverNote"] == "driver native serves the layers"
    assert (mountpoint / "own/big").read_bytes() == BIG
    assert lazyfs("umount", mountpoint).returncode == 0
    assert entries(lazyfs) == before
    assert lazyfs.records() == []


def test_devices_served_by_python(lazyfs, layout, mountpoint):
    lazyfs.environment["LAZYFS_PURE"] = "1"
    lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN, "--prefetch", "none")
    assert lazyfs.status()[0]["driverNote"] == "driver pyfuse3 serves the layers"
    assert (mountpoint / "own/big").read_bytes() == BIG
    assert (mountpoint / "own/small").read_bytes() == b"small"
    assert lazyfs("umount", mountpoint).returncode == 0


def test_sixty_layers(lazyfs, mountpoint, tmp_path):
    """mount(2) would take some 35: its options end with a page."""
    layers = [
        estargz_layer(tar_bytes([file(f"file{n}", b"%d" % n * 1000), file("top", b"%d" % n)]))
        for n in range(60)
    ]
    make_layout(tmp_path / "layout", layers)
    for prefetch in ("none", "all"):
        lazyfs.mount(
            f"oci:{tmp_path / 'layout'}",
            mountpoint,
            "--driver",
            "erofs",
            *OPEN,
            "--prefetch",
            prefetch,
        )
        for n in range(60):
            assert (mountpoint / f"file{n}").read_bytes() == b"%d" % n * 1000
        assert (mountpoint / "top").read_bytes() == b"59"
        assert lazyfs("umount", mountpoint).returncode == 0


def test_complete_layers_need_no_server(lazyfs, layout, mountpoint):
    """Once everything is there, the kernel reads the store's files by itself."""
    lazyfs.mount(f"oci:{layout}", mountpoint)
    wait_until(lambda: all(layer["residentSize"] == layer["contentSize"]
                           for layer in lazyfs.status()[0]["layers"]))  # fmt: skip
    assert lazyfs("umount", mountpoint).returncode == 0
    lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN)
    (status,) = lazyfs.status()
    assert "all layers are complete" in status["driverNote"]
    assert status["keeperPid"] is None
    assert (mountpoint / "own/big").read_bytes() == BIG
    os.kill(status["pid"], signal.SIGKILL)
    wait_until(lambda: start_ticks_of(status["pid"]) is None)
    with (mountpoint / "own/big").open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert opened.read() == BIG
        content = next((lazyfs.folder / "cache").glob("layers/*/content")).stat().st_ino
        emptied = lazyfs("cache", "prune", "--size", "0")
        assert emptied.returncode == 0, emptied.stderr
        assert content not in {
            path.stat().st_ino for path in (lazyfs.folder / "cache").glob("layers/*/content")
        }
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        opened.seek(0)
        assert opened.read() == BIG, "the store was emptied under a mount without a server"


def test_no_more_is_fetched_than_is_read(lazyfs, layout, mountpoint):
    """The kernel does not read ahead in the layers."""
    with FakeRegistry(layout) as registry:
        words = ("--driver", "erofs", *OPEN, "--prefetch", "none")
        lazyfs.mount(f"{registry.host}/made:latest", mountpoint, *words)
        descriptor = os.open(mountpoint / "own/big", os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(descriptor, 10, 5 << 20) == BIG[5 << 20 :][:10]
        finally:
            os.close(descriptor)
        (status,) = lazyfs.status()
        chunk = 4 << 20
        assert sum(layer["residentSize"] for layer in status["layers"]) <= chunk
        assert lazyfs("umount", mountpoint).returncode == 0


def test_a_killed_server_is_succeeded(lazyfs, layout, mountpoint):
    with FakeRegistry(layout) as registry:
        words = ("--driver", "erofs", *OPEN, "--prefetch", "none")
        lazyfs.mount(f"{registry.host}/made:latest", mountpoint, *words)
        (before,) = lazyfs.status()
        kill_once(lazyfs)
        assert (mountpoint / "own/big").read_bytes() == BIG
        (after,) = lazyfs.status()
        assert (after["driver"], after["successions"]) == ("erofs", 1)
        assert after["pid"] != before["pid"]
        assert lazyfs("umount", mountpoint).returncode == 0
    assert lazyfs.records() == []


@pytest.mark.parametrize("how", ["umount", "mount"])
def test_after_the_death_of_all(lazyfs, layout, mountpoint, how):
    """Metadata and what was read live on in the kernel; everything else fails, and is cleaned."""
    before = entries(lazyfs)
    lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN, "--prefetch", "none")
    assert (mountpoint / "own/small").read_bytes() == b"small"
    lazyfs.kill_server()
    wait_until(lambda: lazyfs.status()[0]["state"] == "dead")
    assert os.listdir(mountpoint / "own") == ["big", "small"]
    with pytest.raises(OSError, match="Input/output"):
        (mountpoint / "own/big").read_bytes()
    if how == "mount":
        done = lazyfs("mount", f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN)
        assert done.returncode == 0, done.stderr
        assert "had died" in done.stderr
        assert (mountpoint / "own/big").read_bytes() == BIG
    assert lazyfs("umount", mountpoint).returncode == 0
    assert entries(lazyfs) == before
    assert lazyfs.records() == []


def test_busy_and_lazy(lazyfs, layout, mountpoint):
    """Who still has files open is served until the end."""
    lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN, "--prefetch", "none")
    (status,) = lazyfs.status()
    with (mountpoint / "own/big").open("rb") as opened:
        done = lazyfs("umount", mountpoint)
        assert done.returncode == 8
        assert "in use" in done.stderr
        assert lazyfs("umount", "--lazy", mountpoint).returncode == 0
        assert not is_mounted(mountpoint)
        assert opened.read() == BIG
    wait_until(lambda: start_ticks_of(status["pid"]) is None)


def test_sigterm_unmounts(lazyfs, layout, mountpoint):
    process = lazyfs.start("mount", "-f", f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN)
    try:
        assert process.stdout.readline() == f"{mountpoint}\n"
        assert (mountpoint / "own/small").read_bytes() == b"small"
        process.terminate()
        assert process.wait(SECONDS) == 0
        assert not is_mounted(mountpoint)
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def test_identity_is_the_same_by_every_driver(lazyfs, layout, mountpoint):
    found = {}
    for driver in ("pyfuse3", "erofs"):
        lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", driver, *OPEN)
        done = lazyfs("attrs", mountpoint, "--json")
        assert done.returncode == 0, done.stderr
        found[driver] = json.loads(done.stdout)["attributes"]
        assert found[driver]["user.lazyfs.mount.id"] == lazyfs.status()[0]["mountId"]
        assert (
            f"platform={found[driver]['user.lazyfs.platform']}"
            in lazyfs("attrs", mountpoint).stdout
        )
        shown = [name for name in os.listxattr(mountpoint) if name.startswith("user.lazyfs.")]
        assert ("user.lazyfs.mount.id" in shown) == (driver == "pyfuse3")
        assert "user.lazyfs.manifest.digest" in shown
        assert lazyfs("umount", mountpoint).returncode == 0
    for attributes in found.values():
        assert attributes.pop("user.lazyfs.mount.id")
        assert attributes.pop("user.lazyfs.resolved-at")
    assert found["erofs"] == found["pyfuse3"]
    assert found["erofs"]["user.lazyfs.health"] == "ok"


def test_identity_without_a_server(lazyfs, layout, mountpoint):
    lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN, "--prefetch", "none")
    (status,) = lazyfs.status()
    lazyfs.kill_server()
    wait_until(lambda: start_ticks_of(status["pid"]) is None)
    attributes = json.loads(lazyfs("attrs", mountpoint, "--json").stdout)["attributes"]
    assert attributes["user.lazyfs.health"] == "unknown: the server has ended"
    assert attributes["user.lazyfs.mount.id"] == status["mountId"]
    done = lazyfs("attrs", mountpoint.parent)
    assert done.returncode == 8
    assert "is not a lazyfs mount" in done.stderr


def test_somebody_elses_erofs_is_not_touched(lazyfs, layout, mountpoint, tmp_path):
    lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN)
    for path in lazyfs.records():
        if path.suffix == ".json":  # as if there were no record of ours
            path.rename(path.with_suffix(".away"))
    done = lazyfs("umount", mountpoint)
    assert done.returncode == 8
    assert "a mount of type erofs" in done.stderr
    assert is_mounted(mountpoint)
    run("umount", mountpoint)


def test_a_server_killed_while_it_mounted(lazyfs, layout, mountpoint):
    """For a moment the layers' files are in the tree: what is left then goes at the next mount."""
    before = entries(lazyfs)
    private = lazyfs.folder / "run" / "0123456789abcdef.devices"
    private.mkdir(parents=True, mode=0o700)
    (lazyfs.folder / "run").chmod(0o700)
    with serving_made(private) as server:
        server.process.kill()
        server.process.wait(SECONDS)
        lazyfs.mount(f"oci:{layout}", mountpoint, "--driver", "erofs", *OPEN)
        assert not is_mounted(private)
        assert not private.exists()
        assert (mountpoint / "own/small").read_bytes() == b"small"
    assert lazyfs("umount", mountpoint).returncode == 0
    assert entries(lazyfs) == before


def test_others_are_let_in_only_if_it_is_said(lazyfs, layout, mountpoint):
    done = lazyfs("mount", f"oci:{layout}", mountpoint, "--driver", "erofs")
    assert done.returncode == 8
    assert "every local user can read the mount" in done.stderr
    assert "-o allow_other" in done.stderr
    assert not is_mounted(mountpoint)


@pytest.mark.parametrize("word", ["allow_root", "auto_unmount"])
def test_options_that_it_has_not(lazyfs, layout, mountpoint, word):
    done = lazyfs("mount", f"oci:{layout}", mountpoint, "--driver", "erofs", "-o", word)
    assert done.returncode == 8
    assert word in done.stderr
    assert not is_mounted(mountpoint)


def test_a_store_in_memory_is_refused(lazyfs, layout, mountpoint, tmp_path):
    shm = tmp_path / "shm"
    shm.mkdir()
    assert run("mount", "-t", "tmpfs", "none", shm).returncode == 0
    try:
        words = ("--driver", "erofs", *OPEN, "--cache-dir", shm / "cache")
        done = lazyfs("mount", f"oci:{layout}", mountpoint, *words)
        assert done.returncode == 8
        assert "tmpfs" in done.stderr
        assert "--driver auto" in done.stderr
        assert not is_mounted(mountpoint)
        assert lazyfs.records() == []
    finally:
        run("umount", "-l", shm)


def test_a_user_namespace_is_refused(lazyfs, layout, mountpoint):
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount",
         *lazyfs.command("mount", "--driver", "erofs", *OPEN, f"oci:{layout}", mountpoint)],
        env=lazyfs.variables, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    if "unshare failed" in done.stderr:
        pytest.skip("no user namespaces here")
    assert done.returncode == 8
    assert "only root can mount EROFS" in done.stderr
    assert "--driver auto" in done.stderr


def test_old_kernels_are_refused():
    for release in ("6.11.9", "5.10.0-32-amd64", "6"):
        with pytest.raises(NoErofs, match=r"expected 6\.12 or newer"):
            check_erofs(release)
    check_erofs("6.12-rc1")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ((), 1 | 2 | 4),
        (("suid", "dev"), 1),
        (("noexec", "noatime", "suid"), 1 | 4 | 8 | 16),
        (("nosuid", "allow_other", "fsname=x"), 1 | 2 | 4),
    ],
)
def test_flags(words, flags):
    assert attributes_of(words) == flags
