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
from lazyfs.fetch.counts import FetchStatistics, Purpose
from lazyfs.fetch.device import STEP_CHUNKS, Device, Unreadable
from lazyfs.fetch.doubts import Doubts
from lazyfs.fetch.origins.early import EarlyRange
from lazyfs.fetch.origins.flights import Flight
from lazyfs.fetch.origins.health import Unstored
from lazyfs.fetch.origins.origin import Origin
from lazyfs.fetch.origins.outage import GivenUp, Outage, is_away
from lazyfs.fetch.origins.pace import Pace
from lazyfs.fetch.plan import SEGMENT_SIZE, Run, plan_runs
from lazyfs.fetch.pressure import Demand
from lazyfs.fetch.profile import Recorder
from lazyfs.fetch.refused import fetch_again, raise_if_refused
from lazyfs.fetch.spare import Spare
from lazyfs.fetch.store_again import StoreAgain
from lazyfs.fetch.throttle import Throttle
from lazyfs.fetch.transfer import transfer
from lazyfs.fetch.twins import Twins
from lazyfs.store.content.content import ContentLost
from lazyfs.store.content.presence import RESIDENT

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
    ``foresee`` when it is here.  *patience* is how many seconds readers wait for a registry that is
    away (``outage``); *unstored* learns whether the store takes what is fetched.
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
        patience: float = 0.0,
        unstored: Unstored | None = None,
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
        self.origin = origin
        self._nursery = nursery
        self._report = report
        self._workers = trio.CapacityLimiter(WORKERS)
        self.doubts = Doubts(self._workers)
        self._slots = trio.CapacityLimiter(DEMAND_REQUESTS)
        self._spare = Spare()
        self.outage = Outage(origin, nursery, patience)
        self._unstored = unstored or Unstored()
        self._again = StoreAgain(
            *(self._devices, self._spare, self._unstored, nursery, self._workers)
        )
        self._adopted = 0
        self._none_adopted = trio.Event()

    # Reading.

    def read_nowait(self, device: int, offset: int, size: int) -> bytes | None:
        """Return bytes of a device if they are resident, else None; never blocks on a network."""
        dev = self._devices[device]
        chunks = dev.table.covering(offset, offset + size)
        if not dev.content.are_resident(chunks):
            return None
        self.recorder.use(dev, chunks)
        try:
            data = dev.content.read(offset, size)
        except ContentLost as exc:
            log.warning("%s", exc.message)
            return None
        except OSError:
            return None  # ``read`` gets it elsewhere
        self.hits += 1
        self.reached(device, chunks.start)
        return data

    async def read(self, device: int, offset: int, size: int) -> bytes:
        """Return exactly *size* bytes of a device, fetching what is missing.

        What the disk does not give back is fetched, too, and not stored again.
        """
        dev = self._devices[device]
        unstored: dict[int, bytes] = {}
        vain = 0
        while vain < ATTEMPTS:
            unstored |= await self.ensure(device, offset, offset + size)
            try:
                data = dev.assemble(unstored, offset, size)
            except Unreadable as exc:
                vain += exc.chunk in dev.content.unreadable
                self._unstored.refused(dev.content.folder, exc.message)
                await trio.to_thread.run_sync(dev.content.distrust, exc.chunk)
                continue
            except ContentLost as exc:
                log.warning("%s", exc.message)
                data = None
            if data is not None:
                return data
            vain += 1
        what = f"layer {dev.descriptor.digest}: bytes {offset} to {offset + size}"
        raise FetchBroken(f"{what} do not stay in the store", hint=FOREIGN_HINT)

    def lost(self, device: int, offset: int, size: int) -> bool:
        """See to marked bytes that a driver could not read; False where its hole means nothing.

        Where something else has changed the file, all that is marked is doubted.  Otherwise the
        disk does not give the bytes back, and ``read`` gets them elsewhere.
        """
        content = self._devices[device].content
        if not content.has_lost(offset, size):
            return True
        if content.holes_tell:
            log.warning("content store %s: something else has changed it", content.folder)
            content.doubt()
        return content.holes_tell

    # For a driver that reads content files by itself.

    def mark(self, device: int) -> int | None:
        """Return the chunk of which ``reached`` wants to know when it is read, or None."""
        return next(iter(self._devices[device].marks), None)

    def reached(self, device: int, chunk: int) -> None:
        """Read on ahead, if *chunk*, which is being read, is the marked one."""
        dev = self._devices[device]
        if chunk in dev.marks:
            dev.marks.discard(chunk)
            if not self.outage.is_on:
                self._launch(dev, dev.go_ahead(), Purpose.AHEAD)

    def touched(self, touches: Sequence[tuple[int, int]]) -> bool:
        """Note (device, chunk) of first reads, in their order; False: none are wanted soon."""
        for device, chunk in touches:
            dev = self._devices[device]
            self.recorder.use(dev, range(chunk, chunk + 1))
        return self.recorder.is_recording

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
        self.recorder.use(dev, chunks)
        await self.doubts.confirm_around(dev, chunks)
        unstored: dict[int, bytes] = {}
        missing = self._missing(dev, chunks, unstored)
        if not missing:
            return unstored
        self.statistics.misses += 1
        began = trio.current_time()
        try:
            while missing:
                try:
                    await self._fetch_missing(dev, missing, unstored, began)
                    break
                except LazyfsError as exc:
                    self.outage.bear(exc, began)
                missing = self._missing(dev, chunks, unstored)
        finally:
            self.statistics.reader_waits.add(trio.current_time() - began)
        return unstored

    def _missing(self, dev: Device, chunks: Iterable[int], unstored: dict[int, bytes]) -> list[int]:
        """Return those of *chunks* that are not here; into *unstored* goes what is in memory."""
        missing = []
        for chunk in chunks:
            if dev.content.states[chunk] != RESIDENT and chunk not in unstored:
                spare = self._spare.get(dev.number, chunk)
                if spare is None:
                    missing.append(chunk)
                else:
                    unstored[chunk] = spare
        return missing

    async def _fetch_missing(
        self, dev: Device, missing: list[int], unstored: dict[int, bytes], began: float
    ) -> None:
        """Have *missing* chunks fetched, for a reader who waits since *began*."""
        wanted = [chunk for chunk in missing if chunk not in dev.flights]
        start = dev.table.blob_offset(missing[0])
        if wanted and self.outage.is_on:
            await self.outage.wait_over(dev.descriptor, start, began)
            missing = self._missing(dev, missing, unstored)
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
            await self._land(dev, flights, unstored, began, start)
        if self.foresee is not None:
            for chunk in missing:
                self.foresee(dev, chunk)

    async def _land(
        self,
        dev: Device,
        flights: Sequence[tuple[int, Flight]],
        unstored: dict[int, bytes],
        began: float,
        start: int,
    ) -> None:
        """Wait for *flights*; raise what ends one, or OutOfPatience where nothing comes."""
        for chunk, flight in flights:
            while not flight.is_done:
                # Looked at where patience is over only: there may be thousands.
                progress = (each.progress for _, each in flights if not each.is_done)
                again = self.outage.look_again(began, progress, dev.descriptor, start)
                with trio.move_on_at(again):
                    await flight.wait()
            data = await flight.wait()
            if data is not None:
                unstored[chunk] = data

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
            was_away = True
            while was_away:
                await self.outage.wait_over(dev.descriptor, run.start)
                # Meanwhile readers may have asked for chunks of this run.
                run.chunks = [chunk for chunk in run.chunks if dev.is_wanted(chunk)]
                if not run.chunks:
                    break
                run.fit(dev.table)
                if throttle is not None:
                    throttle.spend(run.end - run.start)
                dev.take_off(run)
                was_away = await self._fetch(dev, run) and self.outage.patience > 0

    async def _fetch(self, dev: Device, run: Run) -> bool:
        """Fetch a run; say whether the registry was away.

        Every flight of it has ended when this returns, however it returns.
        """
        error: LazyfsError | None = None
        claim = min(run.chunks), max(run.chunks)
        try:
            with self.outage.attempt(run.progress, dev.descriptor, run.start):
                await self._claim(dev, run, claim)
                for part in await self._without_stored(dev, run):
                    bad = await self._transfer(dev, part)
                    if bad:
                        await self._fetch_again(dev, part, bad)
        except LazyfsError as exc:
            self.statistics.failed_requests += 1
            level = logging.DEBUG if isinstance(exc, GivenUp) else logging.WARNING
            log.log(level, "layer %s: %s", dev.descriptor.digest, exc.message)
            self.outage.note(exc, dev.descriptor, run.start, run.progress)
            error = exc
        except Exception:  # a bug must cost one read, not the mount
            log.exception("layer %s: fetching %d-%d", dev.descriptor.digest, run.start, run.end)
        finally:
            dev.content.release(*claim)
            for chunk in list(run.flights):
                flight = dev.take_down(run, chunk)
                if flight is not None:
                    flight.fail(error or FetchBroken(f"chunk {chunk}: fetching was broken off"))
        return error is not None and is_away(error)

    async def _claim(self, dev: Device, run: Run, claim: tuple[int, int]) -> None:
        """Wait while another process fetches chunks of *run*; land what it has fetched."""
        while not dev.content.claim(*claim):
            await trio.sleep(CLAIM_SECONDS)
            dev.land_resident(run)
            if not run.chunks:
                return
        dev.land_resident(run)
        if run.chunks:
            run.fit(dev.table)

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
        dev.land_resident(run)
        gap = self.pace.gap_size
        parts = plan_runs(dev.table, run.chunks, gap=gap, purpose=run.purpose)
        for part in parts:
            part.flights, part.early, part.progress = run.flights, run.early, run.progress
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
            if data is None:
                self._unstored.taken()
            else:
                self._spare.put(dev.number, chunk, data)
                self.statistics.unstored_chunks += 1
                self._unstored.refused(dev.content.folder, dev.content.trouble)
                self._again.begin()
            flight = dev.take_down(run, chunk)
            if flight is not None:
                flight.land(data)

        return await transfer(
            self.origin.source, dev, run, workers=self._workers, pace=self.pace, landed=landed
        )

    async def _fetch_again(self, dev: Device, run: Run, bad: dict[int, str]) -> None:
        again = fetch_again(
            dev, run, bad, self._transfer, source=self.origin.source, gap=self.pace.gap_size
        )
        async for count, text in again:
            self.statistics.corrupt_chunks += count
            self._report(text)
