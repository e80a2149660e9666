"""A mount and its verdict: shown by every driver, kept by successors, never asked for again."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    tagged,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, wait_until
from tests.support.mounts.serving import serving
from tests.support.registries.registry import FakeRegistry
from tests.support.trust.signing import Notary

pytestmark = needs_fuse
SIGNER = "CN=Publisher,O=Example,ST=Berlin,C=DE"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout")
    make_layout(path, [estargz_layer(tar_bytes([directory("d"), file("d/file", b"contents")]))])
    return path


@pytest.fixture
def registry(layout: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(layout) as found:
        found.list_referrers()
        yield found


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    force_unmount(path)


@pytest.fixture
def signed(registry: FakeRegistry, layout: Path, tmp_path: Path) -> tuple[str, Path]:
    """A signed image's reference, and a policy that trusts its signer."""
    notary = Notary()
    notary.sign(registry, "app", tagged(layout))
    return f"{registry.host}/app:latest", notary.policy(tmp_path, f"{registry.host}/app")


@pytest.mark.parametrize("driver", ["native", "pyfuse3", "erofs"])
def test_every_driver_shows_it(
    signed: tuple[str, Path], tmp_path: Path, mountpoint: Path, driver: str
) -> None:
    image, policy = signed
    lazyfs = Lazyfs(tmp_path)
    done = lazyfs("mount", "--driver", driver, "--policy", policy, image, mountpoint)
    if driver == "erofs" and done.returncode == 8:
        pytest.skip("the kernel does not mount EROFS images here")
    assert done.returncode == 0, done.stderr
    assert (mountpoint / "d/file").read_bytes() == b"contents"
    shown = json.loads(lazyfs("attrs", "--json", mountpoint).stdout)["attributes"]
    assert shown["user.lazyfs.trust"] == "trusted"
    assert shown["user.lazyfs.trust.signer"] == SIGNER
    assert shown["user.lazyfs.trust.policy"] == f"{policy}: publisher"
    assert shown["user.lazyfs.trust.signature"].startswith("sha256:")
    assert shown["user.lazyfs.trust.level"] == "strict"
    assert shown["user.lazyfs.trust.signed-at"] == "2026-06-01T00:00:00Z"
    if driver != "erofs":
        assert os.getxattr(mountpoint, "user.lazyfs.trust.signer").decode() == SIGNER


def test_words_of_fstab_say_it_too(
    signed: tuple[str, Path], tmp_path: Path, mountpoint: Path
) -> None:
    image, policy = signed
    lazyfs = Lazyfs(tmp_path)
    lazyfs.mount("-o", f"ro,policy={policy},revocation=off", image, mountpoint)
    assert os.getxattr(mountpoint, "user.lazyfs.trust") == b"trusted"


def test_the_environment_says_it_too(
    signed: tuple[str, Path], tmp_path: Path, mountpoint: Path
) -> None:
    image, policy = signed
    lazyfs = Lazyfs(tmp_path, environment={"LAZYFS_POLICY": str(policy)})
    lazyfs.mount(image, mountpoint)
    assert os.getxattr(mountpoint, "user.lazyfs.trust") == b"trusted"
    lazyfs("umount", mountpoint)
    lazyfs.mount("--policy", "off", image, mountpoint)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(mountpoint, "user.lazyfs.trust")


def test_a_mount_stays_as_it_was_judged(
    signed: tuple[str, Path], tmp_path: Path, mountpoint: Path
) -> None:
    image, policy = signed
    lazyfs = Lazyfs(tmp_path)
    lazyfs.mount("--policy", policy, image, mountpoint)
    (before,) = lazyfs.status()
    assert before["trust"]["policyChanged"] is False
    assert f"trusted, signed by {SIGNER}" in lazyfs("status").stdout
    # Given the policy trusts somebody else now,
    other = tmp_path / "other"
    other.mkdir()
    policy.write_bytes(Notary("Other").policy(other, "elsewhere.example/app").read_bytes())
    # then the mount goes on, and says so; a server that follows keeps the verdict;
    (now,) = lazyfs.status()
    assert now["trust"]["policyChanged"] is True
    assert "it has changed since" in lazyfs("status").stdout
    assert lazyfs("restart", mountpoint).returncode == 0
    (after,) = lazyfs.status()
    assert after["pid"] != before["pid"]
    assert after["trust"] == now["trust"]
    assert os.getxattr(mountpoint, "user.lazyfs.trust") == b"trusted"
    os.kill(after["pid"], 9)
    wait_until(lambda: lazyfs.status()[0]["pid"] != after["pid"])
    wait_until(lambda: "trust" in lazyfs.status()[0])
    assert lazyfs.status()[0]["trust"] == now["trust"]
    # and a new mount is refused.
    lazyfs("umount", mountpoint)
    done = lazyfs("mount", "--policy", policy, image, mountpoint)
    assert done.returncode == 6
    assert "no statement of" in done.stderr


def test_inspect_says_it_and_refuses_nothing(
    signed: tuple[str, Path], registry: FakeRegistry, tmp_path: Path
) -> None:
    image, policy = signed
    lazyfs = Lazyfs(tmp_path)
    found = json.loads(lazyfs("inspect", "--json", "--policy", policy, image).stdout)
    assert found["trust"]["verdict"] == "trusted"
    done = lazyfs("inspect", "--policy", policy, f"{registry.host}/other:latest")
    assert done.returncode == 0
    assert "trust      untrusted: " in done.stdout


def test_a_warm_process_judges_too(
    signed: tuple[str, Path], tmp_path: Path, mountpoint: Path
) -> None:
    image, policy = signed
    lazyfs = Lazyfs(tmp_path, environment={"LAZYFS_POLICY": str(policy)})
    with serving(lazyfs):
        lazyfs.mount(image, mountpoint)
        assert os.getxattr(mountpoint, "user.lazyfs.trust") == b"trusted"
        lazyfs("umount", mountpoint)
        # Whoever asks says by which policy, not the process.
        lazyfs.mount("--policy", "off", image, mountpoint)
        with pytest.raises(OSError, match="No data"):
            os.getxattr(mountpoint, "user.lazyfs.trust")
        lazyfs("umount", mountpoint)
        other = tmp_path / "other"
        other.mkdir()
        elsewhere = Notary("Other").policy(other, "elsewhere.example/app")
        asking = Lazyfs(tmp_path, environment={"LAZYFS_POLICY": str(elsewhere)})
        assert asking("mount", image, mountpoint).returncode == 6
