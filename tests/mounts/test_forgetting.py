"""Pages that the kernel is to forget: which of them are spared, and what the thread holds."""

import os
import random

import pytest

from lazyfs.mount import forgetting
from lazyfs.mount.forgetting import PIECE_SIZE, forget_apart, forget_around
from tests.support.mounts.mounting import why_no_mounts

PAGE = 4096


def pages_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {
        page
        for offset, size in ranges
        for page in range(offset // PAGE, -(-(offset + size) // PAGE))
    }


def test_pages_of_reads_that_wait_are_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []

    def send(descriptor: int, nid: int, offset: int, size: int) -> bool:
        assert (descriptor, nid) == (3, 7)
        sent.append((offset, size))
        return True

    monkeypatch.setattr(forgetting, "send_invalidate", send)
    for seed in range(300):
        chosen = random.Random(seed)
        end = chosen.randrange(1, 100) * PAGE
        parked = [
            (chosen.choice([7, 7, 8]), chosen.randrange(end), chosen.randrange(1, 9 * PAGE))
            for _ in range(chosen.randrange(6))
        ]
        sent.clear()
        start = chosen.randrange(end // PAGE) * PAGE
        spared = forget_around(lambda parked=parked: parked)(3, 7, start, end - start)
        held = pages_of([(offset, size) for nid, offset, size in parked if nid == 7])
        wanted = pages_of([(start, end - start)])
        assert pages_of(spared) == wanted & held
        assert pages_of(sent) == wanted - held
        assert all(size <= PIECE_SIZE for _, size in sent)


def test_a_file_that_the_kernel_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(forgetting, "send_invalidate", lambda *words: asked.append(words))
    assert forget_around(list)(3, 7, 0, 1 << 40) == []
    assert len(asked) == 1


@pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))
def test_the_thread_holds_nothing_but_the_connection() -> None:
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    before = sorted(os.listdir("/proc/self/fd"))
    held: list[list[str]] = []

    def forget(own: int, nid: int, offset: int, size: int) -> list[tuple[int, int]]:
        names = os.listdir("/proc/thread-self/fd")
        held.append([os.readlink(f"/proc/thread-self/fd/{name}") for name in names
                     if os.path.exists(f"/proc/thread-self/fd/{name}")])  # fmt: skip
        return [(offset, size)]

    try:
        assert forget_apart(descriptor, [(7, 0, 5)], forget) == [(7, 0, 5)]
        assert held == [["/dev/fuse"]]
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(descriptor)


def test_a_connection_that_is_closed_already() -> None:
    def forget(*_: int) -> list[tuple[int, int]]:
        raise AssertionError("it would write to somebody else's file")

    null = os.open(os.devnull, os.O_WRONLY)
    try:
        assert forget_apart(null, [(7, 0, 5)], forget) == []
    finally:
        os.close(null)
    assert forget_apart(null, [(7, 0, 5)], forget) == []
