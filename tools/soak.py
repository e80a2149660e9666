"""Read a mount at random for minutes while everything goes wrong that can go wrong with a registry.

Tokens and signed URLs expire, the registry restarts, is away, answers 401, 403, 429, 500 and 503,
cuts bodies short, drips, hangs, ignores ranges and flips bits, and so does a mirror before it.
Meanwhile readers compare every byte they get.  What must hold, or the exit code is 1:

    no read returns a wrong byte
    no read takes longer than the bound
    when the weather is calm again, every file can be read, without mounting again

A round is a mount with an empty cache; rounds follow each other until the time is over.

    python -m tools.soak --seconds 300 --seed 1
"""

import argparse
import errno
import hashlib
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.formats.images import directory, estargz_layer, file, make_layout, tar_bytes
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.mounting import force_unmount
from tests.support.registries import faults
from tests.support.registries.registry import FakeRegistry
from tests.support.registries.registry_wire import Answer, Request, Server

BOUND_SECONDS = 180.0
"""A request that fails for good takes up to 100 s (60 s of patience, then one try of 40 s), and
a reader may wait behind one on the mirror, which has less patience."""

ROUND_SECONDS = 45.0
CALM_SECONDS = 60.0
READERS = 6
USER, PASSWORD = "user", "geheim"
SIZES = [700] * 40 + [20_000] * 40 + [300_000] * 20 + [5_000_000] * 4
EXPECTED_ERRNOS = (errno.EIO, errno.ETIMEDOUT)


@dataclass
class Tally:
    """What the readers saw; ``active`` has the start of each read that has not ended."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    reads: int = 0
    read_size: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest: float = 0.0
    active: dict[int, float] = field(default_factory=dict)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Note how long a read takes."""
        started = time.monotonic()
        self.active[threading.get_ident()] = started
        try:
            yield
        finally:
            with self.lock:
                del self.active[threading.get_ident()]
                self.longest = max(self.longest, time.monotonic() - started)

    def overdue(self) -> float:
        """Return the age of the oldest read that goes on, or 0."""
        now = time.monotonic()
        return max((now - started for started in list(self.active.values())), default=0.0)


