"""Who uses a layer, who looks, and who is in whose way."""

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.store.content.content import ContentUnusable, LayerContent
from lazyfs.store.content.locks import has_users, lock_for_use, share
from lazyfs.store.content.presence import ABSENT, DOUBTFUL, RESIDENT
from tests.store.test_content import crash_after_fill
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.mounts.mounting import wait_until


@pytest.fixture
def layer() -> MadeLayer:
    return make_layer([5000, 1, 70_000, 4096, 12_345], chunk_size=16_384)


@pytest.fixture
def descriptors(tmp_path: Path) -> Iterator[list[int]]:
    """Three openings of one file, as three processes have them."""
    path = tmp_path / "presence"
    path.write_bytes(b"x")
    fds = [os.open(path, os.O_RDWR) for _ in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_the_first_user_is_alone_and_others_are_not(descriptors: list[int]) -> None:
    first, second, looker = descriptors
    assert not has_users(looker)
    assert lock_for_use(first)
    assert has_users(looker)
    share(first)
    assert not lock_for_use(second)
    assert has_users(first)
    assert has_users(second)


def test_looking_takes_nothing(descriptors: list[int]) -> None:
    user, looker, other = descriptors
    for _ in range(3):
        assert not has_users(looker)
    assert lock_for_use(user)
    share(user)
    for _ in range(3):
        assert has_users(looker)
    assert not lock_for_use(other)


def is_waited_for(path: Path) -> bool:
    """Say whether somebody sleeps until a lock on *path* is free."""
    inode = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and inode in line for line in lines)


def test_who_waited_for_an_eviction_still_doubts_what_a_crash_left(
    tmp_path: Path, layer: MadeLayer
) -> None:
    crash_after_fill(tmp_path / "layer")
    evictor = os.open(tmp_path / "layer/presence", os.O_RDWR)
    fcntl.flock(evictor, fcntl.LOCK_EX)
    opened: list[LayerContent] = []

    def open_it() -> None:
        opened.append(LayerContent(tmp_path / "layer", layer.table))

    opener = threading.Thread(target=open_it)
    opener.start()
    wait_until(lambda: is_waited_for(tmp_path / "layer/presence"))
    os.close(evictor)  # it let go, and is no user
    opener.join(30)
    (content,) = opened
    assert set(content.states) == {DOUBTFUL}
    content.close()


def test_a_layer_that_cannot_be_opened_is_not_left_locked(tmp_path: Path, layer: MadeLayer) -> None:
    (tmp_path / "layer/content").mkdir(parents=True)
    with pytest.raises(ContentUnusable) as caught:
        LayerContent(tmp_path / "layer", layer.table)
    fd = os.open(tmp_path / "layer/presence", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not has_users(fd)
    os.close(fd)
    assert caught.value.hint is None
    (tmp_path / "layer/content").rmdir()
    content = LayerContent(tmp_path / "layer", layer.table)
    assert set(content.states) <= {ABSENT, RESIDENT}
    content.close()


def test_looking_into_a_layer_is_no_use_of_it(tmp_path: Path, layer: MadeLayer) -> None:
    LayerContent(tmp_path / "layer", layer.table).close()
    presence = tmp_path / "layer/presence"
    os.utime(presence, (100, 100))
    content = LayerContent(tmp_path / "layer", layer.table, counts_as_use=False)
    content.close()
    assert presence.stat().st_mtime == 100
    LayerContent(tmp_path / "layer", layer.table).close()
    assert presence.stat().st_mtime > 100
