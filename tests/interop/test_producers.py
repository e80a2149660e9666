"""Images by official producers, made here and now: mounted, they equal their source."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.rootfs.table import LayerTable
from tests.mounts.test_reference_images import expected_tree
from tests.support.formats.images import file, make_layout, plain_layer, source_tar, tar_bytes
from tests.support.formats.tree import tree_of
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, needs_root, wait_until

pytestmark = [pytest.mark.interop, *needs_fuse, *needs_root]

NEWER = Path(__file__).parent.parent.parent / ".interop" / "producers"
LOADER = NEWER / "usr/lib64/ld-linux-x86-64.so.2"
SPARSE = [b"x" * 70_000, bytes(1 << 20), b"y" * 5000, bytes(4096), b"z" * 100]


def newer(program: str) -> list[str]:
    """Return the command for a program that ``tools/producers.sh`` has fetched."""
    path = NEWER / "usr/bin" / program
    if not path.exists() or not LOADER.exists():
        pytest.skip(f"no {path}: tools/producers.sh fetches it")
    return [str(LOADER), "--library-path", str(NEWER / "usr/lib/x86_64-linux-gnu"), str(path)]


def producer(name: str) -> list[str]:
    if name == "skopeo":
        if shutil.which("skopeo") is None:
            pytest.skip("skopeo is not installed")
        return ["skopeo"]
    return newer("skopeo")


def run(*words: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def tar_with_zeros() -> bytes:
    return tar_bytes([file("sparse", b"".join(SPARSE)), file("small", b"text")])


@pytest.mark.parametrize("name", ["skopeo", "newer skopeo"])
@pytest.mark.parametrize("source", ["real-gnu", "with zeros"])
def test_zstd_chunked_by_skopeo(tmp_path: Path, name: str, source: str) -> None:
    words = producer(name)
    tar = tar_with_zeros() if source == "with zeros" else source_tar(source)
    make_layout(tmp_path / "source", [plain_layer(tar)])
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    made = f"oci:{tmp_path}/made:latest"
    format_option = ("--dest-compress-format", "zstd:chunked")
    run(
        *words, "--policy", policy, "copy", *format_option, f"oci:{tmp_path}/source:latest", made
    )  # fmt: skip
    check(tmp_path, made, tar)
    if source == "with zeros":
        (table,) = (tmp_path / "cache" / "layers").glob("*/table")
        assert len(LayerTable(table.read_bytes()).holes) == 2


def check(tmp_path: Path, image: str, tar: bytes, layer_format: str = "zstd:chunked") -> None:
    """Inspect, mount, compare with *tar*, and verify."""
    lazyfs, point = Lazyfs(tmp_path), tmp_path / "mnt"
    shown = json.loads(lazyfs("inspect", "--json", image).stdout)["layers"]
    assert [layer["lazy"] for layer in shown] == [True], shown
    assert shown[0]["format"] == layer_format
    point.mkdir()
    try:
        lazyfs.mount(image, point)
        got, expected = tree_of(point), expected_tree(tar)
    finally:
        lazyfs("umount", point)
        force_unmount(point)
    assert set(expected) <= set(got)  # and directories that the tar has no entry for
    for path, want in expected.items():
        assert (got[path].kind, got[path].mode, got[path].digest) == (
            want.kind, want.mode, want.digest,
        ), path  # fmt: skip
    done = lazyfs("verify", "--json", image)
    assert done.returncode == 0, done.stderr
    verified = json.loads(done.stdout)
    assert len(verified["diffIds"]) == len(verified["comparedLayers"]) == len(shown)


NAME = "registry.example/image"
CONFIG = """version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.nri.v1.nri"]
"""


@pytest.fixture
def ctr_remote(tmp_path: Path) -> Iterator[list[str]]:
    """The command for ctr-remote, with a containerd of its own to work in."""
    command, daemon = newer("ctr-remote"), newer("containerd")
    folder = tmp_path / "containerd"
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    socket = folder / "socket"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(*daemon, "-c", folder / "config.toml", "--root", folder / "root"),
                *("--state", folder / "state", "-a", socket),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: b"successfully booted" in (folder / "log").read_bytes())
        yield [*command, "-a", str(socket)]
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    ("options", "layer_format"),
    [
        (["--estargz"], "estargz"),
        (["--estargz", "--estargz-min-chunk-size", "4096"], "estargz"),
        (["--estargz", "--estargz-external-toc"], "estargz-external-toc"),
        (["--zstdchunked"], "zstd:chunked"),
    ],
)
def test_by_ctr_remote(
    tmp_path: Path, ctr_remote: list[str], options: list[str], layer_format: str
) -> None:
    tar = source_tar("edge")
    make_layout(tmp_path / "source", [plain_layer(tar)])
    run("tar", "-C", tmp_path / "source", "-cf", tmp_path / "source.tar", ".")
    run(*ctr_remote, "image", "import", "--base-name", NAME, tmp_path / "source.tar")
    run(*ctr_remote, "image", "convert", "--oci", *options, f"{NAME}:latest", f"{NAME}:made")
    names = [f"{NAME}:made", *[f"{NAME}:made-esgztoc"][: "external" in layer_format]]
    run(*ctr_remote, "image", "export", tmp_path / "made.tar", *names)
    (tmp_path / "made").mkdir()
    run("tar", "-C", tmp_path / "made", "-xf", tmp_path / "made.tar")
    check(tmp_path, f"oci:{tmp_path}/made:made", tar, layer_format)
