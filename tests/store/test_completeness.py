"""What is here of a layer is hashed once while nothing changes, and rot is found all the same."""

import os
import threading
from pathlib import Path

import pytest

from lazyfs.store import completeness
from lazyfs.store.completeness import TICK, Survey, survey_layer
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.unwritten import ReadOnlyContent
from lazyfs.store.paths import Store
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.mounts.mounting import wait_until
from tests.support.mounts.stores import device_of, keep_layer

SIZE = 105_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def layer(store: Store) -> MadeLayer:
    """A layer of which all is here."""
    made = make_layer([30_000, 70_000, 5000], chunk_size=20_000)
    keep_layer(store, made)
    settle(store, made)
    return made


def content_path(store: Store, layer: MadeLayer) -> Path:
    return store.layer_path(layer.toc.digest) / "content"


def settle(store: Store, layer: MadeLayer) -> None:
    """Wait until the kernel's clock can tell the next change from the last one."""
    before = content_path(store, layer).stat().st_ctime_ns
    probe = store.root / "probe"

    def is_later() -> bool:
        probe.write_bytes(b"")
        os.utime(probe)
        return probe.stat().st_ctime_ns > before + 2 * TICK

    wait_until(is_later)
    probe.unlink()


def rot(store: Store, layer: MadeLayer, offset: int = 0) -> None:
    with content_path(store, layer).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def survey(store: Store, layer: MadeLayer, *, rehash: bool = False) -> Survey:
    found = survey_layer(store, layer.toc.digest, rehash=rehash)
    assert found is not None
    return found


def test_what_did_not_change_is_hashed_once(store: Store, layer: MadeLayer) -> None:
    assert survey(store, layer) == Survey(SIZE, SIZE, hashed_size=SIZE)
    assert survey(store, layer) == Survey(SIZE, SIZE)
    assert survey(store, layer, rehash=True).hashed_size == SIZE


def test_what_changed_is_hashed_and_put_aside(store: Store, layer: MadeLayer) -> None:
    survey(store, layer)
    path = content_path(store, layer)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    rot(store, layer)
    os.utime(path, ns=times)  # as a tool does that pretends that nothing happened
    found = survey(store, layer)
    assert (found.rotten, found.verified_size, found.is_complete) == (1, SIZE - 20_000, False)
    assert len(list(store.quarantine.iterdir())) == 1


def test_a_change_within_a_tick_of_the_last_is_seen(
    store: Store, layer: MadeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = content_path(store, layer).stat().st_ctime_ns
    monkeypatch.setattr(completeness.time, "time_ns", lambda: changed + TICK)
    assert survey(store, layer).hashed_size == SIZE
    assert survey(store, layer).hashed_size == SIZE


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"bootId": 1}', b"\xff" * 9000])
def test_notes_that_are_damaged_are_not_believed(
    store: Store, layer: MadeLayer, damage: bytes
) -> None:
    survey(store, layer)
    notes = content_path(store, layer).with_name("checked")
    notes.write_bytes(damage)
    assert survey(store, layer).hashed_size == SIZE
    assert survey(store, layer).hashed_size == 0
    notes.unlink()
    notes.mkdir()
    assert survey(store, layer).hashed_size == SIZE
    assert survey(store, layer).hashed_size == SIZE


def test_another_start_of_the_machine(
    store: Store, layer: MadeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey(store, layer)
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr(completeness, "BOOT_ID", tmp_path / "boot")
    assert survey(store, layer).hashed_size == SIZE
    assert survey(store, layer).hashed_size == 0


def test_what_a_live_mount_writes_is_not_hashed(store: Store) -> None:
    made = make_layer([30_000, 70_000, 5000], chunk_size=20_000)
    keep_layer(store, made, chunks=range(2))
    live = LayerContent(store.layer_path(made.toc.digest), made.table)
    try:
        first = survey(store, made)
        assert first.hashed_size == first.verified_size > 0
        offset, size = made.table.device_offset(2), made.table.size(2)
        live.write(2, device_of(made)[offset : offset + size])
        found = survey(store, made)
        assert (found.hashed_size, found.verified_size) == (0, first.verified_size + size)
    finally:
        live.close()
    settle(store, made)
    found = survey(store, made)  # nobody is left to say whose change that was
    assert found.hashed_size == found.verified_size == first.verified_size + size


def test_several_at_once_hash_once(store: Store, layer: MadeLayer) -> None:
    """None takes another one for a mount, whose changes do not count."""
    survey(store, layer)
    rot(store, layer)
    settle(store, layer)
    found: list[Survey] = []
    threads = [
        threading.Thread(target=lambda: found.append(survey(store, layer))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 6
    assert sorted(each.hashed_size for each in found) == [0] * 5 + [SIZE]
    assert {each.verified_size for each in found} == {SIZE - 20_000}


def test_what_is_not_here(store: Store, layer: MadeLayer) -> None:
    folder = store.layer_path(layer.toc.digest)
    (folder / "presence").unlink()
    assert survey(store, layer) == Survey(SIZE, 0)
    (folder / "table").unlink()
    assert survey_layer(store, layer.toc.digest) is None


def test_who_only_reads_is_not_taken_for_who_has_changed_the_content(
    store: Store, layer: MadeLayer
) -> None:
    assert survey(store, layer).is_complete
    assert survey(store, layer).hashed_size == 0
    reading = ReadOnlyContent(store.layer_path(layer.toc.digest), layer.table)
    rot(store, layer)
    assert survey(store, layer) == Survey(SIZE, SIZE - 20_000, 1, SIZE)
    reading.close()
