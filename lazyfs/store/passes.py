"""What a full pass over a plain layer has left here: which TOC its blob has.

``passes/<blob hex>`` is JSON.  A layer whose pass is known needs no other: its TOC, table and spans
lie under the TOC's digest, as every layer's, and its content where it has not been evicted.
"""

import os
from pathlib import Path

import msgspec

from lazyfs.digest import Digest, digest_of, parse_digest
from lazyfs.errors import FormatError
from lazyfs.formats.tars.empty_tar import is_empty_tar
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.content.content import LayerContent
from lazyfs.store.content.locks import mark_from_now_on, share
from lazyfs.store.content.presence import (
    RESIDENT,
    lock_presence,
    map_size,
    new_header,
    reset,
    write_header,
    write_marks,
)
from lazyfs.store.content.regular import read_regular
from lazyfs.store.paths import Store, digest_named, store_error
from lazyfs.store.sealed import decode_sealed, encode_sealed

PASS_VERSION = 2
RULES = 1
"""By which a layer was read: from 1 on, what begins with zeros is not for that an empty tar."""


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
    rules: int = 0
    version: int = PASS_VERSION
    checksum: str = ""


def save_pass(store: Store, record: PassRecord) -> None:
    """Keep *record* under its blob's digest."""
    path = _path(store, record.blob_digest)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise store_error(path, exc) from exc
    store.write_file(path, encode_sealed(record))


def load_pass(store: Store, blob: Digest) -> PassRecord | None:
    """Return what is known of a blob, None if nothing is."""
    try:
        record = decode_sealed(read_regular(_path(store, str(blob))), PassRecord)
    except OSError:
        return None
    if record is None:
        return None
    is_right = record.version == PASS_VERSION and record.blob_digest == str(blob)
    return record if is_right else None


def is_lost_as_empty(store: Store, blob: Digest) -> bool:
    """Say whether an older pass may have taken for an empty tar what is none: to be made again."""
    record = load_pass(store, blob)
    if record is None or record.rules >= RULES:
        return False
    # Imported here: passes of this release need no second look.
    from lazyfs.formats.tars.toc_json import TocSpeller  # noqa: PLC0415

    if record.toc_digest != str(digest_of(TocSpeller().document())):
        return False
    return not is_empty_tar(parse_digest(record.diff_id), record.plain_size)


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
        reset(fd, map_size(table))
        write_header(fd, new_header(table, os.stat(path), is_clean=False))
        # On the disk before there is another content file, whose bytes are not: marks of the file
        # before must not be believed of it after a crash (rule 2 of content.py).
        os.fdatasync(fd)
        os.rename(path, folder / "content")
        write_marks(fd, bytes([RESIDENT]) * table.count)
        mark_from_now_on(fd)
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
