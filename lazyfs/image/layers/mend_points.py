"""Restart points of a plain layer that are damaged or gone while its image is open: had again.

A mount looks at them before it begins, and reads them when the first piece is wanted that needs
one.  In between the disk may lose them; reading would then be an error for ever, though nothing is
wrong with what the registry has.
"""

import logging
from collections.abc import Iterable

import trio

from lazyfs.digest import Digest, parse_digest
from lazyfs.errors import FormatError, NotFound, StoreError, VerificationFailed
from lazyfs.fetch.device import Device
from lazyfs.fetch.origins.origin import Origin
from lazyfs.formats.streams.codec import Codec
from lazyfs.oci.descriptor import Descriptor
from lazyfs.store.images import LayerRecord
from lazyfs.store.passes import load_pass
from lazyfs.store.paths import Store
from lazyfs.store.points import RestartPoints

log = logging.getLogger(__name__)


class PointsMender:
    """Has the restart points of a layer of *image* here before something is decoded from one."""

    def __init__(
        self, store: Store, origin: Origin, image: Digest, layer: LayerRecord, points: RestartPoints
    ) -> None:
        self._store = store
        self._origin = origin
        self._image = image
        self._layer = layer
        self._points = points
        self._lock = trio.Lock()

    async def __call__(self, dev: Device, chunks: Iterable[int]) -> None:
        """Return when what *chunks* need is here; raises StoreError, and what the source raises."""
        if self._points.are_here or not any(_needs_point(dev, chunk) for chunk in chunks):
            return
        async with self._lock:
            if await trio.to_thread.run_sync(self._points.load):
                return
            log.warning(
                "layer %s: its restart points are damaged or missing; fetching them again",
                dev.descriptor.digest,
            )
            await self._get_again(dev)
            if not await trio.to_thread.run_sync(self._points.load):
                raise StoreError(
                    f"layer {dev.descriptor.digest}: the restart points that were just written are "
                    "missing"
                )

    async def _get_again(self, dev: Device) -> None:
        layer, toc_digest = dev.descriptor, parse_digest(self._layer.toc_digest)
        diff_id = parse_digest(self._layer.diff_id)
        record = load_pass(self._store, layer.digest)
        if record is not None and record.index_digest and record.toc_digest == str(toc_digest):
            try:
                await self._fetch_index(layer, parse_digest(record.index_digest), diff_id)
                return
            except (NotFound, FormatError, VerificationFailed) as exc:
                log.warning("%s; fetching the layer whole", exc.message)
        # Not needed by a mount to which nothing happens.
        from lazyfs.image.layers.contradiction import check_claim, claimed_toc  # noqa: PLC0415
        from lazyfs.image.layers.full_pass import pass_layer  # noqa: PLC0415

        store, source = self._store, self._origin.source
        claimed = await trio.to_thread.run_sync(claimed_toc, store, layer)
        toc = await pass_layer(store, source, layer, diff_id, is_stored=False)
        if claimed is not None and toc.digest != claimed.digest:
            await pass_layer(store, source, layer, diff_id)  # whose contents are compared
            await trio.to_thread.run_sync(check_claim, store, layer, claimed, toc)
        if toc.digest != toc_digest:
            await trio.to_thread.run_sync(self._take_over, dev, toc.digest, toc_digest)

    async def _fetch_index(self, layer: Descriptor, pinned: Digest, diff_id: Digest) -> None:
        from lazyfs.image.layers.indexes import fetch_index, keep_index  # noqa: PLC0415

        found = await fetch_index(self._origin.source, pinned, self._image, [layer])
        index = found.get(layer.digest)
        if index is None:
            raise NotFound(f"index {pinned} has no index of layer {layer.digest}")
        await trio.to_thread.run_sync(keep_index, self._store, index, pinned, diff_id)

    def _take_over(self, dev: Device, found: Digest, wanted: Digest) -> None:
        """Use the points of another TOC of the same blob, where they are at the same places."""
        from lazyfs.store.spans import load_spans, save_spans  # noqa: PLC0415

        spans = load_spans(self._store, found, dev.descriptor.size) or ()
        table = dev.table
        places = {
            table.blob_offset(chunk) for chunk in range(table.count) if _needs_point(dev, chunk)
        }
        if not places <= {span.blob_offset for span in spans}:
            raise StoreError(
                f"layer {dev.descriptor.digest}: the new restart points are at other places than "
                "the lost ones",
                hint="unmount and mount again; the layer has a new index now",
            )
        save_spans(self._store, wanted, spans)


def _needs_point(dev: Device, chunk: int) -> bool:
    return dev.table.codec(chunk) == Codec.DEFLATE
