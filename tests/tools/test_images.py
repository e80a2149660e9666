"""Images for measuring: trees, layouts, and what they are made from."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.formats.images import Item, directory, file, hardlink, symlink, tar_bytes
from tests.support.registries.registry import FakeRegistry
from tools.bench import distribution, puller
from tools.images import debian, host, layout, synthetic
from tools.images.tree import Node, Tree, add_parents, total_size
from tools.images.tree import directory as directory_node
from tools.images.tree import file as file_node
from tools.images.tree import symlink as symlink_node


def small_tree() -> Tree:
    tree: Tree = {
        "usr/bin/tool": file_node(b"#!/bin/sh\n", 0o755),
        "usr/bin/alias": Node(tarfile.LNKTYPE, 0o755, link="usr/bin/tool"),
        "bin": symlink_node("usr/bin"),
        "srv/made-up": Node(
            tarfile.REGTYPE, 0o644, size=10, pieces=lambda: iter([b"abc", b"defg", b"hij"])
        ),
    }
    add_parents(tree)
    return tree


def test_a_layout_is_what_its_digests_say(tmp_path: Path) -> None:
    layout.write_image(tmp_path, [small_tree(), {"x": file_node(b"1")}], tag="a", cmd=["sh"])
    manifest = layout.read_tagged(tmp_path, "a")
    config = json.loads(layout.blob_path(tmp_path, manifest["config"]["digest"]).read_bytes())
    for entry, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        blob = layout.blob_path(tmp_path, entry["digest"]).read_bytes()
        assert len(blob) == entry["size"]
        assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == entry["digest"]
        assert f"sha256:{hashlib.sha256(gzip.decompress(blob)).hexdigest()}" == diff_id


def test_a_layer_holds_the_tree(tmp_path: Path) -> None:
    layout.write_image(tmp_path, [small_tree()], tag="a", cmd=["sh"])
    digest = layout.read_tagged(tmp_path, "a")["layers"][0]["digest"]
    with tarfile.open(layout.blob_path(tmp_path, digest)) as tar:
        members = {member.name: member for member in tar}
        assert set(members) == set(small_tree())
        content = tar.extractfile("srv/made-up")
        assert content is not None
        assert content.read() == b"abcdefghij"
    assert members["usr/bin/alias"].linkname == "usr/bin/tool"
    names = list(members)
    assert names.index("usr/bin/tool") < names.index("usr/bin/alias")
    assert names.index("usr") < names.index("usr/bin") < names.index("usr/bin/tool")


def test_the_same_tree_makes_the_same_image(tmp_path: Path) -> None:
    for name in ("one", "two"):
        layout.write_image(tmp_path / name, [small_tree()], tag="a", cmd=["sh"])
    one, two = (layout.tagged_bytes(tmp_path / name, "a") for name in ("one", "two"))
    assert one == two


def test_tags_live_side_by_side(tmp_path: Path) -> None:
    layout.write_image(tmp_path, [{"x": file_node(b"1")}], tag="a", cmd=["sh"])
    layout.write_image(tmp_path, [{"x": file_node(b"2")}], tag="b", cmd=["sh"])
    layout.write_image(tmp_path, [{"x": file_node(b"3")}], tag="a", cmd=["sh"])
    assert layout.tagged_bytes(tmp_path, "a") != layout.tagged_bytes(tmp_path, "b")
    assert len(json.loads((tmp_path / "index.json").read_text())["manifests"]) == 2
    with pytest.raises(KeyError):
        layout.read_tagged(tmp_path, "c")


def test_made_up_trees_follow_from_their_seed() -> None:
    one, two = (synthetic.small_files(count=200) for _ in range(2))
    assert one == two
    assert sum(node.kind == tarfile.REGTYPE for node in one.values()) == 200
    large = synthetic.large_files(count=2, total_size=3 << 20)
    files = {path: node for path, node in large.items() if node.pieces}
    assert total_size(large) == 3 << 20
    contents = [b"".join(node.pieces()) for node in files.values() if node.pieces]
    assert [len(content) for content in contents] == [3 << 19, 3 << 19]
    assert contents[0] != contents[1]
    assert 0.3 < len(gzip.compress(contents[0])) / len(contents[0]) < 0.9


def test_packages_are_merged_as_on_a_merged_usr() -> None:
    package = tar_bytes(
        [
            directory("./"),
            directory("./lib64"),
            symlink("./lib64/ld.so", "/lib/x86/ld-2.so"),
            directory("./lib/x86"),
            file("./lib/x86/ld-2.so", b"loader", mode=0o755),
            symlink("./lib/x86/up", "../../usr/lib/x86/ld-2.so"),
            file("./bin/su", b"su", mode=0o4755),
            hardlink("./usr/bin/su2", "./bin/su"),
            file("./usr/share/doc/su/README", b"left out"),
        ]
    )
    tree: Tree = {"usr/bin": directory_node(0o700)}
    debian._unpack(package, tree)
    assert tree["usr/lib/x86/ld-2.so"].data == b"loader"
    assert tree["usr/lib64/ld.so"].link == "/lib/x86/ld-2.so"
    assert tree["usr/lib/x86/up"].link == "ld-2.so"
    assert tree["usr/bin/su"].mode == 0o4755
    assert tree["usr/bin/su2"].link == "usr/bin/su"
    assert tree["usr/bin"].mode == 0o700  # a directory that is there stays
    assert not any("doc" in path for path in tree)
    debian.add_system_files(tree)
    assert tree["bin"].link == "usr/bin"
    assert tree["lib64"].link == "usr/lib64"


def test_a_program_comes_with_its_libraries_and_links(tmp_path: Path) -> None:
    """Laid out elsewhere, the loader in the tree finds all that the program needs."""
    tree: Tree = {}
    program = Path(os.path.realpath("/bin/true"))
    host.add_program(tree, program)
    assert tree[str(program)[1:]].data == program.read_bytes()
    for library in host.libraries_of(program):
        real = os.path.realpath(library)
        assert tree[real[1:]].data == Path(real).read_bytes()
    links = {path: node for path, node in tree.items() if node.kind == tarfile.SYMTYPE}
    for path, node in links.items():
        assert node.link == os.readlink(f"/{path}")
        assert os.path.realpath(f"/{path}")[1:] in tree, f"{path} dangles"


def test_push_and_pull_through_a_registry(tmp_path: Path) -> None:
    lower: Tree = {"etc/conf": file_node(b"lower"), "etc/kept": file_node(b"kept")}
    upper: Tree = {"etc/conf": file_node(b"upper")}
    for tree in (lower, upper):
        add_parents(tree)
    layout.write_image(tmp_path / "image", [lower, upper], tag="a", cmd=["sh"])
    with FakeRegistry() as registry:
        distribution.push(registry.host, "x", tmp_path / "image", "a")
        puts = registry.count("PUT", "/blobs/")
        distribution.push(registry.host, "x", tmp_path / "image", "a")  # all there already
        assert registry.count("PUT", "/blobs/") == puts == 3
        puller.pull(f"{registry.host}/x:a", tmp_path / "root")
    assert (tmp_path / "root/etc/conf").read_bytes() == b"upper"
    assert (tmp_path / "root/etc/kept").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "root"]


def test_the_puller_refuses_other_bytes(tmp_path: Path) -> None:
    layout.write_image(tmp_path / "image", [{"x": file_node(b"1")}], tag="a", cmd=["sh"])
    digest = layout.read_tagged(tmp_path / "image", "a")["layers"][0]["digest"]
    path = layout.blob_path(tmp_path / "image", digest)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with (
        FakeRegistry(tmp_path / "image") as registry,
        pytest.raises(distribution.RegistryFailed, match="blob sha256"),
    ):
        puller.pull(f"{registry.host}/x:a", tmp_path / "root")


def test_make_image_says_what_it_makes() -> None:
    script = Path(__file__).parents[2] / "tools" / "make_image.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "100,000 small files" in done.stdout


def test_items_and_nodes_agree() -> None:
    """The tests' own tars and the tools' trees mean the same by the same words."""
    made = tar_bytes([Item("a", data=b"1")])
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        theirs = tar.next()
    ours = file_node(b"1").tar_info("a")
    assert theirs is not None
    assert (theirs.size, theirs.mode, theirs.mtime, theirs.type) == (
        ours.size, ours.mode, ours.mtime, ours.type,
    )  # fmt: skip
