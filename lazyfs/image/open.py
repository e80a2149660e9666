"""An image that is open: its index, its contents, what it says of itself."""

import logging
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec.structs import replace

from lazyfs.digest import parse_digest
from lazyfs.errors import LazyfsError, StoreError
from lazyfs.fetch.ahead.forecast import Forecast
from lazyfs.fetch.ahead.prefetch import FORECASTING, NO_LIMITS, Limits, MakeRoom, prefetch
from lazyfs.fetch.device import Device
from lazyfs.fetch.fetch import Fetcher
from lazyfs.fetch.fetched import fetch_document
from lazyfs.fetch.gap_store import GapStore
from lazyfs.fetch.origins.early import Early
from lazyfs.fetch.origins.health import Health
from lazyfs.fetch.origins.origin import Origin
from lazyfs.fetch.profile import replay, replay_alike
from lazyfs.fetch.twins import Twins
from lazyfs.formats.layers import Format
from lazyfs.image.identity import mount_attributes
from lazyfs.image.layers.mend_points import PointsMender
from lazyfs.image.layers.plain import INDEX
from lazyfs.image.prepare import Prepared
from lazyfs.mount.contents import NativeLayer
from lazyfs.oci.config import BadConfig, decode_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.reference import parse_reference
from lazyfs.registry.source import AccessOptions, EndpointState
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.provenance import Provenance
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.agreements import load_agreement
from lazyfs.store.blobs import load_blob
from lazyfs.store.content.unwritten import UnstoredContent, open_content
from lazyfs.store.images import LayerRecord, StoredImage, load_image
from lazyfs.store.layers import load_table
from lazyfs.store.paths import Store
from lazyfs.store.points import RestartPoints
from lazyfs.store.profiles import load_alike, load_profile, save_profile

log = logging.getLogger(__name__)


WITH_GAPS = (Format.ESTARGZ, Format.LEGACY, Format.EXTERNAL_TOC, Format.ZSTD_STARGZ)
"""Formats whose headers lie between the payloads, and nowhere else."""


class ImageGone(StoreError):
    """What was prepared is no longer in the store."""


