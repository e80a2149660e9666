"""Compare tar and table of contents of a layer that a mount has filled: once, beside the readers.

The payloads are in the store.  What the tar has between them was caught while they were decoded
(formats/tars/gaps.py), or is in its tar-split; its beginning and its end are two short requests,
and a little that was not caught one or two more.  The tar that is put together so has to have the
diffID: then it is the one that others unpack, and what differs from it is a contradiction.  Where
it cannot be had for a few per cent of the blob, nothing is said, and ``lazyfs verify`` can tell.
"""

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import trio

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import LazyfsError
from lazyfs.fetch.device import Device
from lazyfs.fetch.gap_store import cut
from lazyfs.fetch.pressure import Pressure
from lazyfs.fetch.transfer import pieces_of
from lazyfs.formats.decode import RangeDecoder
from lazyfs.formats.layers import Format
from lazyfs.formats.streams.stream import Decoded
from lazyfs.formats.streams.unpack import decompress
from lazyfs.formats.tars.comparison import Comparison
from lazyfs.formats.tars.gaps import Gaps
from lazyfs.formats.tars.tarsplit import tar_parts
from lazyfs.formats.tocs.toc import Toc
from lazyfs.image.compare import stored_toc
from lazyfs.image.diffid import stored_tar_split
from lazyfs.image.layers.plain import INDEX, PASS
from lazyfs.image.layers.tocs import read_range
from lazyfs.image.open import OpenImage
from lazyfs.rootfs.layout import device_offsets
from lazyfs.store.agreements import Agreement, save_agreement

log = logging.getLogger(__name__)

SHARE = 20
MIN_SIZE = 1 << 20
"""What may be fetched for it of a layer: one part in so many of the blob, or so many bytes."""

STEP_SIZE = 1 << 20
PAUSE_SECONDS = 0.05
TAILED = (Format.ESTARGZ, Format.LEGACY)
"""Formats whose tar goes on behind the payloads: with the table of contents."""


class CannotTell(Exception):
    """The tar cannot be put together here for little."""


async def compare_trees(image: OpenImage) -> None:
    """Compare the layers that are complete, and say in the image's health which are two trees.

    Never raises for what is wrong with a layer or its source.
    """
    for device in image.devices:
        record = image.layers[device.number - 1]
        if device.agrees is not None or record.verified_by in (PASS, INDEX):
            continue
        if not device.is_complete():
            continue
        key, diff_id = parse_digest(record.toc_digest), parse_digest(record.diff_id)
        try:
            found = await _compare(image, device, diff_id)
        except (LazyfsError, CannotTell, OSError, ValueError) as exc:
            log.info("layer %s: not compared with its tar: %s", record.digest, exc)
        else:
            save_agreement(image.store, key, device.descriptor.digest, found)
            image.note_tree(device, found.differences)
        if device.gaps is not None:
            device.gaps.close()
            device.gaps = None


async def _compare(image: OpenImage, device: Device, diff_id: Digest) -> Agreement:
    """Put the tar of a layer together and compare it; raises CannotTell."""
    toc = await trio.to_thread.run_sync(stored_toc, image, device)
    if device.table.format is Format.ZSTD_CONTAINERS:
        document = await stored_tar_split(image, device, toc)
        if document is None:
            raise CannotTell("it has no tar-split")
        pieces = _by_tar_split(device, toc, document)
    else:
        pieces = await _by_gaps(image, device)
    comparison = Comparison(toc)
    hasher = hashlib.new(diff_id.algorithm, usedforsecurity=False)

    def step() -> bool:
        size = 0
        for piece in pieces:
            hasher.update(piece)
            comparison.feed(piece)
            size += len(piece)
            if size >= STEP_SIZE:
                return True
        return False

    while await trio.to_thread.run_sync(step):
        while image.contents.demand.pressure is Pressure.BURST:  # noqa: ASYNC110 - ends by time
            await trio.sleep(PAUSE_SECONDS)
    got = Digest(diff_id.algorithm, hasher.hexdigest())
    if got != diff_id:
        raise CannotTell(f"the tar rebuilt from it has {got}, expected {diff_id}")
    found = await trio.to_thread.run_sync(comparison.finish)
    return Agreement(str(diff_id), "" if found is None else str(found))


