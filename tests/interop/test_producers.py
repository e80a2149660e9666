"""Images by official producers, made here and now: mounted, they equal their source."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lazyfs.rootfs.table import LayerTable
from tests.support.command import Lazyfs
from tests.support.images import file, make_layout, plain_layer, source_tar, tar_bytes
from tests.support.mounting import force_unmount, needs_fuse, needs_root
from tests.support.tree import tree_of, tree_of_tar

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


def check(tmp_path: Path, image: str, tar: bytes) -> None:
    """Inspect, mount, compare with *tar*, and verify."""
    lazyfs, point = Lazyfs(tmp_path), tmp_path / "mnt"
    shown = json.loads(lazyfs("inspect", "--json", image).stdout)["layers"]
    assert [layer["lazy"] for layer in shown] == [True], shown
    assert shown[0]["format"] == "zstd:chunked"
    point.mkdir()
    try:
        lazyfs.mount(image, point)
        got, expected = tree_of(point), tree_of_tar(tar)
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
    assert len(verified["diffIds"]) == sum(layer["tarSplit"] for layer in shown)
