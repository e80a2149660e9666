"""Every reference layer by an official producer, mounted for real and compared with its source."""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.formats.estargz import source_of
from tests.support.formats.images import (
    layer_from_fixture,
    make_layout,
    reference_layer_names,
    toc_layer_of,
)
from tests.support.formats.tree import Found, tree_of, tree_of_tar
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount, needs_fuse, needs_root

# Root, because the layers hold files that only root may read, and devices.
pytestmark = [*needs_fuse, *needs_root]

FIXTURES = Path(__file__).parent.parent / "fixtures"
LANDMARKS = {b".prefetch.landmark", b".no.prefetch.landmark"}
EXTERNAL = "exttoc"


@contextmanager
def mounted(folder: Path, *layers: str) -> Iterator[Path]:
    """Mount an image of reference layers, bottom first."""
    layout = folder / "layout"
    make_layout(layout, [layer_from_fixture(name) for name in layers])
    external = [toc_layer_of(name) for name in layers if EXTERNAL in name]
    if external:
        make_layout(layout, external, tag="latest-esgztoc")
    lazyfs, point = Lazyfs(folder), folder / "mnt"
    point.mkdir()
    try:
        lazyfs.mount(f"oci:{layout}:latest", point)
        yield point
    finally:
        lazyfs("umount", point)
        force_unmount(point)


def as_producers_spell(path: bytes) -> bytes:
    """Return a name as it stands in a TOC: JSON knows no bytes that are not UTF-8."""
    return path.decode("utf-8", "replace").encode()


def expected_tree(tar: bytes) -> dict[bytes, Found]:
    """Return what a mount of the layer alone should show."""
    expected = {}
    for path, found in tree_of_tar(tar).items():
        parts = path.split(b"/")
        if any(part.startswith(b".wh.") for part in parts) or path in LANDMARKS:
            continue
        if found.link is not None:
            found.link = as_producers_spell(found.link)
        expected[as_producers_spell(path)] = found
    return expected


@pytest.mark.parametrize("name", reference_layer_names())
def test_a_mount_equals_the_source(tmp_path: Path, name: str) -> None:
    expected = expected_tree(source_of(name))
    with mounted(tmp_path, name) as point:
        got = tree_of(point)
    assert set(expected) <= set(got)
    for path in set(got) - set(expected):
        # Only directories that the tar has no entry for: made, with neutral attributes.
        extra = got[path]
        assert (extra.kind, extra.mode, extra.uid, extra.gid) == (stat.S_IFDIR, 0o755, 0, 0), path
        assert any(other.startswith(path + b"/") for other in expected), path
    for path, want in expected.items():
        have = got[path]
        # stargz's TOCs hold whole seconds; producers round.
        assert abs(have.mtime_ns - want.mtime_ns) <= 500_000_000, path
        have.mtime_ns = want.mtime_ns
        if "skopeo-1.9.3" in name:  # it loses xattrs that are empty
            want.xattrs = {key: value for key, value in want.xattrs.items() if value}
        assert have == want, path


@pytest.mark.parametrize(
    "layers",
    [
        ("estargz-go-0.12/real-from-targz", "estargz-go-0.12/edge-default"),
        ("zstdchunked-go-0.12/real-from-targz", "estargz-ctr-remote-0.14.3/edge-exttoc"),
        ("zstdchunked-go-0.12/real-from-targz", "zstdchunked-skopeo-1.9.3/edge"),
    ],
)
def test_merged_layers_equal_what_umoci_unpacks(tmp_path: Path, layers: tuple[str, str]) -> None:
    listing = json.loads((FIXTURES / "golden/multi.umoci-unpack.json").read_text())
    del listing["."]  # umoci shows the directory that it unpacked into
    wanted = {
        # umoci had the tar's bytes, which the listing spells like this; the TOC has lost them.
        path.encode().replace(rb"\xe9\xff\xfe", 3 * "\N{REPLACEMENT CHARACTER}".encode()): want
        for path, want in listing.items()
    }
    with mounted(tmp_path, *layers) as point:
        got = tree_of(point)
    assert set(got) == set(wanted)
    for path, found in got.items():
        want = wanted[path]
        assert found.kind | found.mode == int(want["mode"], 8), path
        assert (found.uid, found.gid) == (want["uid"], want["gid"]), path
        assert found.digest == want.get("sha256"), path


def test_an_external_toc_that_is_not_there(tmp_path: Path) -> None:
    layer = layer_from_fixture("estargz-ctr-remote-0.14.3/edge-exttoc")
    make_layout(tmp_path / "layout", [layer])
    (tmp_path / "mnt").mkdir()
    lazyfs = Lazyfs(tmp_path)
    done = lazyfs("mount", f"oci:{tmp_path / 'layout'}:latest", tmp_path / "mnt")
    try:
        assert done.returncode == 0, done.stderr
        assert "latest-esgztoc" in done.stderr
        assert "fetching the whole layer" in done.stderr
        assert (tmp_path / "mnt" / "dir" / "small.txt").read_bytes()
    finally:
        assert lazyfs("umount", tmp_path / "mnt").returncode == 0