def _by_tar_split(device: Device, toc: Toc, document: bytes) -> Iterator[bytes]:
    """Yield the tar that a tar-split document puts together."""
    offsets = dict(zip(map(id, toc.entries), device_offsets(toc), strict=True))
    for part in tar_parts(document, toc):
        if isinstance(part, bytes):
            yield part
        else:
            yield from _content(device, offsets[id(part)], part.size)


async def _by_gaps(image: OpenImage, device: Device) -> Iterator[bytes]:
    """Return the tar out of the store and the gaps, after fetching what they lack."""
    if device.gaps is None:
        raise CannotTell("it was not filled by this mount")
    await trio.to_thread.run_sync(device.gaps.index)
    streams = await trio.to_thread.run_sync(_streams, device)
    head_end = streams[0][0] if streams else device.table.payload_end
    tail_start = tail_end = device.table.payload_end
    if device.table.format in TAILED:
        tail_end = device.descriptor.size
    missing = [chunks for start, chunks in streams if not device.gaps.has(start)]
    wanted = head_end + tail_end - tail_start + sum(_extent(device, chunks) for chunks in missing)
    if wanted > max(MIN_SIZE, device.descriptor.size // SHARE):
        raise CannotTell(f"{wanted} bytes would have to be fetched again")
    for chunks in missing:
        await _catch(image, device, chunks)
    head = await _read(image, device, 0, head_end)
    tail = await _read(image, device, tail_start, tail_end)
    return _joined(device, streams, head, tail)


def _streams(device: Device) -> list[tuple[int, list[int]]]:
    """Return the blob offset and the chunks of each stream, both in order."""
    table = device.table
    if table.holes:
        raise CannotTell("it has holes")
    return [(start, list(chunks)) for start, chunks in groupby(device.order, key=table.blob_offset)]


def _extent(device: Device, chunks: Sequence[int]) -> int:
    return device.table.blob_end(chunks[0]) - device.table.blob_offset(chunks[0])


async def _catch(image: OpenImage, device: Device, chunks: Sequence[int]) -> None:
    """Fetch a stream once more, for its gaps."""
    start, end = device.table.blob_offset(chunks[0]), device.table.blob_end(chunks[0])
    data = await _read(image, device, start, end)
    caught: list[Gaps] = []

    def decode() -> None:
        dropped: list[Decoded] = []
        decoder = RangeDecoder(pieces_of(device, chunks), start, gaps=caught)
        decoder.feed(data, dropped)
        decoder.finish(dropped)
        decoder.close()

    await trio.to_thread.run_sync(decode)
    assert device.gaps is not None
    device.gaps.add(caught)
    device.gaps.index()


async def _read(image: OpenImage, device: Device, start: int, end: int) -> bytes:
    if start == end:
        return b""
    return await read_range(image.origin, device.descriptor, start, end)


def _joined(
    device: Device, streams: Iterable[tuple[int, Sequence[int]]], head: bytes, tail: bytes
) -> Iterator[bytes]:
    table, gaps = device.table, device.gaps
    assert gaps is not None
    yield from _unpacked(head)
    for start, chunks in streams:
        parts = gaps.find(start)
        if parts is None:
            raise CannotTell(f"the bytes between the chunks of the stream at {start} are missing")
        position = 0
        for chunk in chunks:
            inner = table.inner_offset(chunk)
            if inner + table.size(chunk) <= position:
                continue  # the TOC names these bytes twice
            yield from cut(parts, position, inner)
            yield from _content(device, table.device_offset(chunk), table.size(chunk))
            position = inner + table.size(chunk)
        yield from cut(parts, position, None)
    yield from _unpacked(tail)


def _unpacked(data: bytes) -> Iterator[bytes]:
    return decompress(io.BytesIO(data).read) if data else iter(())


def _content(device: Device, start: int, size: int) -> Iterator[bytes]:
    for at in range(0, size, STEP_SIZE):
        yield device.content.read(start + at, min(STEP_SIZE, size - at))
