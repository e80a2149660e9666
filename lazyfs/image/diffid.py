"""Building a layer's tar again, to check the diffID that the config states.

What a mount serves is verified by chunks; that all of it together is the layer that the config
means is known only where the layer says how its tar was put together (formats/tars/tarsplit.py).
"""

import hashlib
from collections.abc import Iterator

import trio

from lazyfs.digest import Digest, DigestMismatch, parse_digest, verify_digest
from lazyfs.errors import FormatError
from lazyfs.fetch.device import Device
from lazyfs.formats.streams.limits import DEFAULT_LIMITS
from lazyfs.formats.streams.unzstd import unzstd
from lazyfs.formats.tars.tarsplit import BadTarSplit, tar_parts
from lazyfs.formats.tocs.claims import Claims, Place, claims_of
from lazyfs.formats.tocs.toc import Toc, TocEntry
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.image.layers.tocs import read_range
from lazyfs.image.open import OpenImage
from lazyfs.oci.manifest import Manifest, decode_manifest
from lazyfs.rootfs.layout import device_offsets
from lazyfs.store.blobs import load_blob
from lazyfs.store.layers import load_toc

TAR_SPLIT_LIMIT = 150 << 20
"""Compressed tar-split, bytes; the limit of containers/storage."""

STEP_SIZE = 4 << 20


class DiffIdMismatch(DigestMismatch):
    """The uncompressed layer is not the one that the config states."""

    code = "E_DIFF_ID"


async def check_diff_id(image: OpenImage, device: Device) -> Digest | None:
    """Build the tar of *device*'s layer and compare its digest with the diffID, which is returned.

    None where the layer has no tar-split.  Raises DiffIdMismatch or DigestMismatch, BadTarSplit,
    and what reading contents raises.
    """
    record = image.layers[device.number - 1]
    key = parse_digest(record.toc_digest)
    toc_bytes = load_toc(image.store, key)
    if _claims(image, device).tar_split is None or toc_bytes is None:
        return None
    table = device.table
    toc = decode_toc(
        toc_bytes,
        expected=None,
        vouched=key,
        blob_size=table.payload_end,
        codec=table.format.codec,
    )
    document = await stored_tar_split(image, device, toc)
    if document is None:
        return None
    expected = parse_digest(record.diff_id)
    got = await _hash(image, device, document, toc, expected.algorithm)
    if got != expected:
        raise DiffIdMismatch(
            f"layer {record.digest}: got {got} by its tar-split, expected diffID {expected}"
        )
    return expected


async def stored_tar_split(image: OpenImage, device: Device, toc: Toc) -> bytes | None:
    """Return the tar-split document of a layer, None where it has none.

    It has the digest that the manifest, or the TOC, states; whether it tells the truth is known by
    the diffID.  Raises BadTarSplit, DigestMismatch, and what the source raises.
    """
    claims = _claims(image, device)
    if claims.tar_split is None:
        return None
    return await _fetch(image, device, claims, claims.tar_split, toc)


def _claims(image: OpenImage, device: Device) -> Claims:
    digest = parse_digest(image.prepared.image.manifest_digest)
    data = load_blob(image.store, digest)
    manifest = None if data is None else decode_manifest(data, None)
    if not isinstance(manifest, Manifest):
        return Claims()
    return claims_of(manifest.layers[device.number - 1].annotations)


async def _fetch(image: OpenImage, device: Device, claims: Claims, place: Place, toc: Toc) -> bytes:
    if place.size > TAR_SPLIT_LIMIT or place.raw_size > DEFAULT_LIMITS.toc_size:
        raise BadTarSplit(
            f"tar-split: got {place.size} bytes for {place.raw_size}, expected at most"
            f" {TAR_SPLIT_LIMIT} for {DEFAULT_LIMITS.toc_size}"
        )
    frame = await read_range(image.origin, device.descriptor, place.offset, place.end)
    stated = toc.tar_split_digest or claims.tar_split_checksum
    if stated is not None:
        verify_digest(frame, stated, f"layer {device.descriptor.digest}: tar-split")
    try:
        return await trio.to_thread.run_sync(unzstd, frame, place.raw_size, "tar-split")
    except FormatError as exc:
        raise BadTarSplit(f"layer {device.descriptor.digest}: {exc.message}") from exc


async def _hash(
    image: OpenImage, device: Device, document: bytes, toc: Toc, algorithm: str
) -> Digest:
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    offsets = dict(zip(map(id, toc.entries), device_offsets(toc), strict=True))
    for part in tar_parts(document, toc):
        if isinstance(part, bytes):
            hasher.update(part)
            await trio.lowlevel.checkpoint()
            continue
        for offset, size in _steps(part, offsets[id(part)]):
            data = await image.contents.read(device.number, offset, size)
            await trio.to_thread.run_sync(hasher.update, data)
    return Digest(algorithm, hasher.hexdigest())


def _steps(entry: TocEntry, start: int) -> Iterator[tuple[int, int]]:
    for position in range(0, entry.size, STEP_SIZE):
        yield start + position, min(STEP_SIZE, entry.size - position)
