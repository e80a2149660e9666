"""The store's folder: what is accepted as one, and how files get there."""

import os
import shutil
from pathlib import Path

import pytest

from lazyfs.digest import digest_of
from lazyfs.store.blobs import load_blob, save_blob
from lazyfs.store.paths import Store, StoreUnusable, volatile_store


def test_a_new_store_is_private_and_marked_as_a_cache(tmp_path: Path) -> None:
    Store(tmp_path / "a/b")
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    tag = (tmp_path / "a/b/CACHEDIR.TAG").read_bytes()
    assert tag.startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    Store(tmp_path / "a/b")


def test_an_empty_folder_becomes_one_and_a_used_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    Store(tmp_path / "empty")
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home/letter.txt").write_text("dear")
    with pytest.raises(StoreUnusable, match=r"letter\.txt"):
        Store(tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_a_half_made_store_is_finished(tmp_path: Path) -> None:
    (tmp_path / "store/layers").mkdir(mode=0o700, parents=True)
    (tmp_path / "store").chmod(0o700)
    Store(tmp_path / "store")
    assert (tmp_path / "store/version").exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_store_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store").chmod(mode)
    with pytest.raises(StoreUnusable, match=f"mode {mode:o}"):
        Store(tmp_path / "store")


def test_another_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    (tmp_path / "store/version").write_text("99\n")
    with pytest.raises(StoreUnusable, match="'99'"):
        Store(tmp_path / "store")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_a_store_of_somebody_else_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    os.chown(tmp_path / "store", 12345, 12345)
    with pytest.raises(StoreUnusable, match="owner 12345"):
        Store(tmp_path / "store")


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreUnusable):
        Store(tmp_path / "store")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.write_file(store.root / "blobs/x", b"one")
    store.write_file(store.root / "blobs/x", b"two")
    assert (store.root / "blobs/x").read_bytes() == b"two"
    with pytest.raises(StoreUnusable):
        store.write_file(store.root / "nowhere/x", b"three")
    assert list(store.tmp.iterdir()) == []


def test_a_rotten_blob_is_not_returned(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = digest_of(b"manifest")
    assert load_blob(store, digest) is None
    save_blob(store, digest, b"manifest")
    assert load_blob(store, digest) == b"manifest"
    store.blob_path(digest).write_bytes(b"manifesto")
    assert load_blob(store, digest) is None
    assert not store.blob_path(digest).exists()


def test_a_volatile_store_is_a_store(tmp_path: Path) -> None:
    store = volatile_store()
    try:
        assert store.root.stat().st_mode & 0o777 == 0o700
        store.write_file(store.blobs / "x", b"x")
    finally:
        shutil.rmtree(store.root)


@pytest.mark.parametrize("name", ["images", "layers", "blobs", "tmp"])
def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path, name: str) -> None:
    shutil.rmtree(Store(tmp_path / "cache").root / name)
    store = Store(tmp_path / "cache")
    digest = digest_of(b"document")
    save_blob(store, digest, b"document")
    assert load_blob(store, digest) == b"document"
    assert (store.root / name).is_dir()
