"""A sample of the crash states of each workload, and faults that are built in and must be found."""

import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.all_cases import CASES, case_named, possible_cases
from tests.crash.bench import Found, judged, look_at_states, opened_place, record_case
from tests.crash.built_in_faults import FAULTS as BUILT_IN
from tests.crash.built_in_faults import MUST_BE_FOUND, OF_MARKS, are_copies_believed
from tests.crash.cases import FAULTS, Case, Place
from tests.crash.disk import Disk, Order, last_state
from tests.crash.real_cases import RealRun, RealSnapshot
from tests.crash.recording import Incomplete, Kind, record, remove_library, why_no_recorder
from tests.crash.states import all_states
from tests.crash.store_cases import LIVE, MountCase
from tests.support.mounts.mounting import ROOT, available_drivers, why_no_mounts

pytestmark = pytest.mark.skipif(why_no_recorder() is not None, reason=str(why_no_recorder()))
SAMPLE = 6  # states of each case; `make crash` looks at thousands
ENOUGH = 150  # states among which a fault must be found


@pytest.fixture(scope="module", autouse=True)
def recorder() -> Iterator[None]:
    """The compiled recorder goes away in the end."""
    yield
    remove_library()


@pytest.fixture
def place() -> Iterator[Place]:
    with opened_place() as opened:
        yield opened


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What was damaged is logged, and is what is wanted here."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def parameter(case: Case) -> Any:
    marks = []
    if isinstance(case, MountCase | RealRun | RealSnapshot):
        marks.append(pytest.mark.fuse)
    if isinstance(case, RealSnapshot):
        marks.append(pytest.mark.interop)
    return pytest.param(case.name, marks=marks)


@pytest.mark.parametrize("name", [parameter(case) for case in CASES])
def test_what_a_loss_of_power_leaves_is_right_or_refused(place: Place, name: str) -> None:
    case = case_named(name)
    if case not in possible_cases():
        pytest.skip("it needs mounts, or a runtime, that are not here")
    disk = record_case(case, place)
    bad: list[str] = []

    def tell(found: Found) -> None:
        if found.verdict.outcome in FAULTS:
            bad.append(f"{found.verdict} {found.state.story}")

    assert look_at_states(case, place, disk, SAMPLE, random.randrange(1 << 30), tell) > 0
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("fault", BUILT_IN)
def test_a_wrong_order_is_found(place: Place, fault: str) -> None:
    if fault in OF_MARKS and not are_copies_believed(place.outside):
        pytest.skip("marks of a content file that was copied are doubted, whatever the order")
    name, kinds = MUST_BE_FOUND[fault]
    case = case_named(name)
    disk = record_case(case, place, fault)
    for number, state in enumerate(all_states(disk, seed=3)):
        if judged(case, place, state, number).outcome in kinds:
            return
        if number == ENOUGH:
            break
    pytest.fail(f"{fault}: not found in {number} states of {name}")


@pytest.mark.fuse
@pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))
@pytest.mark.parametrize("driver", available_drivers())
def test_a_mount_waits_for_no_sync_before_it_is_live(place: Place, driver: str) -> None:
    """A disk takes milliseconds, or seconds, for each; see docs/adr/0021."""
    disk = record_case(case_named(f"mount, {driver}"), place)
    (live,) = [at for at, text in disk.marks if text == LIVE]
    syncs = {Kind.FSYNC, Kind.FDATASYNC, Kind.SYNC}
    assert not [str(event) for event in disk.events[:live] if event.kind in syncs]
    assert [event for event in disk.events[live:] if event.kind in syncs]


# The model


def recorded(place: Place, program: str) -> Disk:
    """Record a program that works in the folder ``d``."""
    (place.root / "d").mkdir(parents=True)
    text = f"import os, mmap\nos.chdir({str(place.root / 'd')!r})\n{program}"
    return Disk(record(place.root, [sys.executable, "-c", text], place.folder / "recorder"))


def trees(disk: Disk, count: int = 400) -> set[tuple[tuple[str, bytes], ...]]:
    """Return the trees that may be left: names below ``d`` and bytes of files."""
    found = set()
    for number, state in enumerate(all_states(disk, seed=1)):
        tree = []
        for path, each in state.walk():
            if each in disk.files:
                content = state.content(each)
                data = bytearray(content.size)
                for offset, piece in content.pieces():
                    data[offset : offset + len(piece)] = piece
                tree.append((path.removeprefix("d/"), bytes(data)))
        found.add(tuple(sorted(tree)))
        if number == count:
            break
    return found


