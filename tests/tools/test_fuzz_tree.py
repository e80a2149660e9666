"""The judges of fuzzed layers: they agree on what is right, and say what is not."""

from pathlib import Path

import pytest

from lazyfs.formats.tocs import scan
from lazyfs.rootfs.erofs_writer import BuiltIndex
from tests.support.formats.tocs import raw_entry, raw_file, spelled
from tools import fuzz_tree

pytestmark = pytest.mark.skipif(not scan.can_scan(), reason="nothing was compiled")
LAYERS = [
    spelled(raw_entry("a"), raw_file("a/f"), raw_entry("l", "symlink", linkName="a")),
    spelled(raw_entry("a/.wh.f", "reg"), raw_entry("p", "fifo", xattrs={"user.x": "AAAA"})),
]
REFUSED = [spelled(raw_entry("h", "hardlink", linkName="nothing"))]


def test_layers_that_all_agree_on(tmp_path: Path) -> None:
    run = fuzz_tree.Run(tmp_path)
    run.check("layers", LAYERS)
    run.check("refused", REFUSED)
    assert run.faults == []
    assert run.counts["indexes"] == run.counts["taken by the core"] == run.counts["refused"] == 1
    judges = run.counts["checked by fsck.erofs"] + run.counts["mounted by the kernel"]
    assert judges == 2 or run.skipped


def test_a_twin_that_writes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fuzz_tree.build_index

    def wrong(*arguments: object, **more: object) -> BuiltIndex:
        built = right(*arguments, **more)  # type: ignore[arg-type]
        if scan.can_scan():
            return built
        return BuiltIndex(built.image[:-1], built.provenance, built.inode_count, ())

    monkeypatch.setattr(fuzz_tree, "build_index", wrong)
    run = fuzz_tree.Run(tmp_path)
    run.check("layers", LAYERS)
    assert run.faults == ["layers: the core and its twin differ ''"]


def test_layers_of_which_the_index_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_tree, "naive_merge", lambda tocs: {})
    run = fuzz_tree.Run(tmp_path)
    run.check("layers", LAYERS)
    assert run.faults == ["layers: the index says something else than the layers"]
