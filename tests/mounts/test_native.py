"""What only the native driver does: misses by queue, marks, first reads, bytes without a store."""

import errno
import mmap
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import trio

from tests.support.mounts.mounting import (
    ROOT,
    SECONDS,
    Commanded,
    available_drivers,
    folder_for_all,
    needs_fuse,
    run,
    serving_made,
    wait_until,
)
from tests.support.mounts.serve_made import BIG

pytestmark = [
    *needs_fuse,
    pytest.mark.skipif("native" not in available_drivers(), reason="lazyfs._native is not built"),
]
TOP = b"other layer" * 1000
CHUNK_SIZE = 64 << 10


@pytest.fixture
def server(tmp_path):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving_made(mountpoint, "driver=native") as server:
        yield server


def drop_pages(path) -> None:
    """Make the kernel forget what it has of a file."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(path, offset: int = 0, size: int = 1 << 20, flags: int = 0) -> subprocess.Popen:
    """Start a process that reads one range of a file with one system call."""
    code = (
        "import mmap, os\n"
        f"file, buffer = os.open({str(path)!r}, {flags}), mmap.mmap(-1, {size})\n"
        f"os.write(1, buffer[:os.preadv(file, [buffer], {offset})])"
    )
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def output(process: subprocess.Popen) -> bytes:
    return process.communicate(timeout=SECONDS)[0]


def counts(server: Commanded) -> dict[str, int]:
    return server.do("statistics")


def test_hits_never_reach_python(server):
    root = server.mountpoint
    assert (root / "big").read_bytes() == BIG
    assert (root / "top").read_bytes() == TOP
    found = counts(server)
    assert found["reads"] > 1
    assert found["misses"] == 0
    assert found["read_size"] >= len(BIG) + len(TOP)
    assert server.do("log") == []


def test_a_miss_is_fetched_once_and_then_a_hit(server):
    server.do("cold", device=2)
    server.do("open")
    assert (server.mountpoint / "top").read_bytes() == TOP
    assert [tuple(entry)[:2] for entry in server.do("log")] == [(False, 2)]
    drop_pages(server.mountpoint / "top")
    assert (server.mountpoint / "top").read_bytes() == TOP
    assert len(server.do("log")) == 1
    assert counts(server)["misses"] == 1


def test_bytes_that_the_store_cannot_take(server):
    server.do("cold", device=2)
    server.do("full")
    server.do("open")
    for _ in range(2):
        assert (server.mountpoint / "top").read_bytes() == TOP
        drop_pages(server.mountpoint / "top")
    assert counts(server)["misses"] == 2


def test_many_misses_wait_and_hits_go_on(server):
    server.do("cold", device=1)
    offsets = [number * CHUNK_SIZE for number in range(40)]
    readers = [reading(server.mountpoint / "big", offset, 4096) for offset in offsets]
    server.wait_waiting(40)
    assert counts(server)["waiting"] >= 40
    assert (server.mountpoint / "top").read_bytes() == TOP
    assert len(os.listdir(server.mountpoint / "many")) == 1000
    server.do("open")
    for offset, process in zip(offsets, readers, strict=True):
        assert output(process) == BIG[offset : offset + 4096]
    assert counts(server)["waiting"] == 0


def test_an_interrupted_reader_is_answered_at_once(server):
    server.do("cold", device=2)
    # The kernel itself lets a reader go that waits for a page; this one waits for the request.
    with reading(server.mountpoint / "top", 0, 4096, os.O_DIRECT) as killed:
        server.wait_waiting(1)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(SECONDS) == -signal.SIGKILL
    assert counts(server)["interrupted"] == 1
    assert server.do("waiting") == 1, "the fetch ended with its reader"
    server.do("open")
    wait_until(lambda: server.do("waiting") == 0)
    assert (server.mountpoint / "top").read_bytes() == TOP


def test_a_failed_miss_fails_its_reader_only(server):
    server.do("fault", device=2)
    with pytest.raises(OSError, match="Input/output") as caught:
        (server.mountpoint / "top").read_bytes()
    assert caught.value.errno == errno.EIO
    assert (server.mountpoint / "big").read_bytes() == BIG
    server.do("mend")
    assert (server.mountpoint / "top").read_bytes() == TOP
    assert "top" in server.log_path.read_text()


def test_a_memory_map_of_what_is_missing(server):
    server.do("cold", device=1)
    server.do("open")
    with (
        open(server.mountpoint / "big", "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[1_000_000:1_000_010] == BIG[1_000_000:1_000_010]
        assert mapped[:] == BIG


def test_first_reads_are_known_in_their_order(server):
    with open(server.mountpoint / "big", "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for number in (20, 3, 20, 11):
            os.pread(file.fileno(), 100, number * CHUNK_SIZE)
    (server.mountpoint / "top").read_bytes()
    wait_until(lambda: len(server.do("touches")) >= 4)
    touches = [tuple(touch) for touch in server.do("touches")]
    base = touches[0][1] - 20
    assert [touch for touch in touches if touch[0] == 1] == [
        (1, base + 20), (1, base + 3), (1, base + 11)
    ]  # fmt: skip
    assert touches[-1][0] == 2


def test_the_marked_chunk_is_told_of_once(server):
    root = server.mountpoint
    server.do("mark", device=2, chunk=0)
    server.do("cold", device=2)
    server.do("open")
    (root / "deep/er/and/deeper/file").read_bytes()  # a miss: the driver looks at the marks
    server.do("warm")
    assert server.do("reached") == []
    for _ in range(2):
        assert (root / "top").read_bytes() == TOP
        wait_until(lambda: server.do("reached"))
        drop_pages(root / "top")
    assert server.do("reached") == [[2, 0]]


def test_nothing_is_left_when_it_ends(server):
    assert (server.mountpoint / "top").exists()
    assert server.end() == 0  # it looks at its descriptors
    assert server.log_path.read_text() == ""


def test_a_limit_for_reads(tmp_path):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving_made(mountpoint, "driver=native,max_read=8192") as server:
        assert (mountpoint / "big").read_bytes() == BIG
        assert counts(server)["reads"] >= len(BIG) // 8192


@pytest.mark.parametrize("threads", [1, 4])
def test_any_number_of_threads(tmp_path, threads):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving_made(mountpoint, f"driver=native,threads={threads}") as server:
        assert counts(server)["threads"] == threads
        readers = [reading(mountpoint / "big") for _ in range(6)]
        assert {output(process) for process in readers} == {BIG[: 1 << 20]}
        assert server.end() == 0


SERVE_AND_READ = """
import pathlib, subprocess, sys
mountpoint = pathlib.Path(sys.argv[1])
command = [sys.executable, "-m", "tests.support.mounts.serve_made", mountpoint, "driver=native"]
server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert server.stdout.readline() == b"ready\\n"
print(len((mountpoint / "big").read_bytes()), len(list((mountpoint / "many").iterdir())))
server.terminate()
sys.exit(server.wait(20))
"""


def check_serves_and_reads(done: subprocess.CompletedProcess) -> None:
    assert (done.returncode, done.stdout.split()) == (0, [str(len(BIG)), "1000"]), done.stderr


def test_in_a_user_namespace(tmp_path):
    if run("unshare", "-Urm", "true").returncode != 0:
        pytest.skip("no user namespaces here")
    command = ["unshare", "-Urm", sys.executable, "-c", SERVE_AND_READ, tmp_path]
    check_serves_and_reads(run(*command, cwd=ROOT))


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_before_its_thread_keeps_no_connection() -> None:
    from lazyfs.mount.native import NativeSession

    session = SimpleNamespace(
        _descriptors=[os.open("/dev/null", os.O_WRONLY)], _server=SimpleNamespace(forget=None)
    )
    before = os.listdir("/proc/self/fd")
    limiter = trio.to_thread.current_default_thread_limiter()
    tokens, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with limiter:
            with trio.move_on_after(0.05) as scope:
                await NativeSession.invalidate(session, [(1, 0, 4096)])
        assert scope.cancelled_caught
        assert os.listdir("/proc/self/fd") == before
        await NativeSession.invalidate(session, [(1, 0, 4096)])
        assert os.listdir("/proc/self/fd") == before
    finally:
        limiter.total_tokens = tokens
        os.close(session._descriptors[0])


# In a mount namespace of its own, so that nobody else sees a /dev/fuse for all.
AS_NOBODY = """
mknod -m 666 "$0/fuse" c 10 229 && mount --bind "$0/fuse" /dev/fuse &&
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_as_an_ordinary_user():
    with folder_for_all() as folder:
        mountpoint = folder / "mnt"
        mountpoint.mkdir()
        os.chown(mountpoint, 65534, 65534)
        inside = ["unshare", "-m", "sh", "-c", AS_NOBODY, folder, sys.executable, "-c"]
        if run(*inside, "import lazyfs, pyfuse3", cwd=ROOT).returncode != 0:
            pytest.skip("other users cannot run this Python, or this root has no devices")
        (folder / "fuse").unlink()
        check_serves_and_reads(run(*inside, SERVE_AND_READ, mountpoint, cwd=ROOT))
