"""What is told of dropped chunks: hostile and random messages, and servers that do not answer."""

import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.service import dropped
from lazyfs.service.dropped import Dropped, decode_dropped, runs_of, tell_mounts
from lazyfs.service.processes.control import ServerSilent
from lazyfs.service.record import MountRecord, save_record, start_ticks_of


@given(st.lists(st.integers(0, 200)))
def test_runs(chunks: list[int]) -> None:
    runs = runs_of(chunks)
    assert [chunk for first, stop in runs for chunk in range(first, stop)] == sorted(set(chunks))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))


@pytest.mark.parametrize(
    "layers", [None, [], "x", {"a": 1}, {"a": [[1]]}, {"a": [[1, "2"]]}, {"a": [[1, 2, 3]]}]
)
def test_messages_that_are_none(layers: object) -> None:
    assert decode_dropped({"type": "dropped", "layers": layers}) is None


def test_a_message() -> None:
    text = json.dumps({"type": "dropped", "layers": {"a": [[1, 3]], "b": None}})
    assert decode_dropped(json.loads(text)) == Dropped({"a": [(1, 3)], "b": None})


def record(folder: Path, cache: Path, pid: int) -> None:
    ticks = start_ticks_of(pid)
    assert ticks is not None
    save_record(
        folder,
        MountRecord(
            **dict.fromkeys(
                ("requested", "resolved", "manifest_digest", "platform", "log_path", "driver"), ""
            ),
            mount_id=f"id{pid}{cache.name}",
            pid=pid,
            start_ticks=ticks,
            mountpoint=f"/{cache.name}",
            cache_dir=str(cache),
            started="",
        ),
    )


def test_who_is_told(tmp_path: Path) -> None:
    """Live servers of this store, by whatever name it has; not those of others, and not oneself."""
    for name in ("run", "cache", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("cache")
    parent = os.getppid()
    record(tmp_path / "run", tmp_path / "link", parent)
    record(tmp_path / "run", tmp_path / "elsewhere", parent)
    record(tmp_path / "run", tmp_path / "cache", os.getpid())
    assert tell_mounts(tmp_path / "run", tmp_path / "cache", {"a": [1]}) == ["/link"]


def test_a_successor_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predecessor's pages are in the kernel still."""
    for name in ("run", "cache"):
        (tmp_path / name).mkdir()
    record(tmp_path / "run", tmp_path / "cache", os.getppid())
    answers = iter([ServerSilent("no"), ServerSilent("no"), {"type": "invalidated"}])

    def ask(*_: object, **__: object) -> object:
        answer = next(answers)
        if isinstance(answer, ServerSilent):
            raise answer
        return answer

    monkeypatch.setattr(dropped, "ask", ask)
    monkeypatch.setattr(dropped, "is_alive", lambda _: False)
    monkeypatch.setattr(dropped, "_is_mounted", lambda _: True)
    assert tell_mounts(tmp_path / "run", tmp_path / "cache", {"a": [1]}) == []
    assert next(answers, None) is None
