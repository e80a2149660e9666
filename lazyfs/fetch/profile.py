"""Recording what is read first, and replaying it at the next cold mount.

Recording costs one look at a byte per chunk and read.  What counts is the start of a workload: the
record ends after a minute or 64 MiB of compressed bytes, so that a backup or a virus scanner that
later reads everything does not become the profile.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import trio

from lazyfs.fetch.device import Device
from lazyfs.fetch.origins.pace import GAP_MIN
from lazyfs.fetch.plan import plan_runs
from lazyfs.rootfs.layout import LAYOUT_VERSION
from lazyfs.rootfs.table import LayerTable
from lazyfs.store.images import ImageRecord
from lazyfs.store.profiles import DIGEST_DIGITS, DIGEST_LIMIT, RANGE_LIMIT, Profile

RECORD_SECONDS = 60.0
RECORD_SIZE = 64 << 20
RECORD_CHUNKS = 1 << 16
"""By bytes alone, a file of one-byte chunks would be millions of them."""
GROUP_SIZE = 2 << 20
END = (-1, -1)  # no access


class Recorder:
    """The order in which chunks of *devices* are read for the first time."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = {device.number: device for device in devices}
        self._accesses: list[tuple[int, int]] = []
        self._size = 0
        self._ends = trio.current_time() + RECORD_SECONDS
        self.is_recording = True

    def use(self, device: Device, chunks: range) -> None:
        """Note that *chunks*, which are consecutive, are read: also for the first time."""
        used = device.used
        chunk = used.find(0, chunks.start, chunks.stop)
        while chunk >= 0 and self.is_recording:
            used[chunk] = 1
            self.note(device.number, chunk)
            chunk = used.find(0, chunk + 1, chunks.stop)
        if chunk >= 0:
            used[chunks.start : chunks.stop] = b"\1" * len(chunks)

    def note(self, device: int, chunk: int) -> None:
        """Note that *chunk* of *device* is being read for the first time."""
        self._accesses.append((device, chunk))
        table = self._devices[device].table
        self._size += table.blob_end(chunk) - table.blob_offset(chunk)
        if (
            self._size > RECORD_SIZE
            or len(self._accesses) >= RECORD_CHUNKS
            or trio.current_time() > self._ends
        ):
            self.is_recording = False

    def profile(
        self, record: ImageRecord, old: Profile | None, repository: str = ""
    ) -> Profile | None:
        """Return what was recorded, followed by what *old* has beyond it; None if nothing was read.

        Together they stay within the bounds of one record, so what is no longer read drops out.
        """
        if not self._accesses:
            return None
        layers = tuple(layer.toc_digest for layer in record.layers)
        accesses = dict.fromkeys((device - 1, chunk) for device, chunk in self._accesses)
        if old is not None and (old.layout, old.layers) == (LAYOUT_VERSION, layers):
            size = self._size
            for layer, chunk in old.accesses:
                table = self._devices[layer + 1].table
                if (layer, chunk) in accesses or chunk >= table.count:
                    continue
                size += table.blob_end(chunk) - table.blob_offset(chunk)
                if size > RECORD_SIZE:
                    break
                accesses[layer, chunk] = None
        tables = [device.table for device in self._devices.values()]
        named = itertools.islice(accesses, DIGEST_LIMIT)
        return Profile(
            record.manifest_digest,
            LAYOUT_VERSION,
            layers,
            tuple(accesses),
            tuple(itertools.islice(_ranges(accesses, tables), RANGE_LIMIT)),
            tuple(_short(tables[layer].digest(chunk)) for layer, chunk in named),
            repository,
        )


def _short(digest: bytes) -> str:
    return digest[: DIGEST_DIGITS // 2].hex()


def _ranges(
    accesses: Iterable[tuple[int, int]], tables: Sequence[LayerTable]
) -> Iterator[tuple[int, int, int]]:
    """Yield (layer, start, end) of blobs: where *accesses* lie, in the groups of ``replay``.

    For whoever asks for them before the layers' tables are here.
    """
    group: dict[int, set[int]] = {}
    size = 0
    for layer, chunk in itertools.chain(accesses, [END]):
        if (layer, chunk) != END:
            table = tables[layer]
            group.setdefault(layer, set()).add(chunk)
            size += table.blob_end(chunk) - table.blob_offset(chunk)
            if size < GROUP_SIZE:
                continue
        for number in sorted(group):
            table = tables[number]
            chunks = sorted(group[number] - table.holes, key=table.blob_offset)
            for run in plan_runs(table, chunks, gap=GAP_MIN):
                yield number, run.start, run.end
        group, size = {}, 0


def replay(
    profile: Profile, devices: Sequence[Device], toc_digests: Sequence[str]
) -> Iterator[tuple[Device, list[int]]]:
    """Yield what a profile asks for: the wanted chunks of one device in blob order, a group each.

    A group is about 2 MiB of compressed bytes that were read one after another, so that what was
    needed first comes first, and what lies together comes together.
    """
    if profile.layout != LAYOUT_VERSION:
        return
    known = dict(zip(toc_digests, devices, strict=True))
    places = [known.get(digest) for digest in profile.layers]
    named = ((places[layer], chunk) for layer, chunk in profile.accesses)
    found = ((device, chunk) for device, chunk in named if device and chunk < device.table.count)
    yield from _grouped(found, devices)


def replay_alike(profile: Profile, devices: Sequence[Device]) -> Iterator[tuple[Device, list[int]]]:
    """Yield, like ``replay``, the chunks that another image's profile names and this one has too.

    Files that are not the same in both are left out.  Where it is wrong it costs bandwidth, at most
    what a record may hold.
    """
    places: dict[str, tuple[Device, int]] = {}
    wanted = set(profile.digests)
    for device in devices:
        for chunk, digest in enumerate(device.table.digests()):
            short = _short(digest)
            if short in wanted:
                places.setdefault(short, (device, chunk))
    size = 0
    found = []
    for short in dict.fromkeys(profile.digests):
        if short in places:
            device, chunk = places[short]
            size += device.table.blob_end(chunk) - device.table.blob_offset(chunk)
            if size > RECORD_SIZE:
                break
            found.append((device, chunk))
    yield from _grouped(found, devices)


def _grouped(
    accesses: Iterable[tuple[Device, int]], devices: Sequence[Device]
) -> Iterator[tuple[Device, list[int]]]:
    group: dict[int, list[int]] = {}
    size = 0
    for device, chunk in accesses:
        if not device.is_wanted(chunk):
            continue
        group.setdefault(device.number, []).append(chunk)
        size += device.table.blob_end(chunk) - device.table.blob_offset(chunk)
        if size >= GROUP_SIZE:
            yield from _in_blob_order(group, devices)
            group, size = {}, 0
    yield from _in_blob_order(group, devices)


def _in_blob_order(
    group: dict[int, list[int]], devices: Sequence[Device]
) -> Iterator[tuple[Device, list[int]]]:
    for device in devices:
        chunks = [chunk for chunk in group.get(device.number, ()) if device.is_wanted(chunk)]
        if chunks:
            yield device, device.with_stream(sorted(chunks, key=device.position))
