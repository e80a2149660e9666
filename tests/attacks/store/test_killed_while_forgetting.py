"""A server that is killed while the kernel forgets pages for it ends, and holds up nobody.

The kernel waits for a page that is being read before it forgets it.  Where only that server could
answer the read, and the waiting thread kept the connection, nothing would ever end: not the
process, not an unmount, and no ``sync`` of this machine.
"""

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.mount.abort import abort_connection
from lazyfs.service.processes.control import ServerSilent, ask
from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    available_drivers,
    force_unmount,
    is_mounted,
    needs_fuse,
    needs_root,
    wait_until,
)
from tests.support.registries.faults import hang
from tests.support.registries.registry import FakeRegistry

pytestmark = [*needs_fuse, *needs_root]

holds_up_all = pytest.mark.skipif(
    not os.environ.get("LAZYFS_TEST_WEDGED"),
    reason="holds up sync(2) of the whole machine for seconds: make wedged",
)

END_SECONDS = 10.0
CHUNK = 64 << 10
DATA = random.Random(40).randbytes(16 * CHUNK)
BLIND = """
from lazyfs.mount import forgetting
real = forgetting.forget_apart
forgetting.forget_apart = lambda descriptor, pages, _: real(
    descriptor, pages, forgetting.forget_around(lambda: [])
)
"""
"""A server that does not look which reads it has taken."""
HOLDING_ALL = "forgetting._take_own_table = lambda: False"
"""And whose thread holds all that the server holds."""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout")
    items = [directory("d"), file("d/parked", DATA), file("d/here", DATA[::-1])]
    make_layout(path, [estargz_layer(tar_bytes(items), chunk_size=CHUNK)])
    return path


