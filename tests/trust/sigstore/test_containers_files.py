"""What is read of /etc/containers: through links, and no pipe, device or flood."""

import os
from pathlib import Path

import pytest

from lazyfs.oci.reference import parse_reference
from lazyfs.trust.errors import PolicyFault
from lazyfs.trust.files.containers import (
    KEY_LIMIT,
    LocalFiles,
    read_policy_json,
    read_registries_d,
)
from lazyfs.trust.sigstore.policy import Reject
from lazyfs.trust.sigstore.policy_reading import POLICY_LIMIT
from lazyfs.trust.sigstore.registries_d import Registries, uses_attachments

POLICY = b'{"default": [{"type": "reject"}]}'


def test_a_policy_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_bytes(POLICY)
    path = tmp_path / "policy.json"
    path.symlink_to("real.json")
    policy = read_policy_json(path)
    assert policy.default == (Reject(),)
    assert policy.file == str(path)


def test_keys_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.pub").write_bytes(b"key")
    (tmp_path / "link.pub").symlink_to("real.pub")
    assert LocalFiles().read(str(tmp_path / "link.pub")) == b"key"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PolicyFault, match=r"pipe\.yaml cannot be read: it is not a regular file"):
        LocalFiles().read(str(tmp_path / "pipe.yaml"))
    with pytest.raises(PolicyFault, match="folder cannot be read"):
        read_policy_json(tmp_path / "folder")
    with pytest.raises(PolicyFault, match="none does not exist"):
        read_policy_json(tmp_path / "none")
    with pytest.raises(PolicyFault, match=r"pipe\.yaml cannot be read"):
        read_registries_d(tmp_path)


def test_files_that_are_too_long(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b" " * (POLICY_LIMIT + 1))
    with pytest.raises(PolicyFault, match="is longer than"):
        read_policy_json(path)
    path.write_bytes(b" " * (KEY_LIMIT + 1))
    with pytest.raises(PolicyFault, match="is longer than"):
        LocalFiles().read(str(path))


def test_a_directory_of_registries(tmp_path: Path) -> None:
    assert read_registries_d(tmp_path / "none") == Registries()
    (tmp_path / "a.yaml").write_text("docker: {a.example: {use-sigstore-attachments: true}}")
    (tmp_path / "b.yaml").write_text("default-docker: {use-sigstore-attachments: false}")
    (tmp_path / "c.yml").write_text("{")
    (tmp_path / "d.yaml.bak").mkdir()
    registries = read_registries_d(tmp_path)
    assert uses_attachments(registries, parse_reference("a.example/x"))
    assert not uses_attachments(registries, parse_reference("b.example/x"))
    (tmp_path / "link").symlink_to(tmp_path)
    assert read_registries_d(tmp_path / "link").sections.keys() == registries.sections.keys()
    (tmp_path / "e.yaml").write_text("default-docker: {}")
    with pytest.raises(PolicyFault, match=r"e.yaml: default-docker is in .*b.yaml already"):
        read_registries_d(tmp_path)
