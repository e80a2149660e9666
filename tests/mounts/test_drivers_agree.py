"""The drivers cannot be told apart: each question has the same answer on every mount.

So does the kernel's own EROFS mount of the same index, in which no driver of ours had a hand; what
the kernel does in another way than FUSE is listed in ``BY_THE_KERNEL`` with the reason.

The first driver in the list is the measure; what is asked of every tree is in support/questions.py.
A Python image, mounted by the command, is asked in test_python_image.py.
"""

import ctypes
import fcntl
import mmap
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.mounts.kernel_erofs import kernel_mount
from tests.support.mounts.mounting import (
    SECONDS,
    available_drivers,
    folder_for_all,
    needs_fuse,
    run,
    serving_made,
    wait_until,
    why_no_erofs,
    why_no_mounts,
)
from tests.support.mounts.questions import (
    Question,
    as_by_kernel,
    ask,
    attributes,
    contents,
    extended_attributes,
    links,
    names,
)
from tests.support.mounts.serve_made import BIG, sample_image

pytestmark = needs_fuse
OTHERS = [driver for driver in available_drivers() if driver != "pyfuse3"]
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Oracle:
    """The kernel's own mount of the index, with the devices as plain files; nobody serves it."""

    mountpoint: Path
    driver: str = "kernel"


@contextmanager
def by_the_kernel_alone() -> Iterator[Oracle]:
    """Mount the sample image without any of lazyfs's drivers."""
    image = sample_image()
    with folder_for_all() as folder:
        index = folder / "index.erofs"
        index.write_bytes(image.image)
        devices = []
        for number, data in sorted(image.contents.devices.items()):
            devices.append(folder / str(number))
            devices[-1].write_bytes(data)
        with kernel_mount(index, devices, folder / "mnt") as root:
            yield Oracle(root)


@pytest.fixture(scope="module")
def mounts():
    """The mounts of all drivers, of the same image at the same time."""
    with ExitStack() as stack:
        servers = {}
        for driver in [*available_drivers(), *KERNEL[:1]]:
            mountpoint = stack.enter_context(folder_for_all()) / "mnt"
            mountpoint.mkdir()
            words = ["allow_other,suid,dev"] if os.geteuid() == 0 else []
            servers[driver] = stack.enter_context(
                serving_made(mountpoint, f"driver={driver}", *words)
            )
        if KERNEL:
            servers["kernel"] = stack.enter_context(by_the_kernel_alone())
        yield servers


KERNEL = ["erofs", "kernel"] if why_no_erofs() is None and why_no_mounts() is None else []


# Question → why a mount by the kernel has another answer.
BY_THE_KERNEL = {
    "name of 256": "EROFS limits names before it looks; FUSE leaves that to the server up to 1024",
    "numbers of the filesystem": "EROFS counts its own blocks and inodes, and names its limit",
    "numbers seen from below": "the same",
    "fsync": "EROFS has no such operation, FUSE does as if",
    "fsync a directory": "the same",
}


@pytest.fixture(params=[*OTHERS, *KERNEL])
def pair(request, mounts):
    """The measure, and another driver."""
    return mounts["pyfuse3"], mounts[request.param]


@pytest.fixture(params=[*OTHERS, *KERNEL[:1]])
def served_pair(request, mounts):
    """The same, but both obey commands."""
    return mounts["pyfuse3"], mounts[request.param]


def is_by_kernel(server) -> bool:
    return server.driver in KERNEL


def directory_entries(root: Path) -> dict[bytes, list[tuple[bytes, int, bool, bool, bool]]]:
    result = {}
    for path in (b".", b"many", b"deep", b"bin", b"sticky"):
        with os.scandir(os.path.join(os.fsencode(root), path)) as entries:
            result[path] = [
                (
                    entry.name,
                    entry.inode(),
                    entry.is_dir(follow_symlinks=False),
                    entry.is_file(follow_symlinks=False),
                    entry.is_symlink(),
                )
                for entry in entries
            ]
    return result


