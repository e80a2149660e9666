"""Hashing again what the store holds: every kind of rot is found, named, and dropped on demand."""

from pathlib import Path

import pytest
import zstandard

from lazyfs.digest import digest_of
from lazyfs.rootfs.table import build_table
from lazyfs.store.content.content import LayerContent
from lazyfs.store.images import load_image
from lazyfs.store.layers import load_table, load_toc
from lazyfs.store.paths import Store
from lazyfs.store.upkeep.check import Check, check_store
from lazyfs.store.usage import layers_in, resident_size
from tests.store.test_content import crash_after_fill
from tests.support.formats.layers import MadeLayer, make_layer
from tests.support.mounts.stores import KeptImage, keep_image, keep_layer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def layer() -> MadeLayer:
    return make_layer([30_000, 70_000, 5000], chunk_size=20_000)


@pytest.fixture
def image(store: Store, layer: MadeLayer) -> KeptImage:
    """An image whose layer's TOC is the bytes that the made one takes for its digest."""
    kept = keep_image(store, layer, name="image", used=100.0)
    assert layer.toc.digest == digest_of(b"0")
    folder = store.layer_path(layer.toc.digest)
    (folder / "toc.zst").write_bytes(zstandard.ZstdCompressor().compress(b"0"))
    return kept


@pytest.fixture(autouse=True)
def toc_of_zero(monkeypatch: pytest.MonkeyPatch, layer: MadeLayer) -> None:
    """Made layers have no TOC in JSON; reading one has tests of its own."""
    monkeypatch.setattr("lazyfs.store.upkeep.check.decode_toc", lambda data, **_: layer.toc)


def check(store: Store, *, repair: bool = False) -> Check:
    passed: list[int] = []
    found = check_store(store, repair=repair, progress=passed.append)
    assert sum(passed) == found.content_size
    return found


