"""Serve a directory's files as a lazyfs mount with everything resident, for the hits bench.

    python -m tools.bench.hits_server build TREE FOLDER
    python -m tools.bench.hits_server serve FOLDER MOUNTPOINT DRIVER [THREADS]

No registry and no blobs: FOLDER holds the index, the layer table, the content file and the
presence map as a mount would have left them.  ``serve`` prints "ready", and on SIGUSR1 and at its
end (SIGTERM) the CPU seconds it used since, its memory, and the requests it answered.
"""

import json
import os
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from lazyfs.digest import digest_of
from lazyfs.errors import StoreError
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.mount.contents import Attribute, NativeLayer
from lazyfs.mount.drivers import open_session
from lazyfs.mount.native import NativeSession
from lazyfs.mount.options import MountOptions, fuse_options
from lazyfs.mount.pyfuse import ImageOperations
from lazyfs.mount.session import PyfuseSession
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.erofs_writer import build_index
from lazyfs.rootfs.layout import device_offsets
from lazyfs.rootfs.provenance import Provenance
from lazyfs.rootfs.table import LayerTable, build_table
from lazyfs.store.content.content import LayerContent
from lazyfs.store.layers import read_whole

CHUNK_SIZE = 4 << 20
BLOB_END = 1 << 40


@dataclass(frozen=True)
class Names:
    digest: str
    diff_id: str


@dataclass(frozen=True)
class ResidentContents:
    """The one device, read as a real mount reads what is resident; nothing can be missing."""

    content: LayerContent

    def read_nowait(self, device: int, offset: int, size: int) -> bytes | None:
        chunks = self.content.table.covering(offset, offset + size)
        return self.content.read(offset, size) if self.content.are_resident(chunks) else None

    async def read(self, device: int, offset: int, size: int) -> bytes:
        raise StoreError(f"device {device}: got bytes at {offset} that are missing, expected none")

    async def ensure(self, device: int, start: int, end: int) -> object:
        return await self.read(device, start, end - start)

    def lost(self, device: int, offset: int, size: int) -> bool:
        raise AssertionError(f"device {device}: {size} marked bytes at {offset} are missing")

    def mark(self, device: int) -> int | None:
        return None

    def reached(self, device: int, chunk: int) -> None:
        pass

    def touched(self, touches: Sequence[tuple[int, int]]) -> bool:
        return False


@dataclass(frozen=True)
class BenchImage:
    """An image with one layer, all of it resident."""

    index: ErofsIndex
    provenance: Provenance
    contents: ResidentContents
    layers: tuple[Names, ...] = (Names("sha256:" + "0" * 64, "sha256:" + "1" * 64),)
    attributes: Mapping[bytes, Attribute] = field(default_factory=dict)
    index_path: str = ""

    def native_layers(self) -> tuple[NativeLayer, ...]:
        content = self.contents.content
        return (NativeLayer(content.table.buffer, content.states, content.fd),)


def entries_of(tree: Path) -> list[tuple[TocEntry, Path]]:
    """Return an entry for everything below *tree*, and where it lies."""
    found = []
    for folder, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted(folders + files):
            path = Path(folder, name)
            status = path.lstat()
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            entry = TocEntry(
                path=os.fsencode(path.relative_to(tree)),
                kind=Kind.DIRECTORY if stat.S_ISDIR(status.st_mode) else Kind.REGULAR,
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                size=size,
                mtime_seconds=int(status.st_mtime),
                chunks=tuple(
                    Chunk(at, min(CHUNK_SIZE, size - at), 0, at, bytes(32))
                    for at in range(0, size, CHUNK_SIZE)
                ),
            )
            found.append((entry, path))
    return found


def build(tree: Path, folder: Path) -> None:
    """Make in *folder* what a warm mount of *tree* has on disk."""
    found = entries_of(tree)
    toc = Toc(digest_of(b"bench"), tuple(entry for entry, _ in found))
    built = build_index([toc], root_xattrs={}, device_tags=[toc.digest.hex])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index").write_bytes(built.image)
    (folder / "provenance").write_bytes(built.provenance)
    (folder / "table").write_bytes(build_table(toc, BLOB_END))
    content = LayerContent(folder, LayerTable(read_whole(folder / "table")))
    for offset, (_, path) in zip(device_offsets(toc), found, strict=True):
        if offset < 0:
            continue
        with path.open("rb") as file:
            while data := file.read(CHUNK_SIZE):
                os.pwrite(content.fd, data, offset)
                offset += len(data)
    content.states[:] = b"\2" * len(content.states)
    content.close()


def resident_size() -> dict[str, int]:
    """Return this process's own memory and the mapped files', in kB."""
    status = Path("/proc/self/status").read_text().split()
    return {name: int(status[status.index(f"Rss{name}:") + 1]) for name in ("Anon", "File")}


HANDLERS = ("lookup", "getattr", "opendir", "readdir", "releasedir", "open", "read", "release")


def count_requests() -> Counter[str]:
    """Have pyfuse3's handlers counted from now on: that driver keeps no statistics."""
    counter: Counter[str] = Counter()

    def counted(name: str, handler: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: object, **named: object) -> object:
            counter[name] += 1
            return handler(*arguments, **named)

        return count

    for name in HANDLERS:
        setattr(ImageOperations, name, counted(name, getattr(ImageOperations, name)))
    return counter


async def serve(folder: Path, mountpoint: str, driver: str, threads: int | None) -> None:
    """Mount, print "ready", and serve until SIGTERM."""
    handled = count_requests() if driver == "pyfuse3" else Counter()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
        async with trio.open_nursery() as nursery:
            table = LayerTable(read_whole(folder / "table"))
            content = LayerContent(folder, table)
            image = BenchImage(
                ErofsIndex(read_whole(folder / "index")),
                Provenance(read_whole(folder / "provenance")),
                ResidentContents(content),
                index_path=str((folder / "index").resolve()),
            )
            if threads is not None:
                session: PyfuseSession = NativeSession(image, mountpoint, threads=threads)
            else:
                session = open_session(driver, image, mountpoint, folder=mountpoint + ".devices")
            session.mount(fuse_options(MountOptions(allow_other=os.geteuid() == 0), "bench"))
            try:
                nursery.start_soon(session.serve)
                await session.wait_ready()
                before = time.process_time()
                print("ready", flush=True)
                async for number in signals:
                    said = {
                        "cpu": time.process_time() - before,
                        "rss": resident_size(),
                        "requests": session.statistics().get("requests", handled.total()),
                    }
                    print(json.dumps(said), flush=True)
                    if number == signal.SIGTERM:
                        break
                await session.unmount()
            finally:
                nursery.cancel_scope.cancel()
                session.close()
                content.close()


def main() -> None:
    what, first, second, *rest = sys.argv[1:]
    if what == "build":
        build(Path(first), Path(second))
    else:
        threads = int(rest[1]) if len(rest) > 1 else None
        trio.run(serve, Path(first), second, rest[0], threads)


if __name__ == "__main__":
    main()