class OpenImage(msgspec.Struct, frozen=True):
    """An open image, as the drivers and the commands see it.

    ``contents`` reads the devices; ``attributes`` are the mount root's own names (the index has
    those that hold for every mount of the image); ``layers`` are bottom first.
    """

    prepared: Prepared
    store: Store
    index: ErofsIndex
    provenance: Provenance
    contents: Fetcher
    devices: tuple[Device, ...]
    attributes: Mapping[bytes, bytes | Callable[[], bytes]]
    origin: Origin
    health: Health
    forecast: Forecast

    @property
    def layers(self) -> tuple[LayerRecord, ...]:
        """The records of the layers, bottom first."""
        return self.prepared.image.layers

    @property
    def index_path(self) -> str:
        """Where the rootfs index lies."""
        digest = parse_digest(self.prepared.image.manifest_digest)
        return str(self.store.image_path(digest) / "index.erofs")

    def native_layers(self) -> tuple[NativeLayer, ...]:
        """Return where the layers' bytes lie, for a driver that reads them by itself."""
        return tuple(
            NativeLayer(device.table.buffer, device.content.states, device.content.fd)
            for device in self.devices
        )

    async def prefetch(self, mode: str, limits: Limits = NO_LIMITS) -> None:
        """Fetch in the background; *mode* is one of ``prefetch.MODES``.

        Begins by looking for chunks that other layers of the store hold already.  Where nothing is
        missing nothing is looked into.
        """
        if all(device.is_complete() for device in self.devices):
            return
        if not self.prepared.is_volatile and self.contents.twins.are_possible():
            await trio.to_thread.run_sync(self.contents.twins.search)
        profile = load_profile(self.store, parse_digest(self.prepared.image.manifest_digest))
        profiled = None
        if profile is not None:
            digests = [layer.toc_digest for layer in self.layers]
            profiled = replay(profile, self.devices, digests)
        if limits.make_room is not None:
            limits = replace(limits, make_room=partial(self._make_room, limits.make_room))
        if profiled is None and mode in FORECASTING and not self._has_landmark():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.forecast.run, limits.throttle)
                alike = load_alike(self.store, self.origin.repository)
                if alike is not None:
                    await trio.lowlevel.checkpoint()  # what is known comes before what is likely
                    common = replay_alike(alike, self.devices)
                    await prefetch(self.contents, self.devices, "profile", common, limits)
        await prefetch(self.contents, self.devices, mode, profiled, limits)

    async def recall_trees(self) -> None:
        """Say in the health which layers were found to be two trees, by an earlier comparison."""
        for layer, device in zip(self.layers, self.devices, strict=True):
            key, blob = parse_digest(layer.toc_digest), device.descriptor.digest
            found = load_agreement(self.store, key, blob)
            if found is not None and found.diff_id == layer.diff_id:
                self.note_tree(device, found.differences)
            await trio.lowlevel.checkpoint()

    @property
    def is_compared(self) -> bool:
        """Whether the tar and the TOC of every layer have been compared."""
        return all(device.agrees is not None for device in self.devices)

    def note_tree(self, device: Device, differences: str) -> None:
        """Note how a layer's tar and its TOC differ; that they do is the mount's health."""
        device.agrees = not differences
        if differences:
            digest = device.descriptor.digest
            log.error(
                "layer %s: its table of contents contradicts its tar: %s", digest, differences
            )
            self.health.report(f"contradiction {digest}")

    def _has_landmark(self) -> bool:
        return any(device.table.prefetch_end for device in self.devices)

    async def _make_room(self, make_room: MakeRoom, size: int) -> bool:
        """Say whether there is room; layers that are open for their twins only are in its way."""
        if await make_room(size):
            return True
        await trio.to_thread.run_sync(self.contents.twins.close)
        return await make_room(size)

    def save_profile(self) -> None:
        """Keep the order of first reads for the next mount; a full disk is no trouble."""
        if self.prepared.is_volatile:
            return
        digest = parse_digest(self.prepared.image.manifest_digest)
        try:
            old = load_profile(self.store, digest)
            recorder = self.contents.recorder
            profile = recorder.profile(self.prepared.image, old, self.origin.repository)
            if profile is not None and profile != old:
                save_profile(self.store, digest, profile)
        except StoreError as exc:
            log.info("profile: %s", exc.message)
        except Exception:  # a profile is worth no mount
            log.exception("profile")

    def statistics(self) -> dict[str, Any]:
        """Return all counts in JSON's types; sizes in bytes.  Fields: docs/reference/json.md.

        Looks at each chunk, and may do so in a thread.
        """
        source, contents = self.origin.statistics, self.contents
        return {
            "requested": self.prepared.wanted,
            "resolved": self.prepared.resolved,
            "manifestDigest": self.prepared.image.manifest_digest,
            "platform": self.prepared.image.platform,
            "trust": msgspec.to_builtins(self.prepared.trust),
            "health": self.health.text,
            "patienceSeconds": contents.outage.patience,
            "unavailable": None
            if contents.outage.since is None
            else {"since": contents.outage.since, "reason": contents.outage.reason},
            "unstored": None
            if self.health.unstored.since is None
            else {"since": self.health.unstored.since, "reason": self.health.unstored.reason},
            "layers": [
                _layer_document(layer, device)
                for layer, device in zip(self.layers, self.devices, strict=True)
            ],
            "reads": {
                "hits": contents.hits,
                "misses": contents.statistics.misses,
                "waits": contents.statistics.reader_waits.document(),
                "slotWaits": contents.statistics.slot_waits.document(),
            },
            "fetch": fetch_document(contents.statistics, self.devices),
            "link": {
                "roundTripSeconds": contents.pace.round_trip,
                "bandwidth": contents.pace.bandwidth,
            },
            "source": {
                "requests": source.requests,
                "receivedSize": source.received_size,
                "retries": source.retries,
                "errors": source.errors,
            },
            "prepared": {
                "requests": self.prepared.requests,
                "receivedSize": self.prepared.received_size,
            },
            "endpoints": [_endpoint_document(state) for state in self.origin.endpoints()],
        }


