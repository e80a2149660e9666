"""A layer's TOC and layer table on disk, under the digest that vouches for the TOC.

That is a digest of the TOC's JSON, or of the zstd frame that the JSON lay compressed in.  Where it
lay in one, ``toc.zst`` is that very frame.
"""

import os

import zstandard

from lazyfs.digest import Digest, digest_of
from lazyfs.errors import FormatError
from lazyfs.formats.streams.unzstd import unzstd
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.regular import read_regular
from lazyfs.store.paths import Store

TOC_RAW_LIMIT = 1 << 30  # decode_toc has the real limit; this one stops a rotten frame header


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Return a whole file (OSError).

    Read, not mapped: what was verified must stay what it is, whatever becomes of the file, and a
    map of a file that is cut ends the process.
    """
    return read_regular(path)


def load_toc(store: Store, digest: Digest) -> bytes | None:
    """Return the stored TOC's JSON, or None; *digest* is checked again, of it or of its frame."""
    try:
        stored = read_regular(store.layer_path(digest) / "toc.zst")
        data = unzstd(stored, TOC_RAW_LIMIT, "TOC")
    except (OSError, FormatError):
        return None
    digests = (digest_of(part, digest.algorithm) for part in (data, stored))
    return data if digest in digests else None


def has_digests(store: Store, digest: Digest, toc: Digest | None, frame: Digest | None) -> bool:
    """Say whether the TOC kept under *digest* has all of the stated digests, of JSON and frame."""
    try:
        stored = read_regular(store.layer_path(digest) / "toc.zst")
        data = unzstd(stored, TOC_RAW_LIMIT, "TOC")
    except (OSError, FormatError):
        return False
    return all(
        stated is None or digest_of(part, stated.algorithm) == stated
        for part, stated in ((data, toc), (stored, frame))
    )


def load_table(store: Store, digest: Digest) -> LayerTable | None:
    """Return the stored layer table, checked, or None."""
    try:
        return LayerTable(read_whole(store.layer_path(digest) / "table"))
    except (OSError, FormatError):
        return None


def save_layer(
    store: Store, digest: Digest, toc: bytes, table: bytes, *, frame: bytes | None = None
) -> None:
    """Keep a verified TOC and the layer table made of it.

    *frame* is the zstd frame that the TOC lay compressed in, where it did.
    """
    folder = store.layer_path(digest)
    store.make_folder(folder)
    frame = frame or zstandard.ZstdCompressor(level=1).compress(toc)
    store.write_file(folder / "toc.zst", frame)
    store.write_file(folder / "table", table)
