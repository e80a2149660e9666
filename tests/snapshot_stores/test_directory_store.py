"""A directory as a store: atomic, exclusive, closed; for several processes at once."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazyfs.documents.errors import NoSpace, StoreFailed
from lazyfs.snapshot.stores.directory_store import DirectoryStore
from lazyfs.snapshot.stores.keys import BadKey
from lazyfs.snapshot.stores.objects import ObjectMissing
from tests.support.mounts.mounting import ROOT

SECONDS = 60


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def put(objects: DirectoryStore, key: str, data: bytes, folder: Path) -> None:
    source = folder / "source"
    source.write_bytes(data)
    objects.put_file(key, source)


def test_what_is_put_is_got(objects, tmp_path):
    put(objects, "snapshots/a/file", b"some bytes", tmp_path)
    assert objects.size("snapshots/a/file") == 10
    assert objects.get("snapshots/a/file", 100) == b"some bytes"
    assert objects.get("snapshots/a/file", 3) == b"some"  # one more than asked for
    with objects.open("snapshots/a/file") as stream:
        assert stream.read(4) + stream.read() == b"some bytes"
    put(objects, "snapshots/a/file", b"other", tmp_path)
    assert objects.get("snapshots/a/file", 100) == b"other"


def test_what_is_not_there(objects):
    assert objects.size("a/b") is None
    assert list(objects.list("")) == []
    for read in (lambda: objects.get("a/b", 1), lambda: objects.open("a/b").__enter__()):
        with pytest.raises(ObjectMissing):
            read()
    objects.delete("a/b")
    assert objects.abort_uploads(1e12) == 0
    assert not objects.path.exists()  # looking makes nothing


def test_if_absent(objects):
    assert objects.put_if_absent("a/b", b"first")
    assert not objects.put_if_absent("a/b", b"second")
    assert objects.get("a/b", 100) == b"first"
    assert objects.is_conditional()


def test_replace_is_compare_and_swap(objects):
    assert not objects.replace("p", b"1", b"0")
    assert objects.replace("p", b"1", None)
    assert not objects.replace("p", b"2", None)
    assert not objects.replace("p", b"2", b"")
    assert not objects.replace("p", b"2", b"10")
    assert objects.replace("p", b"2", b"1")
    assert objects.get("p", 9) == b"2"


def test_the_order_of_keys_is_that_of_s3(objects):
    keys = ["a/x", "a-b", "a.b/c", "a/x-y", "b", "a0"]
    for key in keys:
        objects.put_if_absent(key, b"")
    assert [stored.key for stored in objects.list("")] == sorted(keys)
    assert [stored.key for stored in objects.list("a/")] == ["a/x", "a/x-y"]
    assert [stored.key for stored in objects.list("a/x-")] == ["a/x-y"]
    assert [stored.key for stored in objects.list("a.")] == ["a.b/c"]


def test_deleting_takes_empty_folders_along(objects):
    objects.put_if_absent("a/b/c", b"")
    objects.put_if_absent("a/d", b"")
    objects.delete("a/b/c")
    assert not (objects.path / "a/b").exists()
    assert objects.size("a/d") == 0
    objects.delete("a/d")
    assert not (objects.path / "a").exists()


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "a/", ".tmp/x", ".lock", "a\0b", "ä"],
)
def test_no_key_leads_out(objects, tmp_path, key):
    put(objects, "fine", b"", tmp_path)
    for deed in (
        lambda: objects.put_file(key, tmp_path / "source"),
        lambda: objects.put_if_absent(key, b""),
        lambda: objects.replace(key, b"", b""),
        lambda: objects.get(key, 1),
        lambda: objects.size(key),
        lambda: objects.delete(key),
    ):
        with pytest.raises(BadKey):
            deed()


def test_links_are_not_followed(objects, tmp_path):
    objects.put_if_absent("a/file", b"inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"secret")
    (objects.path / "a/link").symlink_to(tmp_path / "outside/secret")
    (objects.path / "out").symlink_to(tmp_path / "outside")
    os.mkfifo(objects.path / "a/fifo")
    assert [stored.key for stored in objects.list("")] == ["a/file"]
    for key in ("a/link", "a/fifo"):
        with pytest.raises(StoreFailed):
            objects.get(key, 10)
        with pytest.raises(StoreFailed):
            objects.size(key)
    with pytest.raises(ObjectMissing):
        objects.get("out/secret", 10)
    with pytest.raises(StoreFailed):
        objects.put_if_absent("out/new", b"")
    objects.delete("out/secret")
    objects.delete("a/link")  # the link itself
    assert sorted(path.name for path in (tmp_path / "outside").iterdir()) == ["secret"]


def test_what_is_made_is_for_the_owner(objects, tmp_path):
    put(objects, "a/file", b"", tmp_path)
    assert objects.path.stat().st_mode & 0o777 == 0o700
    assert (objects.path / "a/file").stat().st_mode & 0o777 == 0o600


def test_holes_stay_holes(objects, tmp_path):
    source = tmp_path / "sparse"
    with open(source, "wb") as stream:
        stream.seek(8 << 20)
        stream.write(b"end")
    objects.put_file("sparse", source)
    stored = objects.path / "sparse"
    assert stored.read_bytes() == source.read_bytes()
    assert stored.stat().st_blocks <= source.stat().st_blocks + 8


@pytest.mark.parametrize(
    ("number", "family"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EACCES, StoreFailed)],
)
def test_a_failed_write_leaves_nothing(objects, tmp_path, monkeypatch, number, family):
    def fsync(file: int) -> None:
        raise OSError(number, os.strerror(number))

    objects.put_if_absent("a/old", b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "source").write_bytes(b"new")
    with pytest.raises(family):
        objects.put_file("a/old", tmp_path / "source")
    with pytest.raises(family):
        objects.put_if_absent("a/new", b"new")
    monkeypatch.undo()
    assert [stored.key for stored in objects.list("")] == ["a/old"]
    assert objects.get("a/old", 9) == b"old"
    assert list((objects.path / ".tmp").iterdir()) == []


def test_a_real_full_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small filesystem")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
    if subprocess.run(mount, timeout=SECONDS, check=False).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        objects = DirectoryStore(folder / "store")
        (tmp_path / "source").write_bytes(b"x" * (2 << 20))
        with pytest.raises(NoSpace):
            objects.put_file("a", tmp_path / "source")
        assert list(objects.list("")) == []
        assert list((folder / "store/.tmp").iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", folder], timeout=SECONDS, check=True)


def test_a_filesystem_without_hard_links(objects, monkeypatch):
    def link(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert objects.put_if_absent("a/b", b"first")
    assert not objects.put_if_absent("a/b", b"second")
    assert objects.get("a/b", 9) == b"first"
    assert list((objects.path / ".tmp").iterdir()) == []


def test_temporary_files_of_the_dead_are_removed_by_age(objects):
    objects.put_if_absent("a", b"")
    left = objects.path / ".tmp/123-00000000000000aa"
    left.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    (objects.path / ".tmp/124-00000000000000ab").write_bytes(b"half")
    assert objects.abort_uploads(2000) == 1
    assert [path.name for path in (objects.path / ".tmp").iterdir()] == ["124-00000000000000ab"]


# Several processes

RACE = """
import sys
from pathlib import Path
from lazyfs.snapshot.stores.directory_store import DirectoryStore
objects, name = DirectoryStore(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(40):
    won += objects.put_if_absent(f"race/{number}", name.encode())
moved = 0
while moved < 50:
    before = objects.get("counter", 100)
    moved += objects.replace("counter", b"%d" % (int(before) + 1), before)
for number in range(40):  # folders come and go
    assert objects.put_if_absent(f"gone/{name}", b"")
    objects.delete(f"gone/{name}")
print(won)
"""


def test_processes_race(objects):
    objects.put_if_absent("counter", b"0")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, objects.path, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for name in ("one", "two", "three")
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sum(map(int, outputs)) == 40  # each name was new for exactly one
    assert objects.get("counter", 100) == b"150"  # no step was lost
    assert not (objects.path / "gone").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from lazyfs.snapshot.stores.directory_store import DirectoryStore
at = sys.argv[2]
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, at, die)
DirectoryStore(Path(sys.argv[1])).put_file("a/file", Path(sys.argv[3]))
"""


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_who_is_killed_leaves_all_or_nothing(objects, tmp_path, moment):
    put(objects, "a/file", b"old", tmp_path)
    (tmp_path / "source").write_bytes(b"new" * 1000)
    command = [sys.executable, "-c", KILLED, objects.path, moment, tmp_path / "source"]
    done = subprocess.run(command, cwd=ROOT, timeout=SECONDS, check=False)
    assert done.returncode == -9
    assert objects.get("a/file", 9) == b"old"
    assert [stored.key for stored in objects.list("")] == ["a/file"]
    assert objects.abort_uploads(1e12) == 1
