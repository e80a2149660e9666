"""A layer table that ends too early: the footer said so, or another blob with the same TOC."""

import gzip
import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from lazyfs.digest import digest_of
from lazyfs.fetch.refused import ChunkCorrupt
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.rootfs.table import LayerTable, build_table
from tests.fetch.test_fetch import opened
from tests.support.formats.layers import MadeLayer, make_layer

pytestmark = pytest.mark.anyio
TAIL = b"a table of contents" * 20_000


def ends_early(layer: MadeLayer) -> MadeLayer:
    """Return a layer whose table says that payloads end just behind where the last one begins."""
    offset = layer.table.blob_offset(layer.table.count - 1)
    table = LayerTable(build_table(layer.toc, offset + 1))
    return replace(layer, blob=layer.blob + TAIL, table=table)


@pytest.fixture
def layer() -> MadeLayer:
    return ends_early(make_layer([5000, 200_000]))


async def test_what_lies_behind_the_end_is_found(tmp_path: Path, layer: MadeLayer) -> None:
    async with opened(layer, tmp_path / "layer") as bench:
        assert await bench.read(1) == bench.data(1)
        assert bench.reports == []
        assert bench.source.requests[-1][1] < len(layer.blob), "and the rest is not fetched"
        assert await bench.read(0) == bench.data(0)


async def test_chunks_that_share_the_last_stream(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(300_000)
    pieces = [data[:100_000], data[100_000:]]
    chunks = [
        Chunk(at, len(piece), 64, at, hashlib.sha256(piece).digest())
        for at, piece in zip((0, 100_000), pieces, strict=True)
    ]
    entry = TocEntry(
        path=b"f", kind=Kind.REGULAR, mode=0o644, uid=0, gid=0, size=300_000, chunks=tuple(chunks)
    )
    toc = Toc(digest_of(b"shared"), (entry,))
    blob = bytes(64) + gzip.compress(data, mtime=0)
    made = MadeLayer(blob, toc, LayerTable(build_table(toc, len(blob))), {b"f": data})
    async with opened(ends_early(made), tmp_path / "layer") as bench:
        assert await bench.fetcher.read(1, 0, 50_000) == data[:50_000]
        assert await bench.read(0) == data


async def test_what_is_wrong_there_is_refused(tmp_path: Path, layer: MadeLayer) -> None:
    place = layer.table.blob_offset(1) + 1000
    bad = layer.blob[:place] + b"bad" + layer.blob[place + 3 :]
    async with opened(replace(layer, blob=bad), tmp_path / "layer") as bench:
        with pytest.raises(ChunkCorrupt):
            await bench.read(1)
