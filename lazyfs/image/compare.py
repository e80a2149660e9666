"""Read a layer's blob once from end to end: its digest, its diffID, and whether it is one tree.

What passes and is missing in the store is kept there, so that nothing is fetched for it again.
"""

import hashlib
from collections.abc import Awaitable, Callable

import trio

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError, LazyfsError
from lazyfs.fetch.device import Device
from lazyfs.fetch.origins.whole import PIECE_SIZE, WrongBlob, take_blob, until_right
from lazyfs.formats.streams.unpack import decompress
from lazyfs.formats.tars.comparison import Comparison, Disagreement, OnChunk
from lazyfs.formats.tocs.toc import Chunk, Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.image.diffid import DiffIdMismatch
from lazyfs.image.layers.contradiction import contradiction, trees_differ
from lazyfs.image.layers.full_pass import pass_layer
from lazyfs.image.layers.plain import INDEX, PASS
from lazyfs.image.open import ImageGone, OpenImage
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.source import Source
from lazyfs.rootfs.layout import device_offsets
from lazyfs.store.agreements import Agreement, load_agreement, save_agreement
from lazyfs.store.content.presence import RESIDENT
from lazyfs.store.layers import load_toc
from lazyfs.store.passes import load_pass, save_pass
from lazyfs.store.paths import StoreFull

BLOCK = 512  # of a tar
PADDING = 1 << 20  # zeros at the end of a tar; GNU tar writes less than 10 KiB by default


async def compare_device(
    image: OpenImage, device: Device, progress: Callable[[int], None], counted: bytearray
) -> Digest | None:
    """Compare the tar of a layer with its TOC; return its diffID, which is right then.

    None for a layer whose TOC was made here, of its tar.  What was found once is remembered.
    *progress* is told bytes of content as they pass, and *counted* notes whose they were, by chunk.
    Raises TreesDiffer, WrongBlob, DiffIdMismatch, FormatError, StoreError, and what the source
    raises.
    """
    record = image.layers[device.number - 1]
    layer, key = device.descriptor, parse_digest(record.toc_digest)
    if record.verified_by == PASS:
        return None
    known = load_agreement(image.store, key, layer.digest)
    diff_id = parse_digest(record.diff_id)
    if known is None:
        toc = stored_toc(image, device)
        if record.verified_by == INDEX:
            found = await _pass_again(image, layer, diff_id, toc)
        else:
            keep = _Keeper(device, toc, counted)
            found = await compare_layer(
                *(image.origin.source, layer, diff_id, toc),
                on_chunk=keep.take,
                on_piece=lambda: progress(keep.passed()),
            )
        known = Agreement(str(diff_id), "" if found is None else str(found))
        save_agreement(image.store, key, layer.digest, known)
    check_agreement(layer, diff_id, known)
    return diff_id


async def _pass_again(
    image: OpenImage, layer: Descriptor, diff_id: Digest, toc: Toc
) -> Disagreement | None:
    """Compare a plain layer with the TOC that an index has for it, by a pass of our own.

    The image goes on by its index where that is right.
    """
    before = load_pass(image.store, layer.digest)
    found = await pass_layer(image.store, image.origin.source, layer, diff_id)
    try:
        why = await trio.to_thread.run_sync(contradiction, image.store, toc, found)
        if why is None and before is not None:
            save_pass(image.store, before)
        return why
    except FileNotFoundError as exc:
        raise StoreFull(
            f"store {image.store.root}: not enough space to store and compare the contents of"
            f" {layer.digest}"
        ) from exc


def check_agreement(layer: Descriptor, diff_id: Digest, found: Agreement) -> None:
    """Raise TreesDiffer or DiffIdMismatch for what was *found* of a layer, now or before."""
    if found.diff_id != str(diff_id):
        raise DiffIdMismatch(
            f"layer {layer.digest}: got {found.diff_id} uncompressed, expected diffID {diff_id}"
        )
    if found.differences:
        raise trees_differ(layer.digest, found.differences)


def stored_toc(image: OpenImage, device: Device) -> Toc:
    """Return the TOC of an open image's layer; raises ImageGone where the store has lost it."""
    key = parse_digest(image.layers[device.number - 1].toc_digest)
    data = load_toc(image.store, key)
    if data is None:
        raise ImageGone(
            f"store {image.store.root}: the TOC of {device.descriptor.digest} is missing",
            hint="the cache was emptied in the meantime",
        )
    return decode_toc(
        data,
        expected=None,
        vouched=key,
        blob_size=device.table.payload_end,
        codec=device.table.format.codec,
    )