def _layer_document(layer: LayerRecord, device: Device) -> dict[str, Any]:
    return {
        "digest": layer.digest,
        "tocDigest": layer.toc_digest,
        "size": layer.size,
        "contentSize": device.table.payload_size,
        "residentSize": device.content.resident_size(),
        "chunks": device.table.count,
        "agrees": device.agrees,
    }


def _endpoint_document(state: EndpointState) -> dict[str, Any]:
    return {
        "url": state.url,
        "origin": state.is_origin,
        "requests": state.requests,
        "receivedSize": state.received_size,
        "failures": state.failures,
        "reason": state.reason,
        "when": state.when,
        "avoided": state.is_avoided,
    }


@asynccontextmanager
async def open_image(
    prepared: Prepared,
    access: AccessOptions,
    *,
    mount_id: str = "",
    early: Early | None = None,
    patience: float = 0.0,
    catches_gaps: bool = False,
) -> AsyncIterator[OpenImage]:
    """Open what ``prepare`` prepared; no request is made before a read misses, but by *early*.

    *patience* is how many seconds readers wait for a registry that is away.  *catches_gaps*: all of
    it is to be filled, and then compared (one_tree.py).

    The fetcher's tasks live in a nursery of this context; leaving it cancels them.
    """
    try:
        store, stored, tables = _load(prepared)
    except ImageGone as exc:
        # What a command has prepared is damaged, or the server that had it open has died.
        prepared = await _have_again(prepared, access, patience, exc)
        store, stored, tables = _load(prepared)
    origin = None if early is None else early.origin
    if origin is None:
        reference = parse_reference(prepared.requested)
        origin = Origin(reference, access, is_watched=patience > 0)
    health = Health()
    error: Exception | None = None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(origin.aclose)
        devices = _open_devices(stack, store, prepared, tables, origin, health)
        if catches_gaps:
            _catch_gaps(stack, store, prepared, devices)
        config = _load_config(store, prepared)
        if prepared.is_volatile:
            shutil.rmtree(store.root, ignore_errors=True)  # all of it has been read
        twins = Twins(store, devices)
        stack.callback(twins.close)
        nursery = await stack.enter_async_context(trio.open_nursery())
        pace = None if early is None else early.pace
        contents = Fetcher(
            *(devices, origin, twins, nursery),
            report=health.report,
            pace=pace,
            patience=patience,
            unstored=health.unstored,
        )
        health.outage = contents.outage
        if early is not None:
            contents.adopt(early.take())
        image = OpenImage(
            prepared=prepared,
            store=store,
            index=stored.index,
            provenance=stored.provenance,
            contents=contents,
            devices=tuple(devices),
            attributes=_attributes(prepared, mount_id, health),
            origin=origin,
            health=health,
            forecast=Forecast(stored.index, devices, contents, nursery, config),
        )
        try:
            yield image
        except Exception as exc:
            error = exc  # raised below: the nursery would wrap it in a group
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error


def _attributes(
    prepared: Prepared, mount_id: str, health: Health
) -> Mapping[bytes, bytes | Callable[[], bytes]]:
    return mount_attributes(
        requested=prepared.wanted,
        resolved=prepared.resolved,
        index_digest=prepared.index_digest,
        resolved_at=prepared.resolved_at,
        mount_id=mount_id,
        source=prepared.source,
        verify="on-read",
        health=lambda: health.text,
        trust=prepared.trust,
    )


