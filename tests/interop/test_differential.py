"""What lazyfs mounts is what containerd unpacks: a sample of ``make differential``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.formats.images import make_layout, plain_layer
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, needs_root
from tools.differential.compare import LISTED, differences, facts_of, reason
from tools.differential.oracle import NoOracle, Oracle, OracleFailed, build_oracle
from tools.differential.ours import ROUTES, tree_of
from tools.differential.peers import is_here, umoci_agrees, walked
from tools.differential.run import Run
from tools.differential.tars import make_image
from tools.differential.tree import Tree

pytestmark = [pytest.mark.interop, *needs_root]

FORMATS_PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "formats.md"
IMAGES = 250
SEED = 7_000_000


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    folder = tmp_path_factory.mktemp("oracle")
    try:
        build_oracle(folder / "program", is_online=False)
    except NoOracle as exc:
        pytest.skip(str(exc))
    with Oracle(folder / "program", folder) as running:
        yield running


def compare(oracle: Oracle, folder: Path) -> Run:
    run = Run(oracle, folder, list(ROUTES))
    for seed in range(SEED, SEED + IMAGES):
        run.check(f"seed {seed}", make_image(seed).layers)
    return run


def test_a_sample_of_generated_images(oracle: Oracle, tmp_path: Path) -> None:
    run = trio.run(trio.to_thread.run_sync, compare, oracle, tmp_path)
    assert run.faults == []
    assert run.counts["images"] == IMAGES
    assert run.counts["refused by all"] < IMAGES / 2  # or nothing much was compared


def test_a_difference_is_seen(oracle: Oracle, tmp_path: Path) -> None:
    """The comparison would notice: another seed's tree is not this one's."""
    trees = [oracle.tree_of(make_image(seed).layers) for seed in range(40)]
    trees = [tree for tree in trees if len(tree.nodes) > 2][:2]
    assert differences(trees[0], trees[1])
    assert not differences(trees[0], trees[0])
    refused = differences(Tree(refusal="no"), trees[0])
    assert [each.field for each in refused] == ["refusal"]
    assert reason(facts_of([b""], 0), refused[0]) is None


def test_an_oracle_that_gives_no_answer_is_started_again(tmp_path: Path) -> None:
    """One image must not end the comparison, nor have it wait for ever."""
    program = tmp_path / "slow"
    program.write_text("#!/bin/sh\nexec sed d\n")
    program.chmod(0o755)
    with Oracle(program, tmp_path, seconds=0.3) as slow:
        for _ in range(2):
            with pytest.raises(OracleFailed, match="ended with -9"):
                slow.tree_of([b""])
        run = Run(slow, tmp_path, list(ROUTES))
        run.check("this image", [b""])
    assert run.counts["not explained"] == 1
    assert [fault.partition(":")[0] for fault in run.faults] == ["this image"]


@needs_fuse[0]
@needs_fuse[1]
def test_real_mounts_have_what_is_read_in_process(tmp_path: Path) -> None:
    compared = 0
    for seed in range(SEED, SEED + 60):
        layers = make_image(seed).layers
        ours = tree_of(layers, ROUTES["plain"], tmp_path)
        if ours.refusal or len(ours.nodes) < 4:
            continue
        folder = tmp_path / str(seed)
        make_layout(folder / "image", [plain_layer(layer) for layer in layers])
        lazyfs, point = Lazyfs(folder), folder / "mnt"
        point.mkdir()
        try:
            lazyfs.mount(f"oci:{folder}/image:latest", point)
            assert differences(walked(point), ours) == []
        finally:
            force_unmount(point)
        compared += 1
        if compared == 5:
            return
    raise AssertionError(f"got {compared} images that can be mounted, expected 5")


def test_umoci_unpacks_the_same(tmp_path: Path) -> None:
    if not is_here("umoci"):
        pytest.skip("umoci is not installed")
    same = 0
    for seed in range(SEED, SEED + 40):
        layers = make_image(seed).layers
        if len(layers) == 1:
            ours = tree_of(layers, ROUTES["plain"], tmp_path)
            same += umoci_agrees(layers[0], ours, tmp_path)
    assert same > 15


def test_every_listed_difference_is_in_the_documentation() -> None:
    page = FORMATS_PAGE.read_text()
    missing = [words for words in LISTED if f"| {words} |" not in page]
    assert missing == []