@pytest.mark.parametrize(
    "question", [names, attributes, directory_entries, extended_attributes, links, contents]
)
def test_everything_that_is_there(pair, question):
    measure, other = (question(server.mountpoint) for server in pair)
    if is_by_kernel(pair[1]):
        measure, other = (as_by_kernel(question, answer) for answer in (measure, other))
    assert len(measure) >= 5
    assert other == measure


def test_directories_from_any_place(pair):
    """Reading can be taken up where it was left, with any buffer."""

    def pieces(root: Path) -> list[list[str]]:
        listings = []
        for size in (300, 1000, 32768):
            folder = os.open(root / "many", os.O_RDONLY)
            buffer = ctypes.create_string_buffer(size)
            got: list[str] = []
            while (used := LIBC.syscall(217, folder, buffer, size)) > 0:  # getdents64
                at = 0
                while at < used:
                    length = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
                    got.append(buffer.raw[at + 19 : at + length].split(b"\0")[0].decode())
                    place = int.from_bytes(buffer.raw[at + 8 : at + 16], "little")
                    at += length
                os.lseek(folder, place, os.SEEK_SET)
            os.close(folder)
            listings.append(got)
        return listings

    measure, other = (pieces(server.mountpoint) for server in pair)
    assert len(measure[0]) == 1002
    assert measure[0] == measure[1] == measure[2]
    assert other == measure


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["pages", "direct"])
@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1), (0, 1 << 22), (4095, 2), (65535, 2), (65536, 65536), (100, 300_000), (2_999_990, 100),
     (3_000_000, 1), (3_000_001, 1), (9**9, 10), (1 << 62, 10), (0, 0)],
)  # fmt: skip
def test_ranges(pair, offset, size, flags):
    def read(root: Path) -> bytes:
        file = os.open(root / "big", os.O_RDONLY | flags)
        try:
            with mmap.mmap(-1, size + 1) as buffer:
                got = os.preadv(file, [memoryview(buffer)[:size]], offset)
                return buffer[:got]
        finally:
            os.close(file)

    measure, other = (ask(read, server.mountpoint) for server in pair)
    if flags and is_by_kernel(pair[1]):
        assert other == "EINVAL", "EROFS in a file has no direct I/O"
    else:
        assert other == measure
    if isinstance(measure, bytes):
        assert measure == BIG[offset : offset + size]


def seek(where: int, offset: int) -> Question:
    def question(root: Path) -> int:
        file = os.open(root / "big", os.O_RDONLY)
        try:
            return os.lseek(file, offset, where)
        finally:
            os.close(file)

    return question


@pytest.mark.parametrize("offset", [0, 1, 4096, 3_000_000, 3_000_001, 9**9])
@pytest.mark.parametrize("where", [os.SEEK_DATA, os.SEEK_HOLE])
def test_holes(pair, where, offset):
    measure, other = (ask(seek(where, offset), server.mountpoint) for server in pair)
    assert other == measure


def opened(path: str, flags: int, then: Callable[[int], object]) -> Question:
    def question(root: Path) -> object:
        file = os.open(root / path, flags)
        try:
            return then(file)
        finally:
            os.close(file)

    return question


def short_xattr(root: Path) -> int:
    buffer = ctypes.create_string_buffer(1)
    path = os.fsencode(root / "suid")
    size = LIBC.getxattr(path, b"security.capability", buffer, 1)
    if size < 0:
        raise OSError(ctypes.get_errno(), "getxattr")
    return size


def short_list(root: Path) -> int:
    buffer = ctypes.create_string_buffer(1)
    size = LIBC.listxattr(os.fsencode(root), buffer, 1)
    if size < 0:
        raise OSError(ctypes.get_errno(), "listxattr")
    return size


def mapped(file: int) -> bytes:
    with mmap.mmap(file, 0, prot=mmap.PROT_READ) as view:
        return view[-10:]


def mapped_shared(file: int) -> None:
    mmap.mmap(file, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE).close()


