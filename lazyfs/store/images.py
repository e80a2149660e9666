"""The rootfs index of an image on disk, under the manifest's digest.

``record.json`` is the commit record: it is renamed into place last, with the folder that holds
the index and the provenance table, and states their digests.
"""

import os
import shutil
from pathlib import Path

import msgspec

from lazyfs.digest import Digest, digest_of
from lazyfs.errors import FormatError
from lazyfs.rootfs.erofs_format import REVISION
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.layout import LAYOUT_VERSION
from lazyfs.rootfs.provenance import Provenance
from lazyfs.store.content.regular import read_regular
from lazyfs.store.layers import read_whole
from lazyfs.store.paths import Store, store_error
from lazyfs.store.sealed import decode_sealed, encode_sealed

RECORD_VERSION = (1, LAYOUT_VERSION, REVISION)
"""Of the record itself, of the device layout, of the index's bytes: an index of another version of
any of them is made again."""


class LayerRecord(msgspec.Struct, frozen=True):
    """What is known of one layer; digests as text, ``size`` of the blob in bytes.

    ``format`` and ``dialect`` are those of ``formats/layers.py``.  ``verified_by``: what vouches
    for the TOC, ``toc`` (a digest of it in the manifest) or ``blob`` (the layer's own).
    """

    digest: str
    size: int
    media_type: str
    diff_id: str
    toc_digest: str
    format: str
    dialect: str | None = None
    verified_by: str = "toc"


class ImageRecord(msgspec.Struct, frozen=True):
    """What is known of one image; layers bottom first."""

    manifest_digest: str
    manifest_media_type: str
    config_digest: str
    platform: str
    layers: tuple[LayerRecord, ...]
    index_digest: str = ""
    provenance_digest: str = ""
    version: tuple[int, int, int] = RECORD_VERSION
    checksum: str = ""


class StoredImage(msgspec.Struct, frozen=True):
    """An image's record, its index and its provenance table, checked."""

    record: ImageRecord
    index: ErofsIndex
    provenance: Provenance


def load_image(store: Store, manifest_digest: Digest) -> StoredImage | None:
    """Return the stored index of an image, or None if there is none that can be believed.

    Makes the image the last used one.
    """
    folder = store.image_path(manifest_digest)
    record = load_record(folder)
    if record is None or record.manifest_digest != str(manifest_digest):
        return None
    try:
        os.utime(folder)
    except OSError:
        pass  # a disk that takes nothing: it may go earlier than it should
    try:
        index = _load_checked(folder / "index.erofs", record.index_digest)
        provenance = _load_checked(folder / "provenance", record.provenance_digest)
        return StoredImage(record, ErofsIndex(index), Provenance(provenance))
    except (OSError, ValueError, FormatError):
        return None


def load_record(folder: Path) -> ImageRecord | None:
    """Return the record in an image's folder, or None if there is none of this version."""
    try:
        record = decode_sealed(read_regular(folder / "record.json"), ImageRecord)
    except OSError:
        return None
    return record if record is not None and record.version == RECORD_VERSION else None


def _load_checked(path: os.PathLike[str], expected: str) -> bytes:
    data = read_whole(path)
    if str(digest_of(data)) != expected:
        raise ValueError(f"{path} does not have its recorded digest")
    return data


def save_image(
    store: Store, record: ImageRecord, index: bytes | bytearray, provenance: bytes
) -> ImageRecord:
    """Keep a rootfs index; return the record with the digests of what was written."""
    record = msgspec.structs.replace(
        record, index_digest=str(digest_of(index)), provenance_digest=str(digest_of(provenance))
    )
    folder = store.images / record.manifest_digest.partition(":")[2]
    temporary = store.temporary()
    try:
        temporary.mkdir(mode=0o700)
        (temporary / "index.erofs").write_bytes(index)
        (temporary / "provenance").write_bytes(provenance)
        (temporary / "record.json").write_bytes(encode_sealed(record))
        try:
            temporary.rename(folder)
        except OSError:
            # A folder is there already: a rotten one, an older version's, or another process was
            # faster.  Swap it out; whoever has it mapped keeps what they mapped.
            old = store.temporary()
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as exc:
        raise store_error(folder, exc) from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record
