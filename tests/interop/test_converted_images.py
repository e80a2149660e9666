"""Converted images in the hands of other tools: skopeo checks them, umoci unpacks them.

A newer skopeo also pulls parts of zstd:chunked, as podman does: both are containers/storage.
"""

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from lazyfs.convert.convert import ConvertOptions, convert_image
from lazyfs.formats.writer import Target, WriterOptions
from lazyfs.mount.point import load_mountinfo
from lazyfs.oci.platforms import parse_platform
from lazyfs.registry.layout import ImageLayout
from tests.interop import test_producers
from tests.interop.test_producers import newer
from tests.support.formats.images import (
    directory,
    file,
    host_platform,
    make_layout,
    plain_layer,
    source_tar,
    symlink,
    tar_bytes,
)
from tests.support.mounts.mounting import force_unmount
from tests.support.registries.registry import FakeRegistry

pytestmark = [pytest.mark.interop, pytest.mark.anyio]


ctr_remote = test_producers.ctr_remote


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


def run(*words: str | Path, **options: object) -> bytes:
    done = subprocess.run(words, capture_output=True, timeout=120, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


TARGETS = {
    "estargz": {},
    "external": {"writer": WriterOptions(is_toc_external=True)},
    "zstd-chunked": {"writer": WriterOptions(target=Target.ZSTD_CHUNKED)},
}


@needs("umoci")
@needs("skopeo")
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="unpacking devices and owners needs root")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("names", [["edge"], ["real-pax", "edge-nodup"], ["empty", "big"]])
async def test_umoci_unpacks_the_same_tree(tmp_path: Path, names: list[str], target: str):
    make_layout(tmp_path / "source", [plain_layer(source_tar(name)) for name in names])
    await convert(tmp_path, **TARGETS[target])
    if target == "zstd-chunked":  # umoci 0.4 does not know zstd, skopeo does
        (tmp_path / "made").rename(tmp_path / "zstd")
        copy = ("skopeo", "copy", "--dest-compress", "--dest-compress-format", "gzip")
        run(*copy, f"oci:{tmp_path}/zstd:latest", f"oci:{tmp_path}/made:latest")
    trees = []
    started_ns = time.time_ns() - 10**9  # file systems have a coarser clock
    for image in ("source", "made"):
        run("umoci", "unpack", "--image", f"{tmp_path / image}:latest", tmp_path / f"{image}.d")
        trees.append(listing(tmp_path / f"{image}.d" / "rootfs", started_ns))
    source, made = trees
    own = {
        "estargz": (b".no.prefetch.landmark", b"stargz.index.json"),
        "external": (b".no.prefetch.landmark",),
        "zstd-chunked": (),
    }
    for name in own[target]:
        assert made.pop(name)
    assert made == source
    assert len(source) > 3


@needs("skopeo")
@pytest.mark.parametrize("target", TARGETS)
async def test_skopeo_accepts_every_digest(tmp_path: Path, target: str):
    make_layout(tmp_path / "source", [plain_layer(source_tar(name)) for name in ("edge", "big")])
    await convert(tmp_path, **TARGETS[target])
    # Uncompressed on the way, so that each layer is named by what it decompresses to.
    made = f"oci:{tmp_path}/made:latest"
    run("skopeo", "copy", "--dest-decompress", made, f"dir:{tmp_path}/plain")
    layers = json.loads((tmp_path / "plain" / "manifest.json").read_text())["layers"]
    config = json.loads(run("skopeo", "inspect", "--config", made))
    assert [layer["digest"] for layer in layers] == config["rootfs"]["diff_ids"]


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


STORAGE = """[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
[storage.options]
pull_options = {{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}}
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="containers/storage's overlay needs root")
async def test_containers_storage_pulls_zstd_chunked_in_parts(tmp_path: Path):
    """It compares the table of contents with tar-split, and each file with its digest."""
    skopeo = newer("skopeo")
    tar = tar_bytes([directory("d"), file("d/a", os.urandom(40_000)), symlink("d/s", "a")])
    make_layout(tmp_path / "source", [plain_layer(tar), plain_layer(source_tar("real-pax"))])
    await convert(tmp_path, **TARGETS["zstd-chunked"])
    policy, storage = tmp_path / "policy.json", tmp_path / "storage.conf"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    storage.write_text(STORAGE.format(folder=tmp_path / "storage"))
    environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage)}
    try:
        with FakeRegistry(tmp_path / "made") as registry:
            run(
                *(*skopeo, "--policy", policy, "copy", "--src-tls-verify=false"),
                f"docker://{registry.host}/demo:latest",
                "containers-storage:example.com/demo:latest",
                env=environment,
            )
            blobs = [each for each in registry.requests if "/blobs/" in each.path]
        assert sum(each.range is None for each in blobs) == 1, "only the config came whole"
        graph = tmp_path / "storage" / "graph"
        (found,) = graph.glob("overlay/*/diff/d/a")
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            assert found.read_bytes() == archive.extractfile("d/a").read()
        assert os.readlink(found.with_name("s")) == "a"
    finally:
        for entry in reversed(load_mountinfo()):
            if entry.mountpoint.startswith(os.fsencode(tmp_path)):
                force_unmount(os.fsdecode(entry.mountpoint))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="containerd needs root")
@pytest.mark.parametrize("target", ["estargz", "zstd-chunked"])
async def test_containerd_imports_what_is_converted(
    tmp_path: Path, ctr_remote: list[str], target: str
):
    """The reference's own library finds the same table of contents in eStargz."""
    make_layout(tmp_path / "source", [plain_layer(source_tar("edge"))])
    await convert(tmp_path, **TARGETS[target])
    run("tar", "-C", tmp_path / "made", "-cf", tmp_path / "made.tar", ".")
    name = "registry.example/image"
    run(*ctr_remote, "image", "import", "--base-name", name, tmp_path / "made.tar")
    assert b"complete" in run(*ctr_remote, "image", "check")
    made = ImageLayout(str(tmp_path / "made"))
    manifest = json.loads((await made.fetch_manifest("latest")).data)
    (layer,) = manifest["layers"]
    if target == "estargz":
        found = run(*ctr_remote, "image", "get-toc-digest", layer["digest"])
        assert found.decode().strip() in layer["annotations"].values()