def locked(file: int) -> None:
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def copied(file: int) -> int:
    target = os.memfd_create("copy")
    try:
        return os.sendfile(target, file, 0, 1 << 22)
    finally:
        os.close(target)


ODD = {
    "missing": lambda root: os.stat(root / "missing"),
    "missing again": lambda root: os.stat(root / "missing"),
    "missing below a file": lambda root: os.stat(root / "big/missing"),
    "missing below a missing one": lambda root: os.stat(root / "missing/missing"),
    "name of 255": lambda root: os.stat(root / ("n" * 255)),
    "name of 256": lambda root: os.stat(root / ("n" * 256)),
    "dangling link": lambda root: os.stat(root / "broken"),
    "names that end in a dot": lambda root: os.stat(root / "many/./../many/.").st_ino,
    "parent of the deepest": lambda root: os.stat(root / "deep/er/and/deeper/..").st_ino,
    "link of a file": lambda root: os.readlink(root / "big"),
    "list of a file": lambda root: os.listdir(root / "big"),
    "open of a directory for writing": opened("many", os.O_RDWR, str),
    "open for writing": opened("big", os.O_WRONLY, str),
    "open to append": opened("big", os.O_RDWR | os.O_APPEND, str),
    "open to truncate": opened("big", os.O_RDONLY | os.O_TRUNC, str),
    "create": opened("new", os.O_CREAT | os.O_WRONLY, str),
    "create what is there": opened("big", os.O_CREAT | os.O_EXCL, str),
    "temporary file": opened("many", os.O_TMPFILE | os.O_RDWR, str),
    "open path only": opened("big", os.O_PATH, lambda file: os.fstat(file).st_size),
    "open a link": opened("link", os.O_NOFOLLOW, str),
    "write": opened("big", os.O_RDONLY, lambda file: os.write(file, b"x")),
    "read a directory": opened("many", os.O_RDONLY, lambda file: os.read(file, 10)),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "mkdir what is there": lambda root: os.mkdir(root / "many"),
    "mknod": lambda root: os.mknod(root / "new"),
    "symlink": lambda root: os.symlink("x", root / "new"),
    "link": lambda root: os.link(root / "big", root / "new"),
    "unlink": lambda root: os.unlink(root / "big"),
    "unlink a missing one": lambda root: os.unlink(root / "missing"),
    "rmdir": lambda root: os.rmdir(root / "many"),
    "rename": lambda root: os.rename(root / "big", root / "new"),
    "chmod": lambda root: os.chmod(root / "big", 0),
    "chown": lambda root: os.chown(root / "big", 1, 1),
    "utime": lambda root: os.utime(root / "big"),
    "truncate": lambda root: os.truncate(root / "big", 0),
    "setxattr": lambda root: os.setxattr(root / "big", "user.x", b""),
    "removexattr": lambda root: os.removexattr(root, "user.lazyfs.schema"),
    "xattr with a long name": lambda root: os.getxattr(root, "user." + "x" * 250),
    "xattr with a longer name": lambda root: os.getxattr(root, "user." + "x" * 251),
    "xattr into no room": short_xattr,
    "xattrs into no room": short_list,
    "access": lambda root: [
        os.access(root / name, mode)
        for name in ("big", "secret", "bin/true", "missing", "null")
        for mode in (os.R_OK, os.W_OK, os.X_OK)
    ],
    "numbers of the filesystem": lambda root: list(os.statvfs(root))[:10],
    "numbers seen from below": lambda root: list(os.statvfs(root / "many/0001"))[:10],
    "map": opened("big", os.O_RDONLY, mapped),
    "map to write": opened("big", os.O_RDONLY, mapped_shared),
    "locks": opened("big", os.O_RDONLY, locked),
    "fsync": opened("big", os.O_RDONLY, os.fsync),
    "fsync a directory": opened("many", os.O_RDONLY, os.fsync),
    "fallocate": opened("big", os.O_RDONLY, lambda file: os.posix_fallocate(file, 0, 10)),
    "an ioctl": opened("big", os.O_RDONLY, lambda file: fcntl.ioctl(file, 0x80086601)),
    "another ioctl": opened("big", os.O_RDONLY, lambda file: fcntl.ioctl(file, 0x1234)),
    "sendfile": opened("big", os.O_RDONLY, copied),
    "read-ahead": opened("big", os.O_RDONLY, lambda file: os.posix_fadvise(file, 0, 0, 3)),
    "read of a device": opened("null", os.O_RDONLY, lambda file: os.read(file, 5)),
    "read of a pipe": opened("pipe", os.O_RDONLY | os.O_NONBLOCK, lambda file: os.read(file, 5)),
    "run": lambda root: run(root / "bin/script").returncode,
    "run through a link": lambda root: run(root / "link").returncode,
    "run what is not executable": lambda root: run(root / "top").returncode,
    "statx": lambda root: run("stat", "-c", "%a %b %B %d %f %F %g %h %i %o %s %u %w %W %Y",
                              "--cached=never", root / "big").stdout.split()[4:],
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_questions(pair, name):
    question: Question = ODD[name]
    measure, other = (ask(question, server.mountpoint) for server in pair)
    assert (other == measure) != (is_by_kernel(pair[1]) and name in BY_THE_KERNEL)
    assert not isinstance(measure, str) or not measure.startswith("ENOSYS")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_other_users(pair):
    # One process for all files: a fork of this one, which another user's is, takes long.
    look = 'for path; do test -r "$path"; echo $?; { cat "$path"; echo $?; } | sha256sum; done'
    paths = ("secret", "shared", "top", "sticky", "bin/true")

    def seen(root: Path) -> list[list[str]]:
        command = ["sh", "-c", look, "sh", *(root / path for path in paths)]
        users = ({"user": uid, "group": uid, "extra_groups": []} for uid in (65534, 1234))
        answers = [run(*command, **user).stdout.splitlines() for user in users]
        assert [len(lines) for lines in answers] == [2 * len(paths)] * 2
        assert answers[0][0] == "1", "the secret is root's"
        return answers

    measure, other = (seen(server.mountpoint) for server in pair)
    assert other == measure


def test_many_readers(pair):
    for server in pair:
        failures: list[int] = []
        by_kernel = is_by_kernel(server)

        def read(
            number: int,
            root: Path = server.mountpoint,
            bad: list[int] = failures,
            by_kernel: bool = by_kernel,
        ) -> None:
            flags = os.O_DIRECT if number % 3 == 0 and not by_kernel else 0
            file = os.open(root / "big", os.O_RDONLY | flags)
            with mmap.mmap(-1, 8192) as buffer:
                for offset in range(number * 4096, len(BIG), 300 * 4096):
                    got = os.preadv(file, [buffer], offset)
                    if buffer[:got] != BIG[offset : offset + 8192]:
                        bad.append(offset)
            os.close(file)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert failures == []


def test_a_reader_killed_in_a_miss(served_pair):
    for server in served_pair:
        top = server.mountpoint / "top"
        with open(top, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        server.do("cold", device=2)
        with subprocess.Popen(["cat", top], stdout=subprocess.DEVNULL) as reader:
            server.wait_waiting(1)
            reader.kill()
            if server.driver == "erofs":
                server.do("open")  # who reads a device for others cannot be interrupted
            assert reader.wait(SECONDS) < 0
        server.do("open")
        wait_until(lambda server=server: server.do("waiting") == 0)
        assert top.read_bytes() == b"other layer" * 1000
        server.do("warm")


def test_a_failing_device(served_pair):
    answers = []
    for server in served_pair:
        top = server.mountpoint / "top"
        with open(top, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        server.do("fault", device=2)
        answers.append(ask(lambda root: (root / "top").read_bytes(), server.mountpoint))
        server.do("mend")
        answers.append(ask(lambda root: (root / "top").read_bytes(), server.mountpoint))
    assert answers[0] == "EIO"
    assert answers[:2] == answers[2:]