def _open_devices(
    stack: AsyncExitStack,
    store: Store,
    prepared: Prepared,
    tables: Sequence[LayerTable],
    origin: Origin,
    health: Health,
) -> list[Device]:
    """Open the layers' contents, which *stack* closes; *health* is told of those not stored."""
    devices = []
    for number, layer in enumerate(prepared.image.layers, start=1):
        device = _open_device(store, number, layer, origin, prepared, tables[number - 1])
        stack.callback(device.content.close)
        devices.append(device)
        if device.content.trouble:  # nothing will be stored, whatever is fetched
            health.unstored.refused(device.content.folder, device.content.trouble)
    return devices


def _catch_gaps(
    stack: AsyncExitStack, store: Store, prepared: Prepared, devices: Sequence[Device]
) -> None:
    """Have those devices keep gaps whose layers are to be compared once they are filled."""
    for layer, device in zip(prepared.image.layers, devices, strict=True):
        if _is_to_compare(store, layer, device):
            device.gaps = GapStore(device.content.folder)
            stack.callback(device.gaps.close)


def _is_to_compare(store: Store, layer: LayerRecord, device: Device) -> bool:
    """Say whether a layer is to be filled, and its tar to be compared with its TOC then."""
    if device.table.format not in WITH_GAPS or layer.verified_by == INDEX:
        return False
    if device.table.count and device.is_complete():
        return False  # its gaps went by without us
    return load_agreement(store, parse_digest(layer.toc_digest), device.descriptor.digest) is None


def _load_config(store: Store, prepared: Prepared) -> Mapping[str, Any]:
    """Return the image's config, empty where it is gone: a cache that was emptied in part."""
    data = load_blob(store, parse_digest(prepared.image.config_digest))
    try:
        return {} if data is None else decode_config(data).raw
    except BadConfig:
        return {}


def _load(prepared: Prepared) -> tuple[Store, StoredImage, list[LayerTable]]:
    """Return the store, and what it has of an image, sound and fitting; raises ImageGone."""
    store = Store(Path(prepared.store_dir))
    stored = load_image(store, parse_digest(prepared.image.manifest_digest))
    if stored is None or len(stored.index.devices) != len(prepared.image.layers):
        raise ImageGone(f"store {store.root}: the index of {prepared.resolved} is not there")
    tables = []
    for layer, device in zip(prepared.image.layers, stored.index.devices, strict=True):
        table = load_table(store, parse_digest(layer.toc_digest))
        if table is None or table.device_size != device.size:
            raise ImageGone(
                f"store {store.root}: the layer table of {layer.digest} is not there",
                hint="the cache was changed meanwhile: mount again",
            )
        tables.append(table)
    return store, stored, tables


async def _have_again(
    prepared: Prepared, access: AccessOptions, patience: float, reason: ImageGone
) -> Prepared:
    """Make what is gone of an image again; raises *reason* where that fails."""
    from lazyfs.image.again import prepare_again  # noqa: PLC0415 - most never need it

    if prepared.is_volatile:
        raise reason  # nothing says where else it could be made
    try:
        folder = Path(prepared.store_dir)
        return await prepare_again(prepared, access, cache_dir=folder, patience=patience)
    except LazyfsError as exc:
        log.warning("%s", exc.message)
        raise reason from exc


def _open_device(
    store: Store,
    number: int,
    layer: LayerRecord,
    origin: Origin,
    prepared: Prepared,
    table: LayerTable,
) -> Device:
    toc_digest = parse_digest(layer.toc_digest)
    descriptor = Descriptor(layer.media_type, parse_digest(layer.digest), layer.size)
    make = UnstoredContent if prepared.is_volatile else open_content
    content = make(store.layer_path(toc_digest), table)
    content.trouble = prepared.trouble or content.trouble
    points = RestartPoints(store, toc_digest, layer.size)
    if prepared.is_volatile:
        points.load()
    mender = None
    if table.format is Format.TAR_GZIP and not prepared.is_volatile:
        image = parse_digest(prepared.image.manifest_digest)
        mender = PointsMender(store, origin, image, layer, points)
    device = Device(number, descriptor, table, content, points, mender)
    device.is_by_index = layer.verified_by == INDEX
    return device