def bend(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_sound_store(store: Store, image: KeptImage, layer: MadeLayer) -> None:
    found = check(store)
    assert found == Check(
        documents=3, images=1, layers=1, chunks=layer.table.count, content_size=105_000
    )
    assert layers_in(store)[0].last_used == 100.0, "looking is no use"


def test_an_empty_store(store: Store) -> None:
    assert check(store) == Check()


def test_rotten_chunks(store: Store, image: KeptImage, layer: MadeLayer) -> None:
    content = store.layer_path(layer.toc.digest) / "content"
    bend(content, layer.table.device_offset(1) + 7)
    bend(content, layer.table.device_offset(4))
    for _ in range(2):
        found = check(store)
        assert [(fault.kind, fault.chunk) for fault in found.rotten] == [("chunk", 1), ("chunk", 4)]
        assert layer.table.digest(1).hex() in found.rotten[0].reason
        assert found.rotten[0].path == str(content.relative_to(store.root))
        assert not found.rotten[0].is_dropped
    found = check(store, repair=True)
    assert [fault.is_dropped for fault in found.rotten] == [True, True]
    found = check(store)
    assert found.rotten == []
    assert found.chunks == layer.table.count - 2


def test_what_is_in_use_is_checked_too(store: Store, image: KeptImage, layer: MadeLayer) -> None:
    user = LayerContent(store.layer_path(layer.toc.digest), layer.table)
    bend(user.folder / "content", 0)
    assert [fault.chunk for fault in check(store, repair=True).rotten] == [0]
    assert not user.are_resident(range(1))
    assert user.are_resident(range(1, layer.table.count))
    user.close()


def test_a_shortened_content_file(store: Store, image: KeptImage, layer: MadeLayer) -> None:
    folder = store.layer_path(layer.toc.digest)
    with (folder / "content").open("r+b") as file:
        file.truncate(layer.table.device_offset(3))
    found = check(store)
    # Half of each file is zeros, and so may a whole chunk be: then nothing is lost.
    assert {fault.chunk for fault in found.rotten} <= {3, 4, 5, 6}
    assert found.rotten


@pytest.mark.parametrize("name", ["index.erofs", "provenance"])
def test_a_rotten_index(store: Store, image: KeptImage, name: str) -> None:
    bend(store.image_path(image.manifest) / name, 40)
    (fault,) = check(store).rotten
    assert fault.kind in ("index", "provenance")
    assert fault.path.endswith(name)
    assert load_image(store, image.manifest) is None
    (fault,) = check(store, repair=True).rotten
    assert fault.is_dropped
    assert not store.image_path(image.manifest).exists()
    assert check(store).rotten == []


def test_a_rotten_document(store: Store, image: KeptImage) -> None:
    bend(store.blob_path(image.config), 3)
    (fault,) = check(store, repair=True).rotten
    assert (fault.kind, fault.is_dropped) == ("document", True)
    assert f"expected {image.config}" in fault.reason
    assert check(store).documents == 2


def test_a_rotten_toc(store: Store, image: KeptImage, layer: MadeLayer) -> None:
    bend(store.layer_path(layer.toc.digest) / "toc.zst", 5)
    (fault,) = check(store, repair=True).rotten
    assert (fault.kind, fault.is_dropped) == ("toc", True)
    assert load_toc(store, layer.toc.digest) is None
    found = check(store)
    assert found.rotten == []
    assert found.chunks == layer.table.count, "the chunks are right all the same"


def test_a_rotten_table_costs_the_content(store: Store, image: KeptImage, layer: MadeLayer) -> None:
    bend(store.layer_path(layer.toc.digest) / "table", 200)
    found = check(store)
    assert [fault.kind for fault in found.rotten] == ["table", "content"]
    assert resident_size(store, layer.toc.digest) == (0, 0)
    assert [fault.is_dropped for fault in check(store, repair=True).rotten] == [True, True]
    assert layers_in(store) == []


def test_a_table_of_another_toc(store: Store, image: KeptImage, layer: MadeLayer) -> None:
    """Whole in itself, but not what the TOC says: its digests would let anything pass."""
    other = make_layer([30_000, 70_000, 5000], chunk_size=20_000, seed=5)
    table = build_table(other.toc, len(other.blob))
    (store.layer_path(layer.toc.digest) / "table").write_bytes(table)
    assert load_table(store, layer.toc.digest) is not None
    found = check(store)
    assert [fault.kind for fault in found.rotten] == ["table", "content"]
    assert "TOC" in found.rotten[0].reason


def test_a_rotten_table_of_a_layer_in_use(store: Store, image: KeptImage, layer: MadeLayer) -> None:
    user = LayerContent(store.layer_path(layer.toc.digest), layer.table)
    bend(store.layer_path(layer.toc.digest) / "table", 200)
    table, content = check(store, repair=True).rotten
    assert table.is_dropped
    assert not content.is_dropped
    assert "is in use" in content.reason
    assert user.are_resident(range(layer.table.count))
    user.close()


def test_what_a_crash_has_lost_is_no_rot(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    layer = make_layer([5000, 1, 70_000, 4096, 12_345], chunk_size=16_384)
    folder = store.layer_path(layer.toc.digest)
    keep_layer(store, layer)
    (folder / "presence").unlink()
    (folder / "toc.zst").unlink()
    crash_after_fill(folder)
    bend(folder / "content", layer.table.device_offset(2))
    found = check(store)
    assert found.rotten == []
    assert found.lost_chunks == 1
    assert found.chunks == layer.table.count
    assert check(store).lost_chunks == 0, "it is absent now"


def test_what_cannot_be_checked_is_named(store: Store, image: KeptImage) -> None:
    (store.image_path(image.manifest) / "record.json").write_bytes(b"{}")
    (store.layers / "stray").mkdir()
    found = check(store)
    assert found.rotten == []
    assert [fault.path for fault in found.skipped] == [
        f"images/{image.manifest.hex}",
        "layers/stray",
    ]
    assert all(fault.reason for fault in found.skipped)


def test_a_layer_without_content(store: Store, layer: MadeLayer) -> None:
    keep_layer(store, layer)
    folder = store.layer_path(layer.toc.digest)
    (folder / "presence").unlink()
    (folder / "toc.zst").unlink()
    assert check(store) == Check(layers=1)
    bend(folder / "table", 100)
    assert [fault.kind for fault in check(store, repair=True).rotten] == ["table"]
    assert not (folder / "table").exists()
