"""Attributes by which an image would speak to an overlay that is mounted above it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import (
    available_drivers,
    force_unmount,
    needs_fuse,
    needs_root,
    run,
)

pytestmark = [*needs_fuse, *needs_root]

ATTACK = {
    "trusted.overlay.redirect": b"/etc",
    "trusted.overlay.opaque": b"y",
    "trusted.overlay.metacopy": b"",
    "user.overlay.redirect": b"/etc",
    "user.overlay.opaque": b"y",
    "user.overlay.whiteout": b"",
}
HONEST = {"user.note": b"1", "trusted.note": b"2"}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    items = [
        directory("d", xattrs=ATTACK | HONEST),
        file("d/a", b"data", xattrs=ATTACK | HONEST),
        directory("etc"),
        file("etc/shadow", b"secret"),
    ]
    make_layout(tmp_path / "layout", [estargz_layer(tar_bytes(items))])
    return tmp_path / "layout"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory: an upper directory has to have extended attributes."""
    folder = Path("/dev/shm") / f"lazyfs-test-{os.getpid()}"
    folder.mkdir()
    done = run("mount", "-t", "tmpfs", "none", folder)
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"no tmpfs here: {done.stderr}")
    try:
        yield folder
    finally:
        force_unmount(folder)
        folder.rmdir()


@pytest.mark.parametrize("driver", available_drivers())
@pytest.mark.parametrize("options", ["", ",redirect_dir=on", ",userxattr"])
def test_an_overlay_above(
    layout: Path, place: Path, tmp_path: Path, driver: str, options: str
) -> None:
    lazyfs = Lazyfs(tmp_path)
    lower, upper, work, merged = (place / name for name in ("lower", "upper", "work", "merged"))
    for folder in (lower, upper, work, merged):
        folder.mkdir()
    words = ("--driver", driver, "-o", "allow_other")
    try:
        lazyfs.mount(f"oci:{layout}", lower, *words)
        for name in ("d", "d/a"):
            shown = run("getfattr", "-h", "-d", "-m", "-", "--absolute-names", lower / name)
            assert ".overlay." not in shown.stdout
            if shown.returncode == 0:
                assert all(each in shown.stdout for each in HONEST)
        line = f"lowerdir={lower},upperdir={upper},workdir={work}{options}"
        done = run("mount", "-t", "overlay", "none", merged, "-o", line)
        if done.returncode:
            pytest.skip(f"no overlay here: {done.stderr}")
        try:
            assert [path.name for path in (merged / "d").iterdir()] == ["a"]
            assert (merged / "d" / "a").read_bytes() == b"data"
        finally:
            run("umount", merged)
    finally:
        force_unmount(lower)