async def compare_layer(
    source: Source,
    layer: Descriptor,
    diff_id: Digest,
    toc: Toc,
    *,
    on_chunk: OnChunk | None = None,
    on_piece: Callable[[], None] = lambda: None,
) -> Disagreement | None:
    """Fetch *layer* whole and return where its tar and *toc* differ, None for nowhere.

    A blob that is wrong is fetched again, as whole.py says.
    """

    async def attempt() -> Disagreement | None:
        reading = _Reading(layer, diff_id, Comparison(toc, on_chunk=on_chunk))
        send, receive = trio.open_memory_channel[bytes](1)
        broken: LazyfsError | None = None

        async def fetch() -> None:
            nonlocal broken
            async with send:
                try:
                    await take_blob(source, layer, send.send)
                except LazyfsError as exc:
                    broken = exc  # raised below: the nursery would wrap it in a group

        async def more() -> bytes:
            on_piece()
            try:
                return await receive.receive()
            except trio.EndOfChannel:
                return b""

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch)
                ended = await trio.to_thread.run_sync(reading.run, more)
        finally:
            on_piece()
        if broken is not None:
            raise broken
        if isinstance(ended, LazyfsError):
            raise ended
        return ended

    return await until_right(source, layer, attempt)


class _Reading:
    """A layer that is read in a worker thread, hashed as it comes and as it is unpacked."""

    def __init__(self, layer: Descriptor, diff_id: Digest, comparison: Comparison) -> None:
        self._layer = layer
        self._diff_id = diff_id
        self._comparison = comparison
        self._blob_hash = hashlib.new(layer.digest.algorithm, usedforsecurity=False)
        self._tar_hash = hashlib.new(diff_id.algorithm, usedforsecurity=False)
        self._more: Callable[[], bytes] = bytes
        self._rest = b""

    def run(self, more: Callable[[], Awaitable[bytes]]) -> Disagreement | LazyfsError | None:
        """Read all that *more* returns, on the event loop, piece by piece.

        Returns what differs, or what is wrong with the layer.
        """
        self._more = lambda: trio.from_thread.run(more)
        problem: FormatError | None = None
        found: Disagreement | None = None
        try:
            found = self._compare()
        except FormatError as exc:
            problem = exc
        while self._read(PIECE_SIZE):
            pass  # whose fault a problem is, the digest of the rest tells
        got = Digest(self._layer.digest.algorithm, self._blob_hash.hexdigest())
        if got != self._layer.digest:
            return WrongBlob(f"layer {self._layer.digest}: got {got}")
        if problem is not None:
            message = problem.message.removeprefix("layer: ")
            return type(problem)(f"layer {self._layer.digest}: {message}", hint=problem.hint)
        diff_id = Digest(self._diff_id.algorithm, self._tar_hash.hexdigest())
        if diff_id != self._diff_id and not self._is_cut():
            return DiffIdMismatch(
                f"layer {self._layer.digest}: got {diff_id} uncompressed, expected diffID"
                f" {self._diff_id}"
            )
        return found

    def _is_cut(self) -> bool:
        """Say whether the tar has its diffID with more zeros at its end.

        skopeo leaves them out of layers that it makes zstd:chunked; nothing in them is unpacked.
        """
        for _ in range(PADDING // BLOCK):
            self._tar_hash.update(bytes(BLOCK))
            if self._tar_hash.hexdigest() == self._diff_id.hex:
                return True
        return False

    def _compare(self) -> Disagreement | None:
        for plain in decompress(self._read):
            self._tar_hash.update(plain)
            self._comparison.feed(plain)
        return self._comparison.finish()

    def _read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = self._more()
            self._blob_hash.update(self._rest)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


class _Keeper:
    """Stores what passes of a layer and is missing; used in a worker thread."""

    def __init__(self, device: Device, toc: Toc, counted: bytearray) -> None:
        self._device = device
        self._offsets = device_offsets(toc)
        self._counted = counted
        self._passed = 0
        self._told = 0

    def take(self, number: int, chunk: Chunk, parts: list[bytes]) -> None:
        """Take a chunk that has its digest."""
        device = self._device
        start = self._offsets[number] + chunk.offset
        for record in device.table.covering(start, start + 1):
            if not self._counted[record]:
                self._counted[record] = 1
                self._passed += chunk.size
            if device.content.states[record] != RESIDENT:
                device.content.write_all([(record, tuple(parts))])  # what is refused is fetched

    def passed(self) -> int:
        """Return how many bytes have passed since this was asked the last time."""
        new, self._told = self._passed - self._told, self._passed
        return new
