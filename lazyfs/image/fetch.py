"""``ensure``: the only way in which a byte of an image becomes resident.

A miss becomes flights (one per chunk, whoever waits), flights become runs (one range request
each), and a run is decoded, verified and stored piece by piece in a worker thread while its body
still arrives.  A reader that goes away leaves its flights alive; they belong to the fetcher's
nursery.  docs/concurrency.md says what is atomic between awaits.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import trio

from lazyfs.errors import LazyfsError, StoreError, VerificationFailed
from lazyfs.formats.decode import Decoded, Piece, RangeDecoder
from lazyfs.image.device import Device
from lazyfs.image.flights import Flight
from lazyfs.image.origin import Origin
from lazyfs.image.pace import Pace
from lazyfs.image.plan import Run, plan_runs
from lazyfs.image.profile import Recorder
from lazyfs.image.spare import Spare
from lazyfs.store.content import DOUBTFUL, RESIDENT, LayerContent, NotStored

log = logging.getLogger(__name__)

FEED_SIZE = 256 << 10
"""Compressed bytes handed to a worker at once: a thread hop costs 0.2 ms, inflating these 1 ms."""

REFUSAL_SECONDS = 10.0
"""How long a chunk that was bad twice is refused without asking again."""

CLAIM_SECONDS = 0.005
"""How often a run looks whether another process has fetched its chunks."""

DEMAND_REQUESTS = 8
WORKERS = 2


CALM_SECONDS = 0.3
REST_SECONDS = 1.0
BURST_SECONDS = 1.0


class Pressure(Enum):
    """What readers need of the link, for background work to yield to."""

    NONE = 0
    """Nobody has waited for a request lately."""
    BURST = 1
    """Somebody began to, after a rest: a program starts, and each of its reads waits."""
    STEADY = 2
    """Somebody has for a while: filling the store is what helps most now."""


class ChunkCorrupt(VerificationFailed):
    """A chunk does not have its digest, also when it was fetched again."""


class FetchBroken(StoreError):
    """A bug in fetching, or a store that cannot be written; the log has the traceback."""


@dataclass(slots=True)
class FetchStatistics:
    """Counts since the image was opened; sizes are compressed bytes asked for."""

    demand_requests: int = 0
    demand_size: int = 0
    background_requests: int = 0
    background_size: int = 0
    misses: int = 0
    corrupt_chunks: int = 0
    failed_requests: int = 0
    unstored_chunks: int = 0


class Fetcher:
    """Makes ranges of devices resident, and reads them.

    *report* is told of each chunk that is corrupt for good.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        origin: Origin,
        nursery: trio.Nursery,
        *,
        report: Callable[[str], None],
    ) -> None:
        self.statistics = FetchStatistics()
        self.recorder = Recorder(devices)
        self.pace = Pace(trio.current_time)
        self._devices = {device.number: device for device in devices}
        self._origin = origin
        self._nursery = nursery
        self._report = report
        self._workers = trio.CapacityLimiter(WORKERS)
        self._slots = trio.CapacityLimiter(DEMAND_REQUESTS)
        self._demand_runs = 0
        self._demand_ended = self._burst_started = -math.inf
        self._spare = Spare()
        self._is_full = False

    # Reading.

    def read_nowait(self, device: int, offset: int, size: int) -> bytes | None:
        """Return bytes of a device if they are resident, else None; never blocks on a network."""
        dev = self._devices[device]
        states = dev.content.states
        chunks = dev.table.covering(offset, offset + size)
        for chunk in chunks:
            if states[chunk] != RESIDENT:
                return None
        if self.recorder.is_recording:
            self.recorder.note(device, chunks)
        self.reached(device, chunks.start)
        return dev.content.read(offset, size)

    async def read(self, device: int, offset: int, size: int) -> bytes:
        """Return exactly *size* bytes of a device, fetching what is missing."""
        unstored = await self.ensure(device, offset, offset + size)
        dev = self._devices[device]
        if not unstored:
            return dev.content.read(offset, size)
        result = bytearray(size)
        for chunk in dev.table.covering(offset, offset + size):
            start = dev.table.device_offset(chunk)
            low = max(offset, start)
            high = min(offset + size, start + dev.table.size(chunk))
            data = unstored.get(chunk)
            result[low - offset : high - offset] = (
                dev.content.read(low, high - low)
                if data is None
                else memoryview(data)[low - start : high - start]
            )
        return bytes(result)

    # For a driver that reads content files by itself.

    def mark(self, device: int) -> int | None:
        """Return the chunk of which ``reached`` wants to know when it is read, or None."""
        return next(iter(self._devices[device].marks), None)

    def reached(self, device: int, chunk: int) -> None:
        """Read on ahead, if *chunk*, which is being read, is the marked one."""
        dev = self._devices[device]
        if chunk in dev.marks:
            dev.marks.discard(chunk)
            self._launch(dev, dev.go_ahead(), is_demand=False)

    def touched(self, touches: Sequence[tuple[int, int]]) -> bool:
        """Note (device, chunk) of first reads, in their order; False: no more are wanted."""
        for device, chunk in touches:
            if not self.recorder.is_recording:
                break
            self.recorder.note(device, range(chunk, chunk + 1))
        return self.recorder.is_recording

    async def ensure(self, device: int, start: int, end: int) -> dict[int, bytes]:
        """Make device bytes *start* to *end* resident.

        Returns the chunks that were verified but could not be stored (full disk), by number.
        Raises ChunkCorrupt, or whatever the source raised.
        """
        dev = self._devices[device]
        states = dev.content.states
        chunks = dev.table.covering(start, end)
        if self.recorder.is_recording:
            self.recorder.note(device, chunks)
        doubtful = [chunk for chunk in chunks if states[chunk] == DOUBTFUL]
        if doubtful:
            await self._confirm(dev, doubtful)
        missing = []
        unstored: dict[int, bytes] = {}
        for chunk in chunks:
            if states[chunk] != RESIDENT:
                spare = self._spare.get(device, chunk)
                if spare is None:
                    missing.append(chunk)
                else:
                    unstored[chunk] = spare
        if not missing:
            return unstored
        self.statistics.misses += 1
        wanted = [chunk for chunk in missing if chunk not in dev.flights]
        if wanted:
            for chunk in wanted:
                self._raise_if_refused(dev, chunk)
            wanted = dev.with_stream(wanted)
            self._launch(dev, dev.with_neighbours(wanted), is_demand=True)
        flights = [(chunk, dev.flights[chunk]) for chunk in missing if chunk in dev.flights]
        for chunk, flight in flights:
            data = await flight.wait()
            if data is not None:
                unstored[chunk] = data
        return unstored

    async def _confirm(self, dev: Device, doubtful: list[int]) -> None:
        def confirm() -> list[int]:
            return [chunk for chunk in doubtful if not dev.content.confirm(chunk)]

        for chunk in await trio.to_thread.run_sync(confirm, limiter=self._workers):
            log.warning(
                "layer %s: chunk %d was damaged in the store by an unclean stop; fetching it again",
                dev.descriptor.digest,
                chunk,
            )

    def _raise_if_refused(self, dev: Device, chunk: int) -> None:
        refused = dev.refused.get(chunk)
        if refused is None:
            return
        error, until = refused
        if trio.current_time() < until:
            raise error
        del dev.refused[chunk]

    # Requests.

    def pressure(self) -> Pressure:
        """Say how much readers need the link now."""
        now = trio.current_time()
        if self._demand_runs == 0 and now - self._demand_ended > CALM_SECONDS:
            return Pressure.NONE
        return Pressure.BURST if now - self._burst_started < BURST_SECONDS else Pressure.STEADY

    def _launch(self, dev: Device, chunks: list[int], *, is_demand: bool) -> None:
        """Start fetching *chunks* (wanted, in blob order) and return."""
        for run in plan_runs(dev.table, chunks, gap=self.pace.gap_size):
            self._take_off(dev, run)
            self._nursery.start_soon(self._run_demand, dev, run, is_demand)

    @staticmethod
    def _take_off(dev: Device, run: Run) -> None:
        for chunk in run.chunks:
            dev.flights[chunk] = Flight()

    async def _run_demand(self, dev: Device, run: Run, is_demand: bool) -> None:
        now = trio.current_time()
        if is_demand and self._demand_runs == 0 and now - self._demand_ended > REST_SECONDS:
            self._burst_started = now
        self._demand_runs += is_demand
        try:
            async with self._slots:
                self.statistics.demand_requests += 1
                self.statistics.demand_size += run.end - run.start
                await self._fetch(dev, run)
        finally:
            self._demand_runs -= is_demand
            if is_demand:
                self._demand_ended = trio.current_time()

    async def fetch_background(self, dev: Device, chunks: list[int]) -> None:
        """Fetch wanted chunks that nobody waits for yet, in blob order; errors only end flights."""
        for run in plan_runs(dev.table, chunks, gap=self.pace.gap_size):
            # While an earlier run was fetched, readers may have asked for chunks of this one.
            run.chunks = [chunk for chunk in run.chunks if dev.is_wanted(chunk)]
            if not run.chunks:
                continue
            self._take_off(dev, run)
            self.statistics.background_requests += 1
            self.statistics.background_size += run.end - run.start
            await self._fetch(dev, run)

    async def _fetch(self, dev: Device, run: Run) -> None:
        """Fetch a run; every flight of it has ended when this returns, however it returns."""
        error: LazyfsError | None = None
        claim = min(run.chunks), max(run.chunks)
        try:
            await self._claim(dev, run, claim)
            bad = await self._transfer(dev, run) if run.chunks else {}
            for chunk, reason in bad.items():
                await self._fetch_again(dev, chunk, reason)
        except LazyfsError as exc:
            self.statistics.failed_requests += 1
            log.warning("layer %s: %s", dev.descriptor.digest, exc.message)
            error = exc
        except Exception:  # a bug must cost one read, not the mount
            log.exception("layer %s: fetching %d-%d", dev.descriptor.digest, run.start, run.end)
        finally:
            dev.content.release(*claim)
            for chunk in run.chunks:
                flight = dev.flights.pop(chunk, None)
                if flight is not None:
                    flight.fail(error or FetchBroken(f"chunk {chunk}: fetching was broken off"))

    async def _claim(self, dev: Device, run: Run, claim: tuple[int, int]) -> None:
        """Wait while another process fetches chunks of *run*; land what it has fetched."""
        while not dev.content.claim(*claim):
            await trio.sleep(CLAIM_SECONDS)
            self._land_resident(dev, run)
            if not run.chunks:
                return
        self._land_resident(dev, run)
        if run.chunks:
            run.start = dev.table.blob_offset(run.chunks[0])
            run.end = max(map(dev.table.blob_end, run.chunks))

    @staticmethod
    def _land_resident(dev: Device, run: Run) -> None:
        states = dev.content.states
        landed = [chunk for chunk in run.chunks if states[chunk] == RESIDENT]
        if landed:
            run.chunks = [chunk for chunk in run.chunks if states[chunk] != RESIDENT]
        for chunk in landed:
            dev.flights.pop(chunk).land()

    async def _transfer(self, dev: Device, run: Run) -> dict[int, str]:
        """Ask for a run, decode and store it, land its flights; return the bad chunks."""
        decoder = RangeDecoder(_pieces(dev, run.chunks), run.start)
        bad: dict[int, str] = {}
        buffered: list[bytes] = []
        size = 0
        started = self.pace.started()
        is_answered = False
        try:
            async with self._origin.source.open_range(dev.descriptor, run.start, run.end) as body:
                async for data in body:
                    if not is_answered:
                        self.pace.answered(started)
                        is_answered = True
                    self.pace.received(len(data))
                    buffered.append(data)
                    size += len(data)
                    if size >= FEED_SIZE:
                        await self._feed(dev, decoder, b"".join(buffered), bad)
                        buffered.clear()
                        size = 0
        finally:
            self.pace.ended()
        await self._feed(dev, decoder, b"".join(buffered), bad, is_last=True)
        return bad

    async def _feed(
        self,
        dev: Device,
        decoder: RangeDecoder,
        data: bytes,
        bad: dict[int, str],
        *,
        is_last: bool = False,
    ) -> None:
        def decode() -> list[Decoded]:
            decoded = decoder.feed(data)
            if is_last:
                decoded += decoder.finish()
            return [_store(dev.content, item) for item in decoded]

        for item in await trio.to_thread.run_sync(decode, limiter=self._workers):
            if item.error is not None:
                bad[item.key] = item.error
                continue
            if item.data is not None:
                self._spare.put(dev.number, item.key, item.data)
                self._say_full(dev)
            flight = dev.flights.pop(item.key, None)
            if flight is not None:
                flight.land(item.data)

    async def _fetch_again(self, dev: Device, chunk: int, reason: str) -> None:
        """Fetch a chunk that was bad once more, alone; refuse it for a while if it is bad again."""
        log.warning(
            "layer %s: chunk %d: %s; fetching it again", dev.descriptor.digest, chunk, reason
        )
        run = Run(dev.table.blob_offset(chunk), dev.table.blob_end(chunk), [chunk])
        bad = await self._transfer(dev, run)
        if not bad:
            return
        self.statistics.corrupt_chunks += 1
        digest = f"sha256:{dev.table.digest(chunk).hex()}"
        error = ChunkCorrupt(
            f"layer {dev.descriptor.digest}: chunk at blob offset {run.start}: got bytes that are "
            f"wrong ({bad[chunk]}), expected {digest}",
            hint="it was fetched twice; the registry holds, or something on the way makes, "
            "other bytes than were published",
        )
        log.error("%s", error.message)
        self._report(f"corrupt {digest}")
        dev.refused[chunk] = (error, trio.current_time() + REFUSAL_SECONDS)
        dev.flights.pop(chunk).fail(error)

    def _say_full(self, dev: Device) -> None:
        self.statistics.unstored_chunks += 1
        if not self._is_full:
            self._is_full = True
            log.warning(
                "%s: full, or failing: chunks are served without being stored from here on",
                dev.content.folder,
            )


def _pieces(dev: Device, chunks: Sequence[int]) -> list[Piece]:
    table = dev.table
    return [
        Piece(
            chunk,
            table.blob_offset(chunk),
            table.blob_end(chunk),
            table.inner_offset(chunk),
            table.size(chunk),
            table.digest(chunk),
        )
        for chunk in chunks
    ]


def _store(content: LayerContent, item: Decoded) -> Decoded:
    """Store a verified chunk; what comes back has no data, or those the store did not take."""
    if item.data is None:
        return item
    try:
        content.write(item.key, item.data)
    except NotStored:
        return item
    return item._replace(data=None)
