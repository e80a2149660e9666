"""Give the layers that the fuzz target ``tree`` makes to others to judge.

Each stack is read, merged and written by the native core and by its twin in Python, which must
agree to the byte; then fsck.erofs checks a sample of the indexes, and the kernel mounts a smaller
one and shows every name, attribute and xattr of it.  The target itself compares what the core
writes with a model (native/fuzz/fuzz_tree.c).  Exit code 1 where one of them finds fault.
"""

import argparse
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lazyfs.errors import FormatError
from lazyfs.formats.tocs import scan
from lazyfs.formats.tocs.scan import ScannedEntries
from lazyfs.formats.tocs.toc import Toc
from lazyfs.formats.tocs.toc_reader import decode_toc
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.erofs_writer import BuiltIndex, build_index
from lazyfs.rootfs.layout import device_size
from lazyfs.rootfs.table import build_table
from tests.support.formats.naive_merge import naive_facts, naive_merge
from tests.support.formats.rootfs import Facts, facts_of
from tests.support.mounts.kernel_erofs import facts_on_disk, kernel_mount, run_tool

BLOB_SIZE = 1 << 30
STACK = 64 << 20
"""Of fsck.erofs: it goes down by recursion, and 8 MiB end some 900 directories deep."""
FSCK_EVERY = 2
MOUNT_EVERY = 4
ROOT = Path(__file__).parent.parent


class Made:
    """What is made of a stack of layers: the index, or what is wrong with them."""

    def __init__(self, documents: Sequence[bytes]) -> None:
        self.tocs: list[Toc] = []
        self.built: BuiltIndex | None = None
        self.tables: list[object] = []
        self.refusal = ""
        try:
            self.tocs = [decode_toc(data, expected=None, blob_size=BLOB_SIZE) for data in documents]
            self.tables = [build_table(toc, BLOB_SIZE) for toc in self.tocs]
            tags = [toc.digest.hex[:64] for toc in self.tocs]
            self.built = build_index(self.tocs, root_xattrs={}, device_tags=tags)
        except FormatError as error:
            self.refusal = f"{type(error).__name__}: {error}"

    @property
    def is_native(self) -> bool:
        return all(isinstance(toc.entries, ScannedEntries) for toc in self.tocs)

    def said(self) -> tuple[object, ...]:
        """Return all that the two ways to make it must agree on."""
        return self.refusal, self.built, self.tables


def made_in_python(documents: Sequence[bytes]) -> Made:
    """Do without the native core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "scan_toc", None)
        return Made(documents)


class Run:
    """Counts, and what is wrong."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.skipped: set[str] = set()

    def check(self, name: str, documents: Sequence[bytes]) -> None:
        """Have one stack judged by all whose turn it is."""
        self.counts["stacks"] += 1
        ours, twin = Made(documents), made_in_python(documents)
        if ours.said() != twin.said():
            self.faults.append(f"{name}: the core and its twin differ {ours.refusal!r}")
        if ours.built is None:
            self.counts["refused"] += 1
            return
        self.counts["taken by the core"] += ours.is_native
        number = self.counts["indexes"]
        self.counts["indexes"] += 1
        facts = facts_of(ErofsIndex(ours.built.image))
        if facts != naive_facts(naive_merge(twin.tocs)):
            self.faults.append(f"{name}: the index says something else than the layers")
        if number % FSCK_EVERY == 0:
            self._try(f"{name}: fsck.erofs", lambda: self._fsck(ours))
        if number % MOUNT_EVERY == 0:
            self._try(f"{name}: kernel", lambda: self._mount(ours))

    def _try(self, name: str, check: Callable[[], None]) -> None:
        try:
            check()
        except pytest.skip.Exception as reason:
            self.skipped.add(str(reason))
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            self.faults.append(f"{name}: {error}")

    def _written(self, made: Made) -> tuple[Path, list[Path]]:
        assert made.built is not None
        image = self._folder / "index.erofs"
        image.write_bytes(made.built.image)
        devices = []
        for number, toc in enumerate(made.tocs):
            devices.append(self._folder / f"device{number}")
            with devices[-1].open("wb") as file:
                file.truncate(device_size(toc))
        return image, devices

    def _fsck(self, made: Made) -> None:
        image, devices = self._written(made)
        run_tool("fsck.erofs", image, devices)
        self.counts["checked by fsck.erofs"] += 1

    def _mount(self, made: Made) -> None:
        assert made.built is not None
        image, devices = self._written(made)
        with kernel_mount(image, devices, self._folder / "mounted") as root:
            facts, _ = facts_on_disk(root)
        expected = facts_of(ErofsIndex(made.built.image))
        assert facts == {path: _as_the_kernel_shows(each) for path, each in expected.items()}
        self.counts["mounted by the kernel"] += 1


def _as_the_kernel_shows(facts: Facts) -> Facts:
    """Return *facts* without what Linux keeps back: user.* of what is no file or directory."""
    if stat.S_ISREG(facts.mode) or stat.S_ISDIR(facts.mode):
        return facts
    xattrs = {name: v for name, v in facts.xattrs.items() if not name.startswith(b"user.")}
    return replace(facts, xattrs=xattrs)


def program() -> str:
    """Compile the target without libFuzzer; return its path."""
    done = subprocess.run(
        [ROOT / "tools/native.sh", "fuzz-plain", "tree"],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return str(ROOT / done.stdout.strip())


def stacks(arguments: Sequence[str], folder: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Run the target with *arguments*; yield the layers' JSON of each input."""
    subprocess.run(
        [program(), *arguments],
        check=True, env={**os.environ, "LAZYFS_FUZZ_OUTPUT": str(folder)}, timeout=600,
    )  # fmt: skip
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        found[path.name.partition(".")[0]].append(path)
    for name, paths in found.items():
        yield name, [path.read_bytes() for path in paths]


def inputs_of(corpus: Path, count: int) -> Iterable[str]:
    """Return *count* files of a corpus, evenly picked."""
    paths = sorted(map(str, corpus.iterdir()))
    return paths[:: max(1, len(paths) // count)][:count]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="stacks of layers")
    parser.add_argument("--seed", type=int, default=0, help="other random stacks for each number")
    parser.add_argument("--corpus", type=Path, help="inputs of libFuzzer instead of random ones")
    chosen = parser.parse_args()
    arguments = [str(chosen.count), str(chosen.seed)]
    if chosen.corpus:
        arguments = [*inputs_of(chosen.corpus, chosen.count)]
    if not scan.can_scan():
        print("fuzz_tree: the native core was not compiled", file=sys.stderr)
        return 2
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    folder = Path(tempfile.mkdtemp(prefix="lazyfs-fuzz-"))
    try:
        (folder / "made").mkdir()
        run = Run(folder)
        for name, documents in stacks(arguments, folder / "made"):
            run.check(name, documents)
    finally:
        shutil.rmtree(folder)
    print(", ".join(f"{count} {what}" for what, count in run.counts.items()))
    for reason in sorted(run.skipped):
        print(f"skipped: {reason}")
    for fault in run.faults:
        print(f"fault: {fault}")
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
