"""Each driver on a real mount: what programs see, and how the server is treated."""

import ctypes
import errno
import mmap
import os
import signal
import stat
import subprocess
import threading
from contextlib import suppress

import pytest

from tests.support.formats.tree import tree_of
from tests.support.mounts.mounted import MTIME
from tests.support.mounts.mounting import (
    SECONDS,
    Commanded,
    available_drivers,
    folder_for_all,
    is_mounted,
    needs_fuse,
    run,
    serving_made,
    wait_until,
)
from tests.support.mounts.serve_made import BIG, NOBODY_MAY_READ, sample_image

pytestmark = needs_fuse
DRIVERS = available_drivers()

NAMES = [
    b"bin", b"big", b"empty", b"secret", b"shared", b"suid", b"link", b"broken", b"hard", b"null",
    b"disk", b"pipe", b"sticky", b"many", "ünïcode \n\t\"'".encode(), b"latin\xe91", b"top",
    b"deep",
]  # fmt: skip


@pytest.fixture(scope="module", params=DRIVERS)
def driver(request):
    return f"driver={request.param}"


@pytest.fixture(scope="module")
def server(driver):
    with folder_for_all() as folder:
        mountpoint = folder / "mnt"
        mountpoint.mkdir()
        words = ["allow_other,suid,dev"] if os.geteuid() == 0 else []
        with serving_made(mountpoint, driver, *words) as server:
            yield server


@pytest.fixture
def root(server: Commanded):
    yield server.mountpoint
    assert server.process.poll() is None, server.log_path.read_text()


# What is there


def test_names(root):
    assert sorted(os.listdir(os.fsencode(root))) == sorted(NAMES)
    assert sorted(os.listdir(root / "many")) == [f"{n:04}" for n in range(1000)]


def test_attributes(root):
    status = os.lstat(root / "sticky")
    assert (status.st_mode, status.st_uid, status.st_gid) == (stat.S_IFDIR | 0o1777, 12345, 70000)
    assert os.lstat(root / "pipe").st_mtime_ns == -86400 * 10**9 + 5
    assert os.lstat(root / "disk").st_rdev == os.makedev(259, 70000)
    big, hard = os.stat(root / "big"), os.stat(root / "hard")
    assert (big.st_ino, big.st_nlink) == (hard.st_ino, 2)
    assert big.st_size == len(BIG)
    assert big.st_blocks * 512 == -(-len(BIG) // 4096) * 4096
    assert big.st_mtime == big.st_ctime == big.st_atime == MTIME
    assert os.stat(root).st_ino == 1
    assert os.stat(root / "many" / "..").st_ino == 1


def test_inode_numbers_are_the_indexs(root):
    image = sample_image()
    for path in ("big", "many/0500", "deep/er/and/deeper/file"):
        assert os.stat(root / path).st_ino == image.nid(path)
    with os.scandir(root / "many") as entries:
        assert all(entry.inode() == image.nid(f"many/{entry.name}") for entry in entries)


def test_find_agrees_with_itself(root):
    counted = run("find", root, "-xdev", "-printf", "x").stdout
    assert len(counted) == 1 + len(tree_of(root))


def test_absent_names(root):
    for _ in range(3):
        assert not (root / "absent").exists()
    with pytest.raises(NotADirectoryError):
        os.stat(root / "big" / "absent")


# Contents


def test_contents_whole(root):
    assert (root / "big").read_bytes() == BIG
    assert (root / "empty").read_bytes() == b""
    assert (root / "top").read_bytes() == b"other layer" * 1000
    assert os.readlink(root / "link") == "bin/true"


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1), (4095, 2), (65535, 2), (3_000_000, 10), (3_000_001, 1), (9**9, 1)]
)
def test_contents_in_parts(root, offset, size):
    with open(root / "big", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), size, offset) == BIG[offset : offset + size]


def test_pages_are_kept(server, root):
    (root / "top").read_bytes()
    server.do("forget")
    assert (root / "top").read_bytes() == b"other layer" * 1000
    assert server.do("log") == []