WRITE = """
def write(name, data, synced):
    with open(name, "wb") as file:
        file.write(data)
        file.flush()
        if synced:
            os.fsync(file.fileno())
def sync():
    fd = os.open(".", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""


def test_a_name_without_a_sync_may_have_no_bytes(place: Place) -> None:
    disk = recorded(place, WRITE + "write('t', b'new', False); os.rename('t', 'f'); sync()")
    found = trees(disk)
    assert {(("f", b""),), (("f", bytes(3)),), (("f", b"new"),)} <= found


def test_a_synced_file_is_replaced_as_a_whole(place: Place) -> None:
    program = "write('f', b'old', True); sync(); write('t', b'new', True); os.rename('t', 'f')"
    disk = recorded(place, WRITE + program)
    begun = next(at for at, each in enumerate(disk.events) if each.name == "t")
    for state in all_states(disk, seed=1):
        if state.place >= begun:
            names = state.names[next(n for p, n in state.walk() if p == "d")]
            assert state.content(names["f"]).size == 3
    assert {(("f", b"old"), ("t", b"new")), (("f", b"new"),)} <= trees(disk)


def test_a_rename_that_was_synced_stays(place: Place) -> None:
    program = "write('t', b'new', True); os.rename('t', 'f'); sync(); write('last', b'', False)"
    disk = recorded(place, WRITE + program)
    last = next(at for at, each in enumerate(disk.events) if each.name == "last")
    states = [state for state in all_states(disk, seed=1) if state.place >= last]
    assert states
    for state in states:
        assert "d/f" in dict(state.walk())


def test_only_folders_lose_their_order(place: Place) -> None:
    """Without a sync: two folders, written one after the other."""
    program = "os.mkdir('a'); os.mkdir('b'); sync()\n"
    disk = recorded(place, WRITE + program + "write('a/1', b'', False); write('b/2', b'', False)")

    def kept(order: Order) -> set[frozenset[str]]:
        return {
            frozenset(path for path, number in state.walk() if number in disk.files)
            for state in all_states(disk, seed=1)
            if order.value in state.story
        }

    assert frozenset({"d/b/2"}) not in kept(Order.JOURNAL)
    assert frozenset({"d/b/2"}) in kept(Order.FOLDERS)


def test_pages_of_a_map_are_torn_at_512_bytes(place: Place) -> None:
    program = """
write('f', bytes(8192), True); sync()
fd = os.open('f', os.O_RDWR)
mapped = mmap.mmap(fd, 8192)
mapped[:] = b'm' * 8192
mapped.flush()
os.close(fd)
"""
    disk = recorded(place, WRITE + program)
    assert Kind.MAPPED in {event.kind for event in disk.events}
    files = [dict(tree).get("f", b"") for tree in trees(disk, 2000)]
    assert bytes(8192) in files
    assert b"m" * 8192 in files
    torn = {data.count(b"m") for data in files} - {0, 4096, 8192}
    assert torn
    assert all(count % 512 == 0 for count in torn)


def test_all_that_changes_files_is_seen(place: Place) -> None:
    """The last state is the real tree, whatever the calls."""
    program = """
import shutil, fcntl, ctypes
libc = ctypes.CDLL(None)
write('a', b'0123456789' * 1000, False)
fd = os.open('b', os.O_RDWR | os.O_CREAT, 0o600)
os.posix_fallocate(fd, 0, 9000)
os.pwritev(fd, [b'x' * 10, b'y' * 10], 4090)
source = os.open('a', os.O_RDONLY)
os.copy_file_range(source, fd, 500, 100, 6000)
os.sendfile(fd, source, 0, 700)
libc.fallocate(fd, 3, ctypes.c_long(4092), ctypes.c_long(5))
os.ftruncate(fd, 8000)
os.truncate('a', 5000)
os.link('b', 'c'); os.symlink('c', 's'); os.mkdir('inner'); os.rename('c', 'inner/c')
nameless = os.open('.', os.O_RDWR | os.O_TMPFILE, 0o600)
os.write(nameless, b'found a name')
top = os.open('/', os.O_RDONLY)
os.link(f'/proc/self/fd/{nameless}', 'named', src_dir_fd=top, follow_symlinks=True)
with open('a', 'ab') as file:
    file.write(b'end')
write('gone', b'gone', True); os.unlink('gone')
shutil.copytree('inner', 'copy'); shutil.rmtree('inner')
if os.fork() == 0:
    write('child', b'child', False)
    os._exit(0)
os.wait()
"""
    disk = recorded(place, WRITE + program)
    state = last_state(disk)
    copy = place.folder / "again"
    copy.mkdir()
    state.write(copy)
    said = subprocess.run(
        ["diff", "-r", "--no-dereference", copy, place.root],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (said.returncode, said.stdout) == (0, "")
    assert sorted(os.listdir(copy / "d")) == ["a", "b", "child", "copy", "named", "s"]


def test_what_was_not_seen_is_told(place: Place) -> None:
    """A program without the C library's functions, here by the system call itself."""
    from tests.crash.bench import understood

    (place.root / "d").mkdir(parents=True)
    target = os.fsencode(place.root / "d" / "f")
    program = f"import ctypes; ctypes.CDLL(None).syscall(85, {target!r}, 0o600)"
    if os.uname().machine != "x86_64":
        pytest.skip("the number of creat is another one")
    recording = record(place.root, [sys.executable, "-c", program], place.folder / "recorder")
    with pytest.raises(Incomplete, match="d/f: not recorded"):
        understood(recording, place)


def test_the_runner_tells_and_counts() -> None:
    words = [sys.executable, "-m", "tests.crash.run", "--states", "3", "--jobs", "1", "gc"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, check=False, cwd=Path(ROOT)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].split()[:3] == ["all", "3", "3"]