class Weather:
    """A registry and its mirror, and what happens to them."""

    def __init__(self, layout: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.events: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self._layout = layout
        self.store = FakeRegistry(layout).start()  # where the signed URLs lead
        self.store.redirect_blobs()
        self.origin = self._open(0, is_origin=True)
        self.mirror = self._open(0, is_origin=False)
        self.tokens = 0

    def _open(self, port: int, *, is_origin: bool) -> FakeRegistry:
        registry = FakeRegistry(self._layout, port=port).start()
        if is_origin:
            registry.require_bearer({USER: PASSWORD}, lifetime_seconds=5)
            registry.redirect_blobs(self.store.url)
            self.store.share_signatures(registry)
        return registry

    def close(self) -> None:
        """End both."""
        for registry in (self.origin, self.mirror, self.store):
            self._count(registry)
            registry.close()

    def _count(self, registry: FakeRegistry) -> None:
        statistics = registry.statistics()
        self.served.update({"requests": statistics["requests"], "bytes": statistics["bytes"]})
        self.served.update({f"status {k}": v for k, v in statistics["statuses"].items()})
        self.served["tokens"] += registry.tokens_issued

    def calm(self) -> None:
        """Let everything work."""
        for registry in (self.origin, self.mirror, self.store):
            registry.faults.clear()
            registry.release_once()

    def storm(self) -> None:
        """Let one more thing go wrong."""
        happening = self.random.choice(EVENTS)
        self.events[happening.__name__.strip("_").replace("_", " ")] += 1
        happening(self)

    def restart(self, seconds: float) -> None:
        """Close one of the two, and open it again after *seconds* on the same port."""
        is_origin = self.random.random() < 0.5
        old = self.origin if is_origin else self.mirror
        port = old.port
        self._count(old)
        old.close()
        time.sleep(seconds)
        new = self._open(port, is_origin=is_origin)
        if is_origin:
            self.origin = new
        else:
            self.mirror = new


def _token_expiry(weather: Weather) -> None:
    weather.origin.expire_tokens()


def _url_expiry(weather: Weather) -> None:
    weather.origin.expire_signed_urls()


def _restart(weather: Weather) -> None:
    weather.restart(weather.random.uniform(0.05, 0.5))


def _outage(weather: Weather) -> None:
    weather.restart(weather.random.uniform(1, 6))


def _lost_connections(weather: Weather) -> None:
    weather.origin.break_connections()
    weather.mirror.break_connections()
    weather.store.break_connections()


def _with(
    name: str, make: Callable[[random.Random], faults.Behaviour]
) -> Callable[[Weather], None]:
    """Return an event that lets the next few answers about blobs misbehave."""

    def event(weather: Weather) -> None:
        for registry in (weather.origin, weather.mirror, weather.store):
            if weather.random.random() < 0.7:
                times = weather.random.randint(1, 12)
                registry.faults.add(make(weather.random), path="sha256:", times=times)

    event.__name__ = name
    return event


def _flipped(random_: random.Random) -> faults.Behaviour:
    """Flip a few bits somewhere in a body of content."""
    place, mask = random_.random(), 1 << random_.randrange(8)

    def behave(request: Request, answer: Answer) -> Answer:
        if answer.status not in (200, 206) or not answer.size:
            return answer
        body = bytearray(answer.content())
        for share in (place, place / 2, place / 3):
            body[int(share * len(body))] ^= mask
        return replace(answer, body=bytes(body))

    return behave


EVENTS: list[Callable[[Weather], None]] = [
    _token_expiry,
    _url_expiry,
    _restart,
    _outage,
    _lost_connections,
    *(
        _with(name, make)
        for name, make in (
            ("429", lambda r: faults.status(429, {"Retry-After": "1"})),
            ("500", lambda r: faults.status(500)),
            ("503", lambda r: faults.status(503)),
            ("403", lambda r: faults.status(403)),
            ("404", lambda r: faults.status(404)),
            ("cut", lambda r: faults.cut(r.randrange(-1, 100_000))),
            ("early end", lambda r: faults.ended_early(r.randrange(100_000))),
            ("drip", lambda r: faults.drip(r.randrange(1, 5000), 0.02)),
            ("hang", lambda r: faults.hang(r.randrange(-1, 50_000))),
            ("whole blob", lambda r: faults.whole()),
            ("short range", lambda r: faults.short(r.randrange(1, 10_000))),
            ("flipped bits", _flipped),
            ("other range", lambda r: faults.content_range("bytes 0-9/10")),
            ("compressed", lambda r: faults.compressed()),
        )
    ),
    _with("flipped bits", _flipped),
]


class Readers:
    """Threads that read files of a mount and compare."""

    def __init__(self, mountpoint: Path, files: dict[str, bytes], tally: Tally, seed: int) -> None:
        self._mountpoint, self._files, self._tally = mountpoint, files, tally
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(seed + number,), daemon=True)
            for number in range(READERS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> bool:
        """Let the readers end; say whether they did within the bound."""
        self._stop.set()
        deadline = time.monotonic() + BOUND_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.1))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, seed: int) -> None:
        choose = random.Random(seed)
        names = list(self._files)
        while not self._stop.is_set():
            name = choose.choice(names)
            data = self._files[name]
            offset = choose.randrange(len(data))
            size = min(choose.choice((1, 4096, 100_000, 1 << 20)), len(data) - offset)
            self.read(name, offset, size)
            self._stop.wait(choose.uniform(0, 0.05))

    def read(self, name: str, offset: int, size: int) -> bool:
        """Read and compare; say whether it could be read."""
        tally = self._tally
        try:
            with tally.timed():
                got = _pread(self._mountpoint / "d" / name, offset, size)
        except OSError as error:
            with tally.lock:
                tally.failed[errno.errorcode.get(error.errno or 0, str(error))] += 1
                if error.errno not in EXPECTED_ERRNOS:
                    tally.wrong.append(f"{name} at {offset}: {error}")
            return False
        with tally.lock:
            tally.reads += 1
            tally.read_size += len(got)
            if got != self._files[name][offset : offset + size]:
                tally.wrong.append(f"{name} at {offset}: {len(got)} bytes that differ")
        return True