def test_memory_maps(root):
    with open(root / "big", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as map_:
        assert map_[:] == BIG


def test_programs_run(root):
    assert run(root / "bin/true").returncode == 0
    assert run(root / "link").returncode == 0
    assert run(root / "bin/script").returncode == 42


def test_holes_and_data(root):
    with open(root / "big", "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == len(BIG)
        assert os.lseek(file.fileno(), 4096, os.SEEK_DATA) == 4096
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(file.fileno(), len(BIG), os.SEEK_DATA)


@pytest.mark.parametrize(
    "command",
    [
        ["cp", "-a", "--sparse=auto", "{src}/.", "{dst}"],
        ["cp", "-a", "--reflink=auto", "{src}/.", "{dst}"],
        ["rsync", "-aHAX", "{src}/", "{dst}/"],
        ["sh", "-c", "tar -C {src} --xattrs --acls -cf - . | tar -C {dst} --xattrs --acls -xf -"],
    ],
    ids=["cp", "cp-reflink", "rsync", "tar"],
)
def test_copying_programs(root, tmp_path, command):
    if os.geteuid() != 0:
        pytest.skip("only root can make the devices and owners of the copy")
    target = tmp_path / "copy"
    target.mkdir()
    done = run(*[word.format(src=root, dst=target) for word in command])
    assert done.returncode == 0, done.stderr
    wanted, got = tree_of(root), tree_of(target)
    assert got.keys() == wanted.keys()
    for path, found in wanted.items():
        copied = got[path]
        if found.kind == stat.S_IFDIR:
            copied.mtime_ns = found.mtime_ns
        if command[0] == "sh":  # tar keeps whole seconds in this format
            copied.mtime_ns = found.mtime_ns
        if "security.capability" in found.xattrs:  # an empty set, which some programs drop
            copied.xattrs["security.capability"] = found.xattrs["security.capability"]
        assert copied == found, path
    assert os.stat(target / "big").st_ino == os.stat(target / "hard").st_ino


def test_many_readers_at_once(server, root):
    failures = []

    def read(number: int) -> None:
        with open(root / "big", "rb", buffering=0) as file:
            for offset in range(number * 1000, len(BIG), 400_000):
                if os.pread(file.fileno(), 5000, offset) != BIG[offset : offset + 5000]:
                    failures.append((number, offset))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert failures == []


# What it says about itself


def test_xattrs(root):
    names = ["user.lazyfs.schema", "user.lazyfs.verify", "user.lazyfs.health"]
    assert os.listxattr(root) == names
    assert os.getxattr(root, "user.lazyfs.verify") == b"on-read"
    assert os.getxattr(root, "user.lazyfs.health") == b"ok"
    odd = os.fsencode(root) + b"/latin\xe91"
    assert os.listxattr(odd) == ["user.note"]
    assert os.getxattr(odd, "user.note") == b"\0\xff"
    assert os.getxattr(root / "top", "user.lazyfs.file.layer.index") == b"1"
    assert os.listxattr(root / "top") == []
    with pytest.raises(OSError, match="No data") as caught:
        os.getxattr(root / "big", "user.lazyfs.health")
    assert caught.value.errno == errno.ENODATA


def test_filesystem_numbers(root):
    stats = os.statvfs(root)
    assert stats.f_frsize == 4096
    assert stats.f_blocks * 4096 > len(BIG)
    assert (stats.f_bfree, stats.f_bavail, stats.f_favail) == (0, 0, 0)
    assert stats.f_files > 1000
    assert stats.f_namemax == 255
    assert stats.f_flag & os.ST_RDONLY
    assert run("df", root).returncode == 0


def test_the_table_of_mounts(root):
    shown = run("findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", root).stdout
    source, kind, options = shown.split()
    assert (source, kind) == ("made", "fuse.lazyfs")
    assert {"ro", "default_permissions"} <= set(options.split(","))


# Who may


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_permissions_are_the_images(root):
    def as_nobody(*command):
        return run(*command, user=65534, group=65534, extra_groups=[])

    assert as_nobody("cat", root / "secret").returncode != 0
    assert as_nobody("cat", root / "top").returncode == 0
    assert as_nobody("cat", root / "shared").stdout == "by acl"
    other = run("cat", root / "shared", user=1234, group=1234, extra_groups=[])
    assert "Permission denied" in other.stderr
    assert os.getxattr(root / "shared", "system.posix_acl_access") == NOBODY_MAY_READ


def test_nothing_can_be_changed(root):
    big = root / "big"
    attempts = [
        lambda: big.write_bytes(b""),
        lambda: os.open(big, os.O_RDWR),
        lambda: os.open(root / "new", os.O_CREAT),
        lambda: (root / "new").mkdir(),
        lambda: (root / "new").symlink_to("x"),
        lambda: os.mknod(root / "new"),
        lambda: os.link(big, root / "new"),
        lambda: big.unlink(),
        lambda: (root / "many").rmdir(),
        lambda: big.rename(root / "new"),
        lambda: big.chmod(0o777),
        lambda: os.chown(big, 1, 1),
        lambda: os.truncate(big, 1),
        lambda: os.utime(big, (1, 1)),
        lambda: os.setxattr(big, "user.x", b"1"),
        lambda: os.removexattr(root, "user.lazyfs.health"),
        lambda: os.setxattr(root, "user.lazyfs.health", b"forged"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="Read-only") as caught:
            attempt()
        assert caught.value.errno == errno.EROFS


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_a_remount_changes_nothing(tmp_path, driver):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving_made(mountpoint, driver) as server:
        assert run("mount", "-i", "-o", "remount,rw", mountpoint).returncode == 0
        for command in (["touch", mountpoint / "new"], ["mkdir", mountpoint / "new"],
                        ["rm", "-f", mountpoint / "big"], ["chmod", "777", mountpoint / "big"],
                        ["ln", mountpoint / "big", mountpoint / "new"],
                        ["mv", mountpoint / "big", mountpoint / "new"],
                        ["sh", "-c", f"echo >> {mountpoint}/big"],
                        ["ln", "-s", "x", mountpoint / "new"]):  # fmt: skip
            done = run(*command)
            assert "Read-only file system" in done.stderr, command
        assert server.end() == 0


# Trouble


def reader(path) -> subprocess.Popen:
    return subprocess.Popen(["cat", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def cold(server, root):
    """The upper layer's contents are not there, and its pages are forgotten."""
    with open(root / "top", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    server.do("cold", device=2)
    server.do("forget")
    yield server
    server.do("warm")
    server.do("open")
    wait_until(lambda: server.do("waiting") == 0)


def test_a_waiting_reader_disturbs_nobody(cold, root):
    with reader(root / "top") as waiting:
        cold.wait_waiting(1)
        assert (root / "big").read_bytes() == BIG
        assert len(os.listdir(root / "many")) == 1000
        assert waiting.poll() is None
        cold.do("open")
        assert waiting.communicate(timeout=SECONDS)[0] == b"other layer" * 1000


def test_many_waiting_readers_do_not_stop_lookups(cold, root):
    readers = [reader(root / "top") for _ in range(40)]
    cold.wait_waiting(1)
    assert not (root / "never-asked-before").exists()
    cold.do("open")
    for process in readers:
        assert process.communicate(timeout=SECONDS)[0] == b"other layer" * 1000


def test_a_killed_reader_goes_and_its_fetch_goes_on(cold, root):
    with reader(root / "top") as killed:
        cold.wait_waiting(1)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(SECONDS) == -signal.SIGKILL
    assert cold.do("waiting") >= 1, "the fetch ended with its reader"
    cold.do("open")
    wait_until(lambda: cold.do("waiting") == 0)
    assert (root / "top").read_bytes() == b"other layer" * 1000


def test_a_broken_chunk_is_an_error_for_its_reader_only(server, root):
    with open(root / "deep/er/and/deeper/file", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    server.do("fault", device=2)
    try:
        with pytest.raises(OSError, match="Input/output"):
            (root / "deep/er/and/deeper/file").read_bytes()
        assert (root / "bin/script").read_bytes().startswith(b"#!")
    finally:
        server.do("mend")
    assert (root / "deep/er/and/deeper/file").read_bytes() == b"deep"
    text = server.log_path.read_text()
    assert "deep/er/and/deeper/file" in text
    assert "chunk: got other bytes" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_files_can_be_opened_by_handle(root):
    """What an NFS server does: a handle outlives every cache of the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)

    class Handle(ctypes.Structure):
        _fields_ = [
            ("bytes", ctypes.c_uint),
            ("type", ctypes.c_int),
            ("data", ctypes.c_char * 128),
        ]

    handle, mount_id = Handle(bytes=128), ctypes.c_int()
    path = os.fsencode(root / "many/0007")
    result = libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount_id), 0)
    assert result == 0, os.strerror(ctypes.get_errno())
    folder = os.open(root, os.O_RDONLY)
    try:
        file = libc.open_by_handle_at(folder, ctypes.byref(handle), os.O_RDONLY)
        assert file >= 0, os.strerror(ctypes.get_errno())
        assert os.read(file, 10) == b"7"
        os.close(file)
    finally:
        os.close(folder)


# The server


def test_a_signal_unmounts(tmp_path, driver):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving_made(mountpoint, driver) as server:
        assert (mountpoint / "top").exists()
        assert server.end() == 0
        assert not is_mounted(mountpoint)
        assert server.log_path.read_text() == ""


def test_a_signal_detaches_a_mount_in_use(tmp_path, driver):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving_made(mountpoint, driver) as server:
        user = os.open(mountpoint / "big", os.O_RDONLY)
        try:
            assert server.end() == 0
            assert not is_mounted(mountpoint)
            assert "in use" in server.log_path.read_text()
            with pytest.raises(OSError, match="not connected"):
                os.read(user, 1)
        finally:
            with suppress(OSError):  # closing asks the server, which is gone
                os.close(user)


def test_an_unmount_ends_the_server(tmp_path, driver):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving_made(mountpoint, driver) as server:
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        assert run(*command, mountpoint).returncode == 0
        assert server.process.wait(SECONDS) == 0


def test_the_directory_is_as_it_was(tmp_path, driver):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    (mountpoint / "below").write_bytes(b"hidden")
    with serving_made(mountpoint, driver) as server:
        assert not (mountpoint / "below").exists()
        server.end()
    assert (mountpoint / "below").read_bytes() == b"hidden"


@pytest.mark.parametrize("word", ["noatime", "noexec", "fsname=a\\,b"])
def test_options_reach_the_kernel(tmp_path, word):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving_made(mountpoint, word):
        shown = run("findmnt", "-n", "-o", "SOURCE,OPTIONS", mountpoint).stdout
        assert word.removeprefix("fsname=").replace("\\", "") in shown
        assert (mountpoint / "top").read_bytes() == b"other layer" * 1000
