"""A layer without a blob format in the way: chunks with known bytes, and their table."""

import gzip
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.digest import Digest, digest_of
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.rootfs.table import LayerTable, build_table


@dataclass(frozen=True)
class MadeLayer:
    """A blob of gzip members, the TOC that describes it, and what its files hold."""

    blob: bytes
    toc: Toc
    table: LayerTable
    files: dict[bytes, bytes]

    @property
    def digest(self) -> Digest:
        """The blob's digest."""
        return digest_of(self.blob)


def make_layer(sizes: Sequence[int], *, chunk_size: int = 4 << 20, seed: int = 0) -> MadeLayer:
    """Return a layer of one file per size, half random and half zeros, cut into chunks."""
    rng = random.Random(seed)
    blob = bytearray(b"\x1f" * 64)  # something that no chunk needs
    entries = []
    files = {}
    for number, size in enumerate(sizes):
        path = b"file%04d" % number
        data = rng.randbytes(size // 2) + bytes(size - size // 2)
        files[path] = data
        chunks = []
        for offset in range(0, size, chunk_size):
            piece = data[offset : offset + chunk_size]
            digest = hashlib.sha256(piece).digest()
            chunks.append(Chunk(offset, len(piece), len(blob), 0, digest))
            blob += gzip.compress(piece + b"padding", 1, mtime=0)
        entries.append(
            TocEntry(
                path=path,
                kind=Kind.REGULAR,
                mode=0o644,
                uid=0,
                gid=0,
                size=size,
                chunks=tuple(chunks),
            )
        )
    toc = Toc(digest_of(b"%d" % seed), tuple(entries))
    return MadeLayer(bytes(blob), toc, LayerTable(build_table(toc, len(blob))), files)
