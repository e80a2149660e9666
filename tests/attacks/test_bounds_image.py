"""An image whose layers are small and whose tables of contents are not: memory while preparing."""

import gzip
import json
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.digest import digest_of
from lazyfs.errors import FormatError, UsageError
from lazyfs.formats.tocs import scan
from lazyfs.formats.tocs.toc import Toc
from lazyfs.image.layers import tocs as tocs_module
from lazyfs.image.layers.budget import DEFAULT_MIB, VARIABLE, Budget, ImageTooLarge, memory_of
from lazyfs.image.prepare import Prepared, Request, prepare
from lazyfs.registry.source import AccessOptions
from lazyfs.rootfs.merge import BadLayer
from tests.rootfs.test_merge import STACKS
from tests.support.formats.images import (
    OCI_GZIP,
    Layer,
    estargz_layer,
    file,
    make_layout,
    plain_layer,
    tar_bytes,
)
from tests.support.formats.naive_merge import naive_facts, naive_merge
from tests.support.formats.rootfs import facts_of, index_of
from tests.support.mounts.mounting import ROOT


def bomb(count: int, seed: int = 0, twice: bool = False) -> Layer:
    """Return a layer whose TOC names *count* empty directories and nothing else.

    *twice*: one of them two times, which is left to the reader in Python.
    """
    names = [b"%x%06x" % (seed, number) for number in range(count)]
    if twice:
        names[1] = names[0]
    entries = b",".join(b'{"name":"%s","type":"dir"}' % name for name in names)
    toc = b'{"version":1,"entries":[' + entries + b"]}"
    header = tarfile.TarInfo("stargz.index.json")
    header.size = len(toc)
    payload = gzip.compress(b"", mtime=0)
    member = gzip.compress(header.tobuf() + toc + bytes(-len(toc) % 512 + 1024), 6, mtime=0)
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % len(payload)
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra
    blob = payload + member + footer + b"\x01\0\0\xff\xff" + bytes(8)
    annotations = {"containerd.io/snapshot/stargz/toc.digest": str(digest_of(toc))}
    return Layer(blob, OCI_GZIP, annotations, digest_of(b"%d" % seed))


async def prepared(folder: Path, layers: list[Layer], mib: int | None = None) -> Prepared:
    make_layout(folder / "layout", layers)
    environment = {} if mib is None else {VARIABLE: str(mib)}
    access = AccessOptions(environment=environment)
    return await prepare(Request(f"oci:{folder}/layout", None, folder / "cache", access))


@pytest.mark.anyio
async def test_layers_that_are_too_much_together(tmp_path: Path) -> None:
    """Each of them is small enough; 2 MiB are left for all of them."""
    with pytest.raises(ImageTooLarge, match="may take 2 MiB") as caught:
        await prepared(tmp_path, [bomb(2000, seed) for seed in range(4)], 2)
    assert f"{VARIABLE}=8" in str(caught.value.hint)
    assert isinstance(caught.value, FormatError)
    assert "layer sha256:" in caught.value.message
    again = await prepared(tmp_path, [bomb(2000, seed) for seed in range(4)], 8)
    assert len(again.image.layers) == 4


@pytest.mark.anyio
async def test_what_the_cache_holds_counts_as_well(tmp_path: Path) -> None:
    for seed in range(4):
        await prepared(tmp_path, [bomb(2000, seed)], 2)
    with pytest.raises(ImageTooLarge):
        await prepared(tmp_path, [bomb(2000, seed) for seed in range(4)], 2)


@pytest.mark.anyio
async def test_a_layer_that_python_reads_takes_more(tmp_path: Path) -> None:
    with pytest.raises(ImageTooLarge):
        await prepared(tmp_path, [bomb(2000, twice=True)], 2)
    if scan.can_scan():
        await prepared(tmp_path, [bomb(2000)], 2)


@pytest.mark.anyio
async def test_a_layer_that_is_listed_twelve_times_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = tocs_module.read_layer_toc

    def counted(*words, **options):
        reads.append(words)
        return read(*words, **options)

    monkeypatch.setattr(tocs_module, "read_layer_toc", counted)
    layer = estargz_layer(tar_bytes([file("a", b"x"), file("b", b"y")]))
    found = await prepared(tmp_path, [layer] * 12)
    assert len(reads) == 1
    assert len(found.image.layers) == 12


@given(STACKS, st.lists(st.integers(0, 3), max_size=6))
def test_the_tree_of_layers_that_come_again(stack: list[Toc], places: list[int]) -> None:
    """Merged from one parse, the result is what merging all of them gives."""
    tocs = [stack[place] for place in places if place < len(stack)]
    try:
        tree = naive_merge(tocs)
    except LookupError:
        with pytest.raises(BadLayer):
            index_of(*tocs)
        return
    index, _ = index_of(*tocs)
    assert facts_of(index) == naive_facts(tree)


@pytest.mark.anyio
async def test_plain_layers_have_a_number_of_members(tmp_path: Path) -> None:
    """A pass is refused as soon as there are too many, whatever follows in the blob."""
    names = [[file(f"{layer}/{number}") for number in range(400)] for layer in range(6)]
    layers = [plain_layer(tar_bytes(each)) for each in names]
    with pytest.raises(ImageTooLarge, match=r"more than 2279 files in total"):
        await prepared(tmp_path, layers, 1)
    assert len((await prepared(tmp_path, layers[:5], 1)).image.layers) == 5
    assert len((await prepared(tmp_path, layers[:1] * 6, 1)).image.layers) == 6


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "a lot", "99999999", "1\n2"])
def test_what_is_no_number_of_mebibytes(text: str) -> None:
    with pytest.raises(UsageError, match=VARIABLE):
        Budget({VARIABLE: text})
    assert memory_of({}) == memory_of({VARIABLE: ""}) == DEFAULT_MIB


CHILD = """
import json, resource, sys, trio
from pathlib import Path
from lazyfs.image.layers.budget import ImageTooLarge
from lazyfs.image.prepare import Request, prepare
from lazyfs.registry.source import AccessOptions

start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
request = Request(f"oci:{sys.argv[1]}/layout", None, Path(sys.argv[1], "cache"), AccessOptions())
try:
    trio.run(prepare, request)
    said = "prepared"
except ImageTooLarge:
    said = "refused"
print(json.dumps([said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start]))
"""


@pytest.mark.parametrize(
    ("layers", "outcome"),
    [
        pytest.param(lambda: [bomb(500_000)] * 12, "prepared", id="one, twelve times"),
        pytest.param(lambda: [bomb(1_000_000)] * 12, "refused", id="a larger one, twelve times"),
        pytest.param(lambda: [bomb(450_000, n) for n in range(4)], "refused", id="four"),
        pytest.param(lambda: [bomb(150_000, twice=True)] * 12, "prepared", id="read by Python"),
    ],
)
@pytest.mark.skipif(not scan.can_scan(), reason="the native core was not compiled")
def test_memory_as_measured(tmp_path: Path, layers, outcome: str) -> None:
    """What the estimates promise, of a process that prepares the worst that passes."""
    make_layout(tmp_path / "layout", layers())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={name: text for name, text in os.environ.items() if name != VARIABLE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, kib = json.loads(done.stdout)
    assert said == outcome
    assert kib <= (DEFAULT_MIB + 16) << 10, f"{kib >> 10} MiB"
