"""A layer's TOC and layer table on disk, under the TOC's digest."""

import mmap
import os

import zstandard

from lazyfs.digest import Digest, digest_of
from lazyfs.errors import FormatError
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.paths import Store

TOC_RAW_LIMIT = 1 << 30  # decode_toc has the real limit; this one stops a rotten frame header


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """Map a whole file for reading (OSError, or ValueError when it is empty)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


def load_toc(store: Store, digest: Digest) -> bytes | None:
    """Return the stored TOC's bytes, digest checked again, or None."""
    try:
        stored = (store.layer_path(digest) / "toc.zst").read_bytes()
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=TOC_RAW_LIMIT)
    except (OSError, zstandard.ZstdError):
        return None
    return data if digest_of(data, digest.algorithm) == digest else None


def load_table(store: Store, digest: Digest) -> LayerTable | None:
    """Return the stored layer table, mapped and checked, or None."""
    try:
        return LayerTable(map_file(store.layer_path(digest) / "table"))
    except (OSError, ValueError, FormatError):
        return None


def save_layer(store: Store, digest: Digest, toc: bytes, table: bytes) -> None:
    """Keep a verified TOC and the layer table made of it."""
    folder = store.layer_path(digest)
    folder.mkdir(mode=0o700, exist_ok=True)
    store.write_file(folder / "toc.zst", zstandard.ZstdCompressor(level=1).compress(toc))
    store.write_file(folder / "table", table)