@pytest.fixture
def registry(layout: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(layout) as registry:
        yield registry
        registry.release()


class Mounted:
    """A mount with a reader whose page is locked, since the registry answers nothing."""

    def __init__(self, folder: Path, registry: FakeRegistry, driver: str, code: str = "") -> None:
        (folder / "patches").mkdir()
        (folder / "patches/sitecustomize.py").write_text(code)
        self.lazyfs = Lazyfs(folder, environment={"LAZYFS_SERVICE": "0"})
        path = f"{folder / 'patches'}:{self.lazyfs.variables['PYTHONPATH']}"
        self.lazyfs.environment["PYTHONPATH"] = path
        self.path = folder / "mnt"
        self.can_sync = returns("sync")  # others who hang are not our matter
        self.path.mkdir()
        words = ("--driver", driver, "--prefetch", "none", "--patience", "10m")
        self.lazyfs.mount(*words, f"{registry.host}/image", self.path)
        (self.status,) = self.lazyfs.status()
        (self.record,) = self.lazyfs.folder.glob("run/*.json")
        (line,) = [
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f" {self.path} " in line
        ]
        self.device = line.split()[2]
        assert (self.path / "d/here").read_bytes() == DATA[::-1]
        registry.faults.add(hang(), path="/blobs/", times=None)
        script = "import sys; open(sys.argv[1], 'rb', 0).read(1)"
        self.reader = subprocess.Popen(["python3", "-c", script, self.path / "d/parked"])
        self.asker = threading.Thread(target=self._tell)
        self.answers: list[str] = []

    def reads_are_parked(self) -> bool:
        """Say whether the reader has the file open, and waits for a page."""
        folder = Path(f"/proc/{self.reader.pid}")
        try:
            opened = [os.readlink(each) for each in (folder / "fd").iterdir()]
        except FileNotFoundError:
            return False  # it has closed one
        return str(self.path / "d/parked") in opened and "folio" in (folder / "wchan").read_text()

    def tell(self, seconds: float = 60.0) -> None:
        """Tell the server that all of its layer was found to be rotten."""
        (folder,) = (self.lazyfs.folder / "cache/layers").iterdir()
        layers = {folder.name: [[0, 1 << 20]]}
        try:
            answer = ask(self.socket, {"type": "dropped", "layers": layers}, seconds=seconds)
            self.answers.append(answer["type"])
        except ServerSilent as error:
            self.answers.append(error.message)

    def _tell(self) -> None:
        self.tell()

    @property
    def socket(self) -> Path:
        return self.record.with_suffix(".sock")

    def wait_for_a_page(self) -> None:
        """Wait until the kernel waits, for the server, for a page that the reader has locked."""
        wait_until(self.reads_are_parked)
        self.asker.start()
        wait_until(lambda: "__folio_lock" in threads_of(self.status["pid"]))

    def kill(self) -> list[int]:
        """Kill server and keeper at once, and return their numbers."""
        keeper = self.lazyfs.status()[0]["keeperPid"]
        self.lazyfs.kill_server()
        return [pid for pid in (self.status["pid"], keeper) if pid is not None]

    def clean_up(self) -> None:
        try:
            self.reader.kill()
            # Else the number may be another mount's by now.
            if self.reader.poll() is None or "__folio_lock" in threads_of(self.status["pid"]):
                abort_connection(self.device)
            self.reader.wait(END_SECONDS)
            if self.asker.is_alive():
                self.asker.join(END_SECONDS)
        finally:
            force_unmount(self.path)


def threads_of(pid: int) -> list[str]:
    """Return what the threads of a process wait for in the kernel; those that have ended do not."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            if (task / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append((task / "wchan").read_text())
        except OSError:
            pass  # it is gone
    return found


def returns(*command: object) -> bool:
    """Say whether a program ends in time; it is left behind otherwise, and not waited for."""
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def check_nobody_is_held_up(mounted: Mounted, pids: list[int]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while any(threads_of(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [threads_of(pid) for pid in pids if threads_of(pid)] == []
    if is_mounted(mounted.path):
        assert returns("umount", "-l", mounted.path)
    if mounted.can_sync:
        assert returns("sync")
    assert not is_mounted(mounted.path)
    mounted.reader.wait(END_SECONDS)


@pytest.mark.parametrize("driver", available_drivers())
def test_with_a_read_that_only_it_could_answer(
    tmp_path: Path, registry: FakeRegistry, driver: str
) -> None:
    mounted = Mounted(tmp_path, registry, driver)
    try:
        wait_until(mounted.reads_are_parked)
        mounted.asker.start()
        mounted.asker.join(2.0)
        waiting = [name for name in threads_of(mounted.status["pid"]) if "folio" in name]
        pids = mounted.kill()
        check_nobody_is_held_up(mounted, pids)
        assert waiting == [], "nobody waited for that read"
        assert mounted.answers == ["invalidated"]
    finally:
        mounted.clean_up()


@holds_up_all
@pytest.mark.parametrize("driver", available_drivers())
def test_with_a_read_that_came_too_late_to_be_spared(
    tmp_path: Path, registry: FakeRegistry, driver: str
) -> None:
    """The thread that waits holds nothing else, so that what the server has taken ends with it."""
    mounted = Mounted(tmp_path, registry, driver, BLIND)
    try:
        mounted.wait_for_a_page()
        # Or it would read once more, what nobody takes; then there is `lazyfs umount`.
        mounted.reader.kill()
        check_nobody_is_held_up(mounted, mounted.kill())
    finally:
        mounted.clean_up()


@holds_up_all
@pytest.mark.parametrize("is_detached", [False, True], ids=["mounted", "detached"])
@pytest.mark.parametrize("command", ["umount", "mount", "restart"])
def test_commands_end_what_cannot_end(
    tmp_path: Path, registry: FakeRegistry, command: str, is_detached: bool
) -> None:
    mounted = Mounted(tmp_path, registry, available_drivers()[-1], BLIND + HOLDING_ALL)
    try:
        mounted.wait_for_a_page()
        (server, *_) = mounted.kill()
        wait_until(lambda: threads_of(server) == ["__folio_lock"])
        if is_detached:
            assert returns("umount", "-l", mounted.path), "the reader has it open"
        (status,) = mounted.lazyfs.status()
        assert (status["state"], status["mounted"]) == ("dead", not is_detached)
        assert "lazyfs umount" in mounted.lazyfs("status").stdout
        mounted.lazyfs.environment["PYTHONPATH"] = ""
        registry.faults.clear()
        words = [f"{registry.host}/image"] if command == "mount" else []
        done = mounted.lazyfs(command, *words, mounted.path)
        assert (done.returncode == 0) == (command != "restart"), done.stderr
        if command == "mount":
            assert (mounted.path / "d/parked").read_bytes() == DATA
            assert mounted.lazyfs("umount", mounted.path).returncode == 0
        elif command == "umount":
            assert not is_mounted(mounted.path)
            assert mounted.lazyfs.status() == []
        check_nobody_is_held_up(mounted, [server])
    finally:
        mounted.clean_up()


def test_a_connection_that_is_none() -> None:
    assert not abort_connection("0:999999999")
    assert not abort_connection("none")
    assert not abort_connection("")