def _pread(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while size:
            data = os.pread(descriptor, size, offset)
            if not data:
                break
            pieces.append(data)
            offset, size = offset + len(data), size - len(data)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def all_readable(mountpoint: Path, files: dict[str, bytes], tally: Tally) -> list[str]:
    """Return the files that cannot be read rightly although the weather is calm."""
    left = list(files)
    deadline = time.monotonic() + CALM_SECONDS
    while left and time.monotonic() < deadline:
        bad = []
        for name in left:
            try:
                with tally.timed():
                    got = _pread(mountpoint / "d" / name, 0, len(files[name]) + 1)
            except OSError:
                bad.append(name)
                continue
            if hashlib.sha256(got).digest() != hashlib.sha256(files[name]).digest():
                tally.wrong.append(f"{name}: a whole file that differs")
        left = bad
        if left:
            time.sleep(1)  # what was refused is refused for ten seconds
    return left


def soak(seconds: float, seed: int, folder: Path) -> int:
    """Run rounds for *seconds*; return the exit code."""
    content = random.Random(seed)
    files = {f"f{number}": content.randbytes(size) for number, size in enumerate(SIZES)}
    layout = folder / "layout"
    names = list(files)
    halves = [names[::2], names[1::2]]
    make_layout(
        layout,
        [
            estargz_layer(
                tar_bytes([directory("d"), *(file(f"d/{name}", files[name]) for name in half)]),
                chunk_size=256 << 10,
            )
            for half in halves
        ],
    )
    Server.hang_limit_seconds = 45.0  # beyond what a client waits for
    weather = Weather(layout, seed)
    tally = Tally()
    unreadable: list[str] = []
    rounds = 0
    totals: Counter[str] = Counter()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and not tally.wrong and not unreadable:
            rounds += 1
            unreadable = _round(weather, folder, files, tally, totals, seed + rounds, end)
            report(seconds - (end - time.monotonic()), tally, weather)
    finally:
        weather.close()
    print(f"rounds            {rounds}")
    print(f"reads             {tally.reads}, {tally.read_size / 1e6:.0f} MB compared")
    print(f"failed reads      {dict(tally.failed)} (allowed during the storm)")
    print(f"longest read      {tally.longest:.1f} s (bound {BOUND_SECONDS:.0f} s)")
    print(f"events            {dict(weather.events.most_common())}")
    print(f"served            {dict(sorted(weather.served.items()))}")
    print(f"the mounts' count {dict(sorted(totals.items()))}")
    print(f"wrong bytes       {len(tally.wrong)}")
    print(f"unreadable files  {len(unreadable)}")
    for problem in [*tally.wrong[:10], *unreadable[:10]]:
        print(f"    {problem}")
    failed = bool(tally.wrong or unreadable or tally.longest > BOUND_SECONDS)
    print("FAILED" if failed else "ok")
    return int(failed)


def _round(
    weather: Weather,
    folder: Path,
    files: dict[str, bytes],
    tally: Tally,
    totals: Counter[str],
    seed: int,
    end: float,
) -> list[str]:
    work = folder / "work"
    mountpoint = work / "mnt"
    mountpoint.mkdir(parents=True)
    hosts = work / "hosts" / weather.origin.host
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'[host."{weather.mirror.url}"]\n')
    lazyfs = Lazyfs(work)
    try:
        image = f"{weather.origin.host}/image"
        options = ("--hosts-dir", work / "hosts", "--creds", f"{USER}:{PASSWORD}")
        prefetch = weather.random.choice(("none", "landmark", "all"))
        lazyfs.mount(*options, "--prefetch", prefetch, image, mountpoint)
        readers = Readers(mountpoint, files, tally, seed)
        stop = min(time.monotonic() + ROUND_SECONDS, end)
        while time.monotonic() < stop and not tally.wrong:
            weather.storm()
            time.sleep(weather.random.uniform(0.1, 1.0))
            if tally.overdue() > BOUND_SECONDS:
                tally.longest = max(tally.longest, tally.overdue())
                break
        weather.calm()
        if not readers.stop():
            tally.longest = max(tally.longest, tally.overdue())
        unreadable = all_readable(mountpoint, files, tally)
        found = lazyfs.status()
        if len(found) != 1 or found[0]["state"] != "serving":
            tally.wrong.append(f"the server has ended: {found}")
            for log in (work / "state").rglob("*.log"):
                print(log.read_text()[-5000:], file=sys.stderr)
            return unreadable
        (status,) = found
        for part in ("source", "fetch"):
            counts = {name: n for name, n in status[part].items() if isinstance(n, int)}
            totals.update({f"{part} {name}": n for name, n in counts.items()})
        lazyfs("umount", mountpoint)
        return unreadable
    finally:
        force_unmount(mountpoint)
        shutil.rmtree(work, ignore_errors=True)


def report(elapsed: float, tally: Tally, weather: Weather) -> None:
    """Say how it goes."""
    print(
        f"{elapsed:6.0f} s  {tally.reads} reads, {sum(tally.failed.values())} failed, "
        f"longest {tally.longest:.1f} s, {sum(weather.events.values())} events",
        file=sys.stderr,
        flush=True,
    )


def run_soak(what: str, soak: Callable[[float, int, Path], int]) -> None:
    """Parse the command line of a soak, *what* it does, and run it for some seconds with a seed."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"soak: {arguments.seconds:.0f} s, seed {arguments.seed}", file=sys.stderr, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="lazyfs-soak-"))
    try:
        code = soak(arguments.seconds, arguments.seed, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


if __name__ == "__main__":
    run_soak(__doc__.splitlines()[0], soak)
