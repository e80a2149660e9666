"""A mount outlives its registry's troubles: reads fail in bounded time, and work again after."""

import errno
import hashlib
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import needs_fuse
from tests.support.registries.registry import FakeRegistry

pytestmark = needs_fuse

FILES = {f"file{number}": random.Random(number).randbytes(200_000) for number in range(6)}
BOUND_SECONDS = 30.0
"""Nobody listens: five tries with short waits take some 3 s."""


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("layout")
    entries = [directory("d"), *(file(f"d/{name}", data) for name, data in FILES.items())]
    make_layout(path, [estargz_layer(tar_bytes(entries))])
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_right(mountpoint: Path, name: str) -> bool:
    return digest((mountpoint / "d" / name).read_bytes()) == digest(FILES[name])


def test_a_registry_that_goes_away_and_comes_back(layout, tmp_path, mountpoint):
    lazyfs = Lazyfs(tmp_path)
    registry = FakeRegistry(layout).start()
    port = registry.port
    image = f"{registry.host}/image"
    try:
        lazyfs.mount("--patience", "0", "--prefetch", "none", image, mountpoint)
        assert is_right(mountpoint, "file0")
        registry.close()
        assert is_right(mountpoint, "file0"), "what is resident needs nobody"
        started = time.monotonic()
        with pytest.raises(OSError) as caught:
            (mountpoint / "d/file5").read_bytes()
        assert caught.value.errno in (errno.EIO, errno.ETIMEDOUT)
        assert time.monotonic() - started < BOUND_SECONDS
        assert len(os.listdir(mountpoint / "d")) == len(FILES)

        (status,) = lazyfs.status()
        (endpoint,) = status["endpoints"]
        assert endpoint["failures"] >= 1
        assert "cannot reach" in endpoint["reason"]
        assert "cannot reach" in lazyfs("status").stdout

        done = lazyfs("ls", image)
        assert done.returncode == 5
        assert "--offline" in done.stderr

        registry = FakeRegistry(layout, port=port).start()
        assert all(is_right(mountpoint, name) for name in FILES), "without mounting again"
        assert lazyfs("umount", mountpoint).returncode == 0
    finally:
        registry.close()


@pytest.mark.parametrize("words", [("--offline",), ("-o", "ro,offline")])
def test_an_offline_mount_asks_nobody(layout, tmp_path, mountpoint, words):
    lazyfs = Lazyfs(tmp_path)
    with FakeRegistry(layout) as registry:
        image = f"{registry.host}/image"
        assert lazyfs("cat", image, "d/file0", text=False).returncode == 0
        registry.forget_requests()
        done = lazyfs("mount", *words, image, mountpoint)
        assert done.returncode == 0
        assert "the digest last seen" in done.stderr
        assert is_right(mountpoint, "file0")
        with pytest.raises(OSError) as caught:
            (mountpoint / "d/file5").read_bytes()
        assert caught.value.errno == errno.EIO
        assert registry.requests == []
        assert lazyfs("umount", mountpoint).returncode == 0


def test_a_mirror_with_wrong_bytes_costs_nothing_but_time(layout, tmp_path, mountpoint):
    lazyfs = Lazyfs(tmp_path)
    with FakeRegistry(layout) as mirror, FakeRegistry(layout) as origin:
        folder = tmp_path / "hosts" / origin.host
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'[host."{mirror.url}"]\n')
        image = f"{origin.host}/image"
        lazyfs.mount("--hosts-dir", tmp_path / "hosts", "--prefetch", "none", image, mountpoint)
        assert origin.requests == []
        mirror.faults.add(garbled, path="/blobs/", times=None)
        assert all(is_right(mountpoint, name) for name in FILES)
        (status,) = lazyfs.status()
        assert status["health"] == "ok"
        first, second = status["endpoints"]
        assert (first["url"], first["origin"]) == (mirror.url, False)
        assert first["failures"] >= 1
        assert first["reason"]
        assert second["failures"] == 0
        assert second["requests"] >= 1
        assert lazyfs("umount", mountpoint).returncode == 0


def garbled(request, answer):
    body = bytearray(answer.content())
    for offset in range(0, len(body), 1000):
        body[offset] ^= 0x55
    return replace(answer, body=bytes(body))


def test_the_server_does_not_show_the_password(layout, tmp_path, mountpoint):
    lazyfs = Lazyfs(tmp_path)
    with FakeRegistry(layout) as registry:
        registry.require_bearer({"user": "geheimwort"}, lifetime_seconds=1)
        image = f"{registry.host}/image"
        lazyfs.mount("--creds", "user:geheimwort", "--prefetch", "none", image, mountpoint)
        (status,) = lazyfs.status()
        shown = Path(f"/proc/{status['pid']}/cmdline").read_bytes()
        assert b"geheimwort" not in shown
        registry.expire_tokens()
        assert all(is_right(mountpoint, name) for name in FILES), "the server knows it"
        assert "geheimwort" not in str(status)
        for path in (tmp_path / "state").rglob("*.log"):
            assert "geheimwort" not in path.read_text()
        names = os.listxattr(mountpoint)
        assert not any(b"geheimwort" in os.getxattr(mountpoint, name) for name in names)
        assert lazyfs("umount", mountpoint).returncode == 0
