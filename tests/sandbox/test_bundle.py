"""Bundles: written at once, private, with a mountpoint that is left alone."""

import json

import pytest

from lazyfs.documents.errors import RuntimeFailed
from lazyfs.sandbox.specs.bundle import load_bundle, rootfs_of, write_bundle


def test_a_bundle(tmp_path):
    folder = tmp_path / "box" / "main"
    write_bundle(folder, {"ociVersion": "1.0.2", "process": {"env": ["SECRET=x"]}})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "rootfs"]
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o600
    assert load_bundle(folder)["process"] == {"env": ["SECRET=x"]}
    (folder / "rootfs" / "file").write_text("of the image")
    write_bundle(folder, {"ociVersion": "1.1.0"})
    assert load_bundle(folder) == {"ociVersion": "1.1.0"}
    assert (folder / "rootfs" / "file").exists()


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    write_bundle(tmp_path, {"a": 1})
    with pytest.raises(TypeError):
        write_bundle(tmp_path, {"a": object()})
    assert load_bundle(tmp_path) == {"a": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeFailed, match=r"bundle .*: Not a directory"):
        write_bundle(tmp_path / "file" / "main", {})


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_what_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RuntimeFailed, match=r"config\.json is not a valid OCI config"):
        load_bundle(tmp_path)


def test_where_the_root_filesystem_is(tmp_path):
    assert rootfs_of(tmp_path, {"root": {"path": "rootfs"}}) == tmp_path / "rootfs"
    assert rootfs_of(tmp_path, json.loads('{"root": {"path": "/mnt"}}')).as_posix() == "/mnt"
    assert rootfs_of(tmp_path, {}) == tmp_path / "rootfs"
