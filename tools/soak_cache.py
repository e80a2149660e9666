"""Read mounts for minutes while their cache loses, truncates and flips bytes: ``make soak-cache``.

Mounts live and come back; meanwhile files of the cache are cut, removed, replaced, zeroed and
changed, under live mounts and at rest, and servers are killed.  What must hold, or the exit code
is 1:

    no read returns a wrong byte after it could be known to be wrong (docs/reference/cache.md)
    when the damage ends, every file can be read

A change in place of a content file under a live mount has no trace.  Reads are excused from then
on, and counted apart, until ``cache verify`` has run or the mount is made again.

    python -m tools.soak_cache --seconds 300 --seed 1
"""

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lazyfs.store.content.presence import DOUBT_SECONDS
from tests.support.formats.images import (
    directory,
    estargz_layer,
    file,
    make_layout,
    plain_layer,
    tar_bytes,
)
from tests.support.mounts.command import Lazyfs
from tests.support.mounts.damage import DAMAGES, LIVE_DAMAGES, age, reboot, rot
from tests.support.mounts.mounting import available_drivers, force_unmount
from tools.soak import run_soak

READERS = 3
SIZES = [700] * 20 + [20_000] * 20 + [300_000] * 6 + [3_000_000]
ROUND_EVENTS = 12
LEAST_ROUNDS = 2
CONTENTS = "layers/*/content"
LIVE_FILES = (CONTENTS, CONTENTS, "layers/*/presence", "layers/*/table", "layers/*/toc.zst",
              "layers/*/spans", "images/*/index.erofs", "images/*/provenance",
              "images/*/record.json", "passes/*", "blobs/*/*")  # fmt: skip


class Seen:
    """What readers saw.  ``excuses`` grows with each change that has no trace.

    A wrong byte counts unless one was under way: made, and not to be known yet, at any time while
    the byte was being read.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reads = 0
        self.size = 0
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.excused = 0
        self.changes = 0
        self.is_excused = False

    def change(self) -> None:
        """Note that a change without a trace is about to be made."""
        with self.lock:
            self.changes += 1
            self.is_excused = True

    def can_know(self) -> None:
        """Note that from now on everything could be known."""
        with self.lock:
            self.is_excused = False


class Reader(threading.Thread):
    """Reads files of a mount at random and compares; half of the time past the kernel's pages."""

    def __init__(self, mountpoint: Path, files: dict[str, bytes], seen: Seen, seed: int) -> None:
        super().__init__(daemon=True)
        self._mountpoint, self._files, self._seen = mountpoint, files, seen
        self._random = random.Random(seed)
        self._ends = threading.Event()
        self.start()

    def stop(self) -> None:
        """End, after the read that is under way."""
        self._ends.set()
        self.join()

    def run(self) -> None:
        """Read until told to end."""
        names = list(self._files)
        while not self._ends.is_set():
            self.read(self._random.choice(names), drops=self._random.random() < 0.5)
            self._ends.wait(0.002)

    def read(self, name: str, *, drops: bool) -> None:
        """Read one file, all of it, and compare."""
        seen, data = self._seen, self._files[name]
        with seen.lock:
            changes, was_excused = seen.changes, seen.is_excused
        try:
            with open(self._mountpoint / name, "rb", buffering=0) as opened:
                if drops:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                got = opened.read()
        except OSError as error:
            with seen.lock:
                seen.failed[error.strerror or str(error)] += 1
            return
        with seen.lock:
            seen.reads += 1
            seen.size += len(got)
            if got == data:
                return
            if was_excused or seen.changes != changes:
                seen.excused += 1
            else:
                what = "zeros" if not got.strip(b"\0") else "other bytes"
                seen.wrong.append(f"{name}: {len(got)} bytes, {what}")


