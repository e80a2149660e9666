"""What a full pass over a plain layer has left here: which TOC its blob has.

``passes/<blob hex>`` is JSON.  A layer whose pass is known needs no other: its TOC, table and spans
lie under the TOC's digest, as every layer's, and its content where it has not been evicted.
"""

import os
from pathlib import Path

import msgspec

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content import (
    HEADER,
    HEADER_SIZE,
    MAGIC,
    RESIDENT,
    VERSION,
    LayerContent,
    lock_presence,
)
from lazyfs.store.locks import share
from lazyfs.store.paths import Store, digest_named, store_error

PASS_VERSION = 2


class PassRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A blob, and what one pass over it found; digests as text, sizes in bytes.

    ``index_digest`` is that of the layer index it came with, empty where the pass was made here.
    """

    blob_digest: str
    blob_size: int
    diff_id: str
    plain_size: int
    toc_digest: str
    index_digest: str = ""
    version: int = PASS_VERSION


def save_pass(store: Store, record: PassRecord) -> None:
    """Keep *record* under its blob's digest."""
    path = _path(store, record.blob_digest)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise store_error(path, exc) from exc
    store.write_file(path, msgspec.json.encode(record))


def load_pass(store: Store, blob: Digest) -> PassRecord | None:
    """Return what is known of a blob, None if nothing is."""
    try:
        record = msgspec.json.decode(_path(store, str(blob)).read_bytes(), type=PassRecord)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    is_right = record.version == PASS_VERSION and record.blob_digest == str(blob)
    return record if is_right else None


def unneeded_passes(store: Store) -> list[Path]:
    """Return the files about blobs whose layer is gone, and those that cannot be read."""
    return [path for path in store.passes.glob("*") if not _has_layer(store, path)]


def _has_layer(store: Store, path: Path) -> bool:
    try:
        record = load_pass(store, digest_named(path.name))
        if record is None:
            return False
        return (store.layer_path(parse_digest(record.toc_digest)) / "table").exists()
    except FormatError:
        return False


def _path(store: Store, blob_digest: str) -> Path:
    return store.passes / blob_digest.partition(":")[2]


def adopt_content(folder: Path, table: LayerTable, path: Path) -> int:
    """Make the file *path* the layer's content, all of it resident: it has been verified.

    Returns a descriptor that keeps the layer in use: whoever opens it before that is closed
    believes the marks, and after the last one has closed it they are on the disk.  -1 where others
    use the layer: they have the old file open, and nothing has been done.
    """
    fd, is_alone = lock_presence(folder)
    try:
        if not is_alone:
            os.close(fd)
            return -1
        os.truncate(path, table.device_size)
        size = HEADER_SIZE + max(1, table.count)
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, size)
        os.pwrite(fd, HEADER.pack(MAGIC, VERSION, 0, table.count), 0)
        # On the disk before there is another content file, whose bytes are not: marks of the file
        # before must not be believed of it after a crash (rule 2 of content.py).
        os.fdatasync(fd)
        os.rename(path, folder / "content")
        os.pwrite(fd, bytes([RESIDENT]) * table.count, HEADER_SIZE)
        share(fd)
    except OSError as exc:
        os.close(fd)
        raise store_error(folder, exc) from exc
    return fd


def copy_content(folder: Path, table: LayerTable, path: Path) -> int:
    """Copy the file *path* into the layer's content, chunk by chunk; return a pin as above.

    For a layer that others use.
    """
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = LayerContent(folder, table)
        try:
            for chunk in range(table.count):
                content.copy(chunk, source, table.device_offset(chunk))
            return content.open_pin()
        finally:
            content.close()
    finally:
        os.close(source)
