"""``ensure``: the only way in which a byte of an image becomes resident.

A miss becomes flights (one per chunk, whoever waits), flights become runs (one range request
each), and a run is decoded, verified and stored piece by piece in a worker thread while its body
still arrives.  A reader that goes away leaves its flights alive; they belong to the fetcher's
nursery.  docs/concurrency.md says what is atomic between awaits.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import trio

from lazyfs.errors import LazyfsError, StoreError
from lazyfs.image.counts import FetchStatistics, Purpose
from lazyfs.image.device import STEP_CHUNKS, Device
from lazyfs.image.doubts import Doubts
from lazyfs.image.early import EarlyRange
from lazyfs.image.origin import REFETCHES, Origin
from lazyfs.image.pace import Pace
from lazyfs.image.plan import SEGMENT_SIZE, Run, plan_runs
from lazyfs.image.pressure import Demand
from lazyfs.image.profile import Recorder
from lazyfs.image.refused import and_more, raise_if_refused, refuse
from lazyfs.image.spare import Spare
from lazyfs.image.throttle import Throttle
from lazyfs.image.transfer import transfer
from lazyfs.image.twins import Twins
from lazyfs.store.content import ContentLost
from lazyfs.store.presence import RESIDENT

log = logging.getLogger(__name__)

CLAIM_SECONDS = 0.005
"""How often a run looks whether another process has fetched its chunks."""

DEMAND_REQUESTS = 8
WORKERS = 2

ATTEMPTS = 4
"""How often a reader makes sure of bytes that something else takes away again."""


FOREIGN_HINT = "something else writes to the cache directory"


class FetchBroken(StoreError):
    """A bug in fetching, or a store that cannot be written; the log has the traceback."""


class Fetcher:
    """Makes ranges of devices resident, and reads them.

    *report* is told of each chunk that is corrupt for good.  ``hits`` counts the reads that
    ``read_nowait`` answered.  ``begins`` is told of each chunk that a reader begins to wait for,
    ``foresee`` when it is here.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        origin: Origin,
        twins: Twins,
        nursery: trio.Nursery,
        *,
        report: Callable[[str], None],
        pace: Pace | None = None,
    ) -> None:
        self.hits = 0
        self.statistics = FetchStatistics()
        self.recorder = Recorder(devices)
        self.pace = pace or Pace(trio.current_time)
        self.begins: Callable[[Device, int], None] | None = None
        self.foresee: Callable[[Device, int], None] | None = None
        self.demand = Demand(trio.current_time, self.pace)
        self._devices = {device.number: device for device in devices}
        self.twins = twins
        self._origin = origin
        self._nursery = nursery
        self._report = report
        self._workers = trio.CapacityLimiter(WORKERS)
        self.doubts = Doubts(self._workers)
        self._slots = trio.CapacityLimiter(DEMAND_REQUESTS)
        self._spare = Spare()
        self._is_full = False
        self._adopted = 0
        self._none_adopted = trio.Event()

    # Reading.

    def read_nowait(self, device: int, offset: int, size: int) -> bytes | None:
        """Return bytes of a device if they are resident, else None; never blocks on a network."""
        dev = self._devices[device]
        chunks = dev.table.covering(offset, offset + size)
        if not dev.content.are_resident(chunks):
            return None
        self._use_all(dev, chunks)
        try:
            data = dev.content.read(offset, size)
        except ContentLost as exc:
            log.warning("%s", exc.message)
            return None
        self.hits += 1
        self.reached(device, chunks.start)
        return data

    async def read(self, device: int, offset: int, size: int) -> bytes:
        """Return exactly *size* bytes of a device, fetching what is missing."""
        dev = self._devices[device]
        for _ in range(ATTEMPTS):
            unstored = await self.ensure(device, offset, offset + size)
            try:
                data = dev.read_stored(offset, size, unstored)
            except ContentLost as exc:
                log.warning("%s", exc.message)
                continue
            if data is not None:
                return data
        what = f"layer {dev.descriptor.digest}: bytes {offset} to {offset + size}"
        raise FetchBroken(f"{what} do not stay in the store", hint=FOREIGN_HINT)

    def lost(self, device: int) -> bool:
        """Doubt all that is marked: some of it is gone; False where a hole does not mean that."""
        content = self._devices[device].content
        if content.holes_tell:
            log.warning("content store %s: something else has changed it", content.folder)
            content.doubt()
        return content.holes_tell

    async def warm_up(self) -> None:
        """Ask for one byte that is missing, if nothing has been asked of the origin yet.

        What a first request costs beyond its own round trip (connection, token, redirect) is spent
        then before a reader waits for it.
        """
        if self._origin.is_open:
            return
        for dev in self._devices.values():
            chunk = next((c for c in dev.order if dev.is_missing(c)), None)
            if chunk is None:
                continue
            start = dev.table.blob_offset(chunk)
            try:
                async with self._origin.source.open_range(dev.descriptor, start, start + 1) as body:
                    async for _ in body:
                        pass
            except LazyfsError as exc:
                log.debug("%s", exc.message)  # whoever needs the bytes will be told
            return

    # For a driver that reads content files by itself.

    def mark(self, device: int) -> int | None:
        """Return the chunk of which ``reached`` wants to know when it is read, or None."""
        return next(iter(self._devices[device].marks), None)

    def reached(self, device: int, chunk: int) -> None:
        """Read on ahead, if *chunk*, which is being read, is the marked one."""
        dev = self._devices[device]
        if chunk in dev.marks:
            dev.marks.discard(chunk)
            self._launch(dev, dev.go_ahead(), Purpose.AHEAD)

    def touched(self, touches: Sequence[tuple[int, int]]) -> bool:
        """Note (device, chunk) of first reads, in their order; False: none are wanted soon."""
        for device, chunk in touches:
            dev = self._devices[device]
            if not dev.used[chunk]:
                self._use(dev, chunk)
        return self.recorder.is_recording

    def _use_all(self, dev: Device, chunks: range) -> None:
        """Note that *chunks*, which are consecutive, are read."""
        used = dev.used
        chunk = used.find(0, chunks.start, chunks.stop)
        while chunk >= 0 and self.recorder.is_recording:
            self._use(dev, chunk)
            chunk = used.find(0, chunk + 1, chunks.stop)
        if chunk >= 0:
            used[chunks.start : chunks.stop] = b"\1" * len(chunks)

    def _use(self, dev: Device, chunk: int) -> None:
        """Note that a chunk is read for the first time."""
        dev.used[chunk] = 1
        if self.recorder.is_recording:
            self.recorder.note(dev.number, chunk)

    async def ensure(self, device: int, start: int, end: int) -> dict[int, bytes]:
        """Make device bytes *start* to *end* resident.

        Returns the chunks that were verified but could not be stored (full disk), by number.
        Raises ChunkCorrupt, or whatever the source raised.

        Who wants more than STEP_CHUNKS gets them so many at a time: others come in between.
        """
        dev = self._devices[device]
        chunks = dev.table.covering(start, end)
        unstored: dict[int, bytes] = {}
        for first in range(0, len(chunks), STEP_CHUNKS):
            if first:
                await trio.lowlevel.checkpoint()
            unstored |= await self._ensure(dev, chunks[first : first + STEP_CHUNKS])
        return unstored

    async def _ensure(self, dev: Device, chunks: range) -> dict[int, bytes]:
        states = dev.content.states
        self._use_all(dev, chunks)
        await self.doubts.confirm_around(dev, chunks)
        missing = []
        unstored: dict[int, bytes] = {}
        for chunk in chunks:
            if states[chunk] != RESIDENT:
                spare = self._spare.get(dev.number, chunk)
                if spare is None:
                    missing.append(chunk)
                else:
                    unstored[chunk] = spare
        if not missing:
            return unstored
        self.statistics.misses += 1
        started = trio.current_time()
        try:
            wanted = [chunk for chunk in missing if chunk not in dev.flights]
            if wanted:
                for chunk in wanted:
                    raise_if_refused(dev, chunk)
                wanted = dev.with_stream(wanted)
                self._launch(dev, dev.with_neighbours(wanted), Purpose.DEMAND, due=wanted)
                self.demand.note_miss(is_sequential=dev.is_sequential)
            flights = [(chunk, dev.flights[chunk]) for chunk in missing if chunk in dev.flights]
            if self.begins is not None:
                for chunk in missing:
                    self.begins(dev, chunk)
            # Somebody waits, also where the request was begun for nobody.
            with nullcontext() if wanted else self.demand.request(0):
                for chunk, flight in flights:
                    data = await flight.wait()
                    if data is not None:
                        unstored[chunk] = data
            if self.foresee is not None:
                for chunk in missing:
                    self.foresee(dev, chunk)
        finally:
            self.statistics.reader_waits.add(trio.current_time() - started)
        return unstored

    # Requests.

    def _launch(
        self, dev: Device, chunks: list[int], purpose: Purpose, *, due: Sequence[int] = ()
    ) -> None:
        """Start fetching *chunks* (wanted, in blob order) and return; a reader waits for *due*."""
        gap = self.pace.gap_size
        for run in plan_runs(dev.table, chunks, gap=gap, purpose=purpose, due=due):
            dev.take_off(run)
            self._nursery.start_soon(self._run_demand, dev, run)

    def adopt(self, early: Iterable[EarlyRange]) -> None:
        """Decode what was asked for before the image was open: it is on its way from now on."""
        devices = {dev.descriptor.digest: dev for dev in self._devices.values()}
        for each in early:
            dev = devices.get(each.descriptor.digest)
            chunks = [] if dev is None else dev.within(each.start, each.end)
            if dev is not None and chunks:
                run = Run(each.start, each.end, chunks, purpose=Purpose.PROFILE, early=each)
                dev.take_off(run)
                self._adopted += 1
                self._nursery.start_soon(self._run_adopted, dev, run)

    async def _run_adopted(self, dev: Device, run: Run) -> None:
        try:
            await self._fetch(dev, run)
        finally:
            self._adopted -= 1
            if not self._adopted:
                self._none_adopted.set()

    async def wait_adopted(self) -> None:
        """Return when all that was adopted is here, or cannot be had."""
        if self._adopted:
            await self._none_adopted.wait()

    async def _run_demand(self, dev: Device, run: Run) -> None:
        is_demand = run.purpose is Purpose.DEMAND
        started = trio.current_time()
        with self.demand.request(run.end - run.start) if is_demand else nullcontext():
            async with self._slots:
                if is_demand:
                    self.statistics.slot_waits.add(trio.current_time() - started)
                await self._fetch(dev, run)

    async def fetch_background(
        self,
        dev: Device,
        chunks: list[int],
        *,
        purpose: Purpose = Purpose.BACKGROUND,
        throttle: Throttle | None = None,
    ) -> None:
        """Fetch wanted chunks that nobody waits for yet, in blob order; errors only end flights."""
        segment = SEGMENT_SIZE if throttle is None else throttle.request_size
        for run in plan_runs(
            dev.table, chunks, gap=self.pace.gap_size, purpose=purpose, segment=segment
        ):
            if throttle is not None:
                await throttle.wait()
            # Meanwhile readers may have asked for chunks of this run.
            run.chunks = [chunk for chunk in run.chunks if dev.is_wanted(chunk)]
            if not run.chunks:
                continue
            run.fit(dev.table)
            if throttle is not None:
                throttle.spend(run.end - run.start)
            dev.take_off(run)
            await self._fetch(dev, run)

    async def _fetch(self, dev: Device, run: Run) -> None:
        """Fetch a run; every flight of it has ended when this returns, however it returns."""
        error: LazyfsError | None = None
        claim = min(run.chunks), max(run.chunks)
        try:
            await self._claim(dev, run, claim)
            for part in await self._without_stored(dev, run):
                bad = await self._transfer(dev, part)
                if bad:
                    await self._fetch_again(dev, part, bad)
        except LazyfsError as exc:
            self.statistics.failed_requests += 1
            log.warning("layer %s: %s", dev.descriptor.digest, exc.message)
            error = exc
        except Exception:  # a bug must cost one read, not the mount
            log.exception("layer %s: fetching %d-%d", dev.descriptor.digest, run.start, run.end)
        finally:
            dev.content.release(*claim)
            for chunk in list(run.flights):
                flight = dev.take_down(run, chunk)
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
            run.fit(dev.table)

    @staticmethod
    def _land_resident(dev: Device, run: Run) -> None:
        states = dev.content.states
        landed = [chunk for chunk in run.chunks if states[chunk] == RESIDENT]
        if landed:
            run.chunks = [chunk for chunk in run.chunks if states[chunk] != RESIDENT]
        for chunk in landed:
            flight = dev.take_down(run, chunk)
            if flight is not None:
                flight.land()

    async def _without_stored(self, dev: Device, run: Run) -> list[Run]:
        """Return what is left of *run* to be fetched.

        What is here and doubted is hashed, what other layers of the store hold is copied.
        """
        was_doubtful = await self.doubts.confirm(dev, run.chunks)
        has_twins = self.twins.has(dev, run.chunks)
        if not has_twins and not was_doubtful:
            return [run] if run.chunks else []
        if has_twins:
            copied = await trio.to_thread.run_sync(
                self.twins.copy, dev, run.chunks, limiter=self._workers
            )
            self.statistics.copied_size += copied
        self._land_resident(dev, run)
        gap = self.pace.gap_size
        parts = plan_runs(dev.table, run.chunks, gap=gap, purpose=run.purpose)
        for part in parts:
            part.flights, part.early = run.flights, run.early
        return parts

    async def _transfer(self, dev: Device, run: Run) -> dict[int, str]:
        """Fetch *run* and land its flights; return its bad chunks, with the reason."""
        if dev.mend_points is not None:
            await dev.mend_points(dev, run.chunks)
        traffic = self.statistics.traffic[run.purpose]
        traffic.requests += 1
        traffic.size += run.end - run.start

        def landed(chunk: int, data: bytes | None) -> None:
            traffic.content_size += dev.table.size(chunk)
            dev.fetched[chunk] = run.purpose
            if data is not None:
                self._spare.put(dev.number, chunk, data)
                self._say_full(dev)
            flight = dev.take_down(run, chunk)
            if flight is not None:
                flight.land(data)

        return await transfer(
            self._origin.source, dev, run, workers=self._workers, pace=self.pace, landed=landed
        )

    async def _fetch_again(self, dev: Device, run: Run, bad: dict[int, str]) -> None:
        """Fetch bad chunks of *run* again, from the next endpoint; refuse what all send bad.

        Once at least, and once from each endpoint that has not been blamed for the blob.  Chunks
        that lie together share a request: of a blob that is all wrong, each alone would be a round
        trip, and others wait for this one's slot.
        """
        chunks = sorted(bad, key=dev.position)
        for part in plan_runs(dev.table, chunks, gap=self.pace.gap_size, purpose=run.purpose):
            part.flights = run.flights
            left = {chunk: bad[chunk] for chunk in part.chunks}
            first, reason = next(iter(left.items()))
            log.warning(
                "layer %s: chunk %d%s: %s; fetching it again",
                dev.descriptor.digest, first, and_more(left), reason,
            )  # fmt: skip
            source = self._origin.source
            source.blame(dev.descriptor, part.start, part.end, reason)
            for _ in range(REFETCHES):
                left = await self._transfer(dev, part)
                if not left:
                    break
                part.chunks = [chunk for chunk in part.chunks if chunk in left]
                part.fit(dev.table)
                reason = left[part.chunks[0]]
                if not source.blame(dev.descriptor, part.start, part.end, reason):
                    break
            if left:
                self.statistics.corrupt_chunks += len(left)
                self._report(refuse(dev, run, part.chunks, left))

    def _say_full(self, dev: Device) -> None:
        self.statistics.unstored_chunks += 1
        if not self._is_full:
            self._is_full = True
            log.warning(
                "%s: full, or failing: chunks are served without being stored from here on",
                dev.content.folder,
            )