class Trouble:
    """What happens to the cache of one workspace."""

    def __init__(self, lazyfs: Lazyfs, mountpoint: Path, seen: Seen, choose: random.Random) -> None:
        self._lazyfs, self._mountpoint, self._seen, self._choose = lazyfs, mountpoint, seen, choose
        self.events: Counter[str] = Counter()

    def files(self, pattern: str) -> list[Path]:
        """Return the cache's files of a kind, in a random order."""
        found = [each for each in (self._lazyfs.folder / "cache").glob(pattern) if each.is_file()]
        self._choose.shuffle(found)
        return found

    def under_mount(self) -> None:
        """Let something happen under the live mount."""
        happening: Callable[[], None] = self._choose.choice(
            [self._damage, self._damage, self._damage, self._flip, self._verify, self._kill]
        )
        self.events[happening.__name__.strip("_")] += 1
        happening()

    def at_rest(self) -> None:
        """Damage some files while nothing is mounted."""
        for _ in range(self._choose.randrange(4)):
            for path in self.files(self._choose.choice(LIVE_FILES))[:1]:
                name = self._choose.choice(list(DAMAGES))
                self.events[f"{name} at rest"] += 1
                DAMAGES[name](path)
        if self._choose.random() < 0.5:
            self.events["rot at rest"] += 1
            for path in self.files(CONTENTS):
                self._rot(path)

    def _rot(self, content: Path) -> None:
        presence = content.parent / "presence"
        if not presence.exists() or presence.stat().st_size < 4096 or not content.stat().st_size:
            return
        if presence.read_bytes()[8:16] != b"\2\0\0\0\1\0\0\0":  # left unclean: doubted anyway
            return
        for _ in range(5):
            rot(content, self._choose.randrange(content.stat().st_size))
        if self._choose.random() < 0.5:
            reboot(content.parent)
        else:
            age(content.parent, DOUBT_SECONDS + 10)

    def _damage(self) -> None:
        pattern = self._choose.choice(LIVE_FILES)
        damage = LIVE_DAMAGES[self._choose.choice(list(LIVE_DAMAGES))]
        if pattern == CONTENTS and damage.__name__ == "cut_a_page":
            # Until the size is seen to be another, the rest of the page that was cut is zeros.
            self._seen.change()
            for path in self.files(pattern)[:1]:
                damage(path)
            self._verify()
            return
        for path in self.files(pattern)[:1]:
            damage(path)

    def _flip(self) -> None:
        self._seen.change()
        for path in self.files(CONTENTS)[:1]:
            size = path.stat().st_size
            with path.open("r+b", buffering=0) as content:
                for _ in range(10 if size else 0):
                    place = self._choose.randrange(size)
                    os.pwrite(content.fileno(), self._choose.randbytes(3), place)

    def _verify(self) -> None:
        words = ("--repair",) if self._choose.random() < 0.5 else ()
        done = self._lazyfs("cache", "verify", *words)
        if done.returncode not in (0, 6):
            self._seen.wrong.append(f"cache verify: {done.stderr}")
        self._seen.can_know()

    def _kill(self) -> None:
        """Kill the server; where it has a keeper, another one goes on."""
        (status,) = self._lazyfs.status() or ({},)
        if status.get("keeperPid"):
            os.kill(status["pid"], 9)


def make_files(seed: int, layout: Path) -> dict[str, bytes]:
    """Make an image of a lazy and a plain layer; return its files."""
    content = random.Random(seed)
    files = {f"d{n % 2}/f{n}": content.randbytes(size) for n, size in enumerate(SIZES)}
    files["d0/zeros"] = bytes(200_000) + b"end"
    tars = [
        tar_bytes(
            [directory(part), *(file(n, data) for n, data in files.items() if n.startswith(part))]
        )
        for part in ("d0", "d1")
    ]
    make_layout(layout, [estargz_layer(tars[0], chunk_size=64 << 10), plain_layer(tars[1])])
    return files


def soak(seconds: float, seed: int, folder: Path) -> int:
    """Run rounds for *seconds*; return the exit code."""
    choose = random.Random(seed)
    files = make_files(seed, folder / "layout")
    lazyfs = Lazyfs(folder, environment={"LAZYFS_SERVICE": "0"})
    mountpoint = folder / "mnt"
    mountpoint.mkdir()
    seen = Seen()
    trouble = Trouble(lazyfs, mountpoint, seen, choose)
    rounds, end = 0, time.monotonic() + seconds
    try:
        while (time.monotonic() < end or rounds < LEAST_ROUNDS) and not seen.wrong:
            rounds += 1
            driver = choose.choice(available_drivers())
            prefetch = choose.choice(("none", "all"))
            image = f"oci:{folder / 'layout'}"
            lazyfs.mount("--driver", driver, "--prefetch", prefetch, image, mountpoint)
            seen.can_know()
            readers = [
                Reader(mountpoint, files, seen, choose.randrange(1 << 30)) for _ in range(READERS)
            ]
            for _ in range(ROUND_EVENTS):
                trouble.under_mount()
                time.sleep(choose.uniform(0, 0.2))
                if seen.wrong:
                    break
            trouble._verify()
            for reader in readers:
                reader.stop()
            failed = sum(seen.failed.values())
            for name in files:
                readers[0].read(name, drops=True)
            if sum(seen.failed.values()) > failed:
                seen.wrong.append("files cannot be read although the damage has ended")
            lazyfs("umount", mountpoint)
            force_unmount(mountpoint)
            trouble.at_rest()
            print(f"round {rounds}: {seen.reads} reads, {len(seen.wrong)} wrong", file=sys.stderr)
    finally:
        force_unmount(mountpoint)
    print(f"rounds            {rounds}")
    print(f"reads             {seen.reads}, {seen.size / 1e6:.0f} MB compared")
    print(f"failed reads      {dict(seen.failed)}")
    print(f"events            {dict(trouble.events.most_common())}")
    print(f"not to be known   {seen.excused} reads of bytes that had changed without a trace")
    print(f"wrong             {len(seen.wrong)}")
    for problem in seen.wrong[:10]:
        print(f"    {problem}")
    return int(bool(seen.wrong))


if __name__ == "__main__":
    run_soak(__doc__.splitlines()[0], soak)
