"""The store's own files on a disk that fails in the middle: nothing wrong is kept or handed out."""

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.fetch import store_again
from lazyfs.fetch.origins.health import Health, Unstored
from lazyfs.fetch.spare import Spare
from lazyfs.fetch.store_again import StoreAgain
from lazyfs.store.content import spool
from lazyfs.store.content.content import ContentUnusable, LayerContent, NotStored
from lazyfs.store.content.presence import ABSENT, DOUBTFUL, HEADER_SIZE, RESIDENT
from lazyfs.store.content.spool import open_spool
from lazyfs.store.content.unwritten import ReadOnlyContent, UnstoredContent, open_content
from lazyfs.store.paths import Store, StoreFull, StoreReadOnly, store_error
from tests.support.formats.layers import MadeLayer, make_layer

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def layer() -> MadeLayer:
    return make_layer([50_000, 60_000, 70_000])


def data(layer: MadeLayer, number: int) -> bytes:
    return list(layer.files.values())[number]


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int = errno.ENOSPC) -> None:
    """Have the system call *name* fail from now on."""

    def fail(*arguments: object, **named: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("call", ["pwrite", "pwritev", "fdatasync"])
def test_whatever_fails_in_writing_is_not_stored(
    layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    content = LayerContent(tmp_path, layer.table)
    refuse(monkeypatch, call)
    assert content.write_all([(0, (data(layer, 0),)), (2, (data(layer, 2),))]) == [0, 2]
    assert content.trouble == os.strerror(errno.ENOSPC)
    with pytest.raises(NotStored, match="No space"):
        content.write(1, data(layer, 1))
    assert set(content.states) == {ABSENT}
    monkeypatch.undo()
    assert content.write_all([(0, (data(layer, 0),))]) == []
    assert content.read(0, 50_000) == data(layer, 0)
    content.close()


def test_a_mark_that_cannot_be_taken_back_is_taken_back_in_memory(
    layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are wrong must not be handed out because the disk refuses to be told so."""
    content = LayerContent(tmp_path, layer.table)
    for number in range(3):
        content.write(number, data(layer, number))
    seen_by_others = content.states  # as the threads of the driver have it
    refuse(monkeypatch, "pwrite", errno.EROFS)
    content.forget(1)
    assert list(seen_by_others) == [RESIDENT, ABSENT, RESIDENT]
    marks = (tmp_path / "presence").read_bytes()[HEADER_SIZE:]
    assert list(marks) == [RESIDENT] * 3, "a store that needs the disk could be a SIGBUS"
    monkeypatch.undo()
    content.write(1, data(layer, 1))
    assert list(seen_by_others) == [RESIDENT] * 3
    content.close()
    again = LayerContent(tmp_path, layer.table)
    assert set(again.states) == {DOUBTFUL}, "what was private to us is no clean end"
    again.close()


def test_what_cannot_be_read_is_not_stored_again(
    layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = LayerContent(tmp_path, layer.table)
    content.write(0, data(layer, 0))
    content.distrust(0)
    assert content.states[0] == ABSENT
    assert content.write_all([(0, (data(layer, 0),)), (1, (data(layer, 1),))]) == [0]
    content.close()
    content = LayerContent(tmp_path, layer.table)
    content.states[1] = DOUBTFUL
    refuse(monkeypatch, "pread", errno.EIO)
    assert not content.confirm(1)
    assert content.states[1] == ABSENT
    monkeypatch.undo()
    content.close()


def test_a_layer_on_a_read_only_disk(
    layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_some = LayerContent(tmp_path, layer.table)
    with_some.write(0, data(layer, 0))
    with_some.close()
    real = os.open

    def read_only(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    content = open_content(tmp_path, layer.table)
    assert isinstance(content, ReadOnlyContent)
    assert content.trouble == os.strerror(errno.EROFS)
    assert list(content.states) == [RESIDENT, ABSENT, ABSENT]
    assert content.read(0, 50_000) == data(layer, 0)
    assert content.write_all([(0, (data(layer, 0),)), (1, (data(layer, 1),))]) == [1]
    with pytest.raises(NotStored):
        content.write(1, data(layer, 1))
    os.close(content.open_pin())
    content.close()
    content.close()
    empty = open_content(tmp_path / "other", layer.table)
    assert isinstance(empty, UnstoredContent)
    assert empty.trouble
    monkeypatch.undo()


def test_a_read_only_layer_that_was_left_unclean_is_doubted(
    layer: MadeLayer, tmp_path: Path
) -> None:
    written = LayerContent(tmp_path, layer.table)
    written.write(0, data(layer, 0))
    left = tmp_path / "left"  # as by a process that was killed
    left.mkdir()
    for name in ("presence", "content"):
        shutil.copy(tmp_path / name, left / name)
    written.close()
    content = ReadOnlyContent(left, layer.table)
    assert content.states[0] == DOUBTFUL
    assert content.confirm(0)
    content.close()
    (left / "content").write_bytes(b"short")
    with pytest.raises(ContentUnusable, match="does not fit"):
        ReadOnlyContent(left, layer.table)


def test_a_pin_needs_no_name(layer: MadeLayer, tmp_path: Path) -> None:
    """Whoever deletes the cache must not end the server that starts a keeper then."""
    content = LayerContent(tmp_path / "layer", layer.table)
    (tmp_path / "layer/presence").unlink()
    os.close(content.open_pin())
    content.close()


def test_a_spool_takes_all_of_it_wherever_the_disk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raw file may take a part of a write, and say so to nobody who looks."""
    whole = os.urandom(300_000)
    take = spool.Spool._take
    room = [100_001]

    def write(self: Any, piece: Any) -> int:
        if room[0] == 0:
            raise FULL
        count = min(room[0], len(piece), 7_000)
        room[0] -= count
        return take(self, piece[:count])

    file = open_spool(tmp_path)
    monkeypatch.setattr(spool.Spool, "_take", write)
    moved: list[None] = []
    move = spool.Spool._move

    def moving(self: Any) -> None:
        moved.append(None)
        move(self)
        room[0] = 1 << 30  # memory has room

    monkeypatch.setattr(spool.Spool, "_move", moving)
    for start in range(0, len(whole), 50_000):
        assert file.write(whole[start : start + 50_000]) == 50_000
    assert moved == [None]
    file.seek(0)
    assert file.read() == whole
    assert os.pread(file.fileno(), len(whole), 0) == whole, "by its descriptor, too"
    file.close()


@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_a_spool_that_is_moved_loses_nothing_to_calls_that_take_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Its bytes were hashed on their way in: what is lost here would be served."""
    whole = random.Random(7).randbytes(300_000)
    real_read, real_write = os.pread, os.pwrite
    file = open_spool(tmp_path)
    file.write(whole)
    if call == "pread":
        monkeypatch.setattr(os, call, lambda fd, size, at: real_read(fd, min(size, 70_000), at))
    else:
        monkeypatch.setattr(os, call, lambda fd, data, at: real_write(fd, data[:70_000], at))
    file._move()
    monkeypatch.undo()
    file.write(b"more")
    assert os.pread(file.fileno(), 1 << 20, 0) == whole + b"more"
    file.close()


def test_a_spool_whose_disk_has_lost_its_end_is_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_spool(tmp_path) as file:
        file.write(b"x" * 100_000)
        os.ftruncate(file.fileno(), 50_000)
        with pytest.raises(OSError, match="Input/output error"):
            file._move()


def test_a_spool_where_none_can_be_made(tmp_path: Path) -> None:
    with open_spool(tmp_path / "nowhere") as file:
        file.write(b"x")
        file.seek(0)
        assert file.read() == b"x"


def test_health_says_the_worst() -> None:
    now = [0.0]
    health = Health()
    health.unstored = Unstored(lambda: now[0])
    assert health.text == "ok"
    health.unstored.refused(Path("/x"), "No space left on device")
    assert health.text.startswith("unstored since 2")
    assert health.text.endswith(": No space left on device")
    health.unstored.taken()
    assert health.text == "ok"
    health.report("corrupt sha256:1")
    health.report("corrupt sha256:2")
    health.unstored.refused(Path("/x"), "No space left on device")
    assert health.text == "corrupt sha256:1"


def test_a_disk_that_takes_some_and_refuses_some_is_not_told_of_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    unstored = Unstored(lambda: now[0])
    for _ in range(50):
        unstored.refused(Path("/x"), "full")
        unstored.taken()
    assert caplog.text.count("without being stored") == 1
    now[0] += 1000
    unstored.refused(Path("/x"), "full")
    assert caplog.text.count("without being stored") == 2


@pytest.mark.anyio
async def test_what_was_refused_is_offered_again(
    layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = LayerContent(tmp_path, layer.table)
    device: Any = type("Device", (), {"content": content})()
    spare, unstored = Spare(), Unstored()
    spare.put(1, 0, data(layer, 0))
    unstored.refused(tmp_path, "full")
    tried: list[list[int]] = []
    write_all = content.write_all

    def refused_twice(payloads: Any) -> list[int]:
        tried.append([0] if len(tried) < 2 else write_all(payloads))
        return tried[-1]

    monkeypatch.setattr(content, "write_all", refused_twice)
    monkeypatch.setattr(store_again, "RETRY_SECONDS", 0.001)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            again = StoreAgain({1: device}, spare, unstored, nursery, trio.CapacityLimiter(1))
            again.begin()
            again.begin()
    assert tried == [[0], [0], []]
    assert unstored.since is None
    assert content.states[0] == RESIDENT
    assert not spare
    content.close()


def test_errors_of_a_disk_have_a_family_and_advice(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        error = store_error("x", OSError(number, os.strerror(number)))
        assert isinstance(error, StoreFull)
        assert error.hint
    for number in (errno.EROFS, errno.EACCES, errno.EIO):
        error = store_error("x", OSError(number, os.strerror(number)))
        assert isinstance(error, StoreReadOnly)
        assert error.hint
    (tmp_path / "lost+found").mkdir()
    assert Store(tmp_path).root == tmp_path
