"""Converted images in the hands of other tools: skopeo checks them, umoci unpacks them."""

import hashlib
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from lazyfs.image.convert import ConvertOptions, convert_image
from lazyfs.oci.platforms import parse_platform
from lazyfs.registry.layout import ImageLayout
from tests.support.images import host_platform, make_layout, plain_layer, source_tar

pytestmark = [pytest.mark.interop, pytest.mark.anyio]


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


async def convert(path: Path, **options: object) -> None:
    await convert_image(
        ImageLayout(str(path / "source")),
        "latest",
        ImageLayout(str(path / "made"), create=True),
        "latest",
        ConvertOptions(parse_platform(host_platform()), **options),  # type: ignore[arg-type]
    )


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=120)


def listing(root: Path, started_ns: int) -> dict[bytes, tuple]:
    """Return everything below *root* as a user of the tree would see it.

    Directories that no tar names have the time of unpacking, after *started_ns*; it does not count.
    """
    found = {}
    inodes: dict[int, bytes] = {}
    for place, folders, files in os.walk(os.fsencode(root)):
        for name in sorted([*folders, *files, b"."]):
            path = os.path.normpath(os.path.join(place, name))
            status = os.lstat(path)
            content = b""
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            relative = os.path.relpath(path, os.fsencode(root))
            is_folder = stat.S_ISDIR(status.st_mode)
            found[relative] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns if status.st_mtime_ns < started_ns else 0,
                status.st_rdev,
                0 if is_folder else status.st_nlink,
                b"" if is_folder else inodes.setdefault(status.st_ino, relative),
                content,
                {
                    name: os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                },
            )
    return found


@needs("umoci")
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="unpacking devices and owners needs root")
@pytest.mark.parametrize("names", [["edge"], ["real-pax", "edge-nodup"], ["empty", "big"]])
async def test_umoci_unpacks_the_same_tree(tmp_path: Path, names: list[str]):
    make_layout(tmp_path / "source", [plain_layer(source_tar(name)) for name in names])
    await convert(tmp_path)
    trees = []
    started_ns = time.time_ns() - 10**9  # file systems have a coarser clock
    for image in ("source", "made"):
        run("umoci", "unpack", "--image", f"{tmp_path / image}:latest", tmp_path / f"{image}.d")
        trees.append(listing(tmp_path / f"{image}.d" / "rootfs", started_ns))
    source, made = trees
    for landmark in (b".no.prefetch.landmark", b"stargz.index.json"):
        assert made.pop(landmark)
    assert made == source
    assert len(source) > 3


@needs("skopeo")
async def test_skopeo_accepts_every_digest(tmp_path: Path):
    make_layout(tmp_path / "source", [plain_layer(source_tar(name)) for name in ("edge", "big")])
    await convert(tmp_path)
    # Into an archive of uncompressed layers: blobs and diffIDs are checked on the way.
    run("skopeo", "copy", f"oci:{tmp_path}/made:latest", f"docker-archive:{tmp_path}/made.tar:a:b")
    run("skopeo", "copy", f"docker-archive:{tmp_path}/made.tar", f"oci:{tmp_path}/back:latest")


@needs("skopeo")
async def test_what_skopeo_compresses_converts(tmp_path: Path):
    make_layout(tmp_path / "plain", [plain_layer(source_tar("edge"), compression="none")])
    copy = ("skopeo", "copy", "--dest-compress", "--dest-compress-format")
    run(*copy, "zstd", f"oci:{tmp_path}/plain:latest", f"oci:{tmp_path}/source:latest")
    await convert(tmp_path)
    shutil.move(tmp_path / "made", tmp_path / "by-zstd")
    shutil.rmtree(tmp_path / "source")
    run(*copy, "gzip", f"oci:{tmp_path}/plain:latest", f"oci:{tmp_path}/source:latest")
    await convert(tmp_path)
    blobs = [
        {each.name for each in (tmp_path / made / "blobs" / "sha256").iterdir()}
        for made in ("by-zstd", "made")
    ]
    assert blobs[0] & blobs[1], "the layer is the same, however it was compressed"
