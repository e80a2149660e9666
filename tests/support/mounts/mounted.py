"""An image for drivers without registry, blobs or store: a tree of made files in memory."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from lazyfs.digest import Digest, digest_of
from lazyfs.formats.tocs.toc import Chunk, Kind, Toc, TocEntry
from lazyfs.rootfs.erofs_reader import ErofsIndex
from lazyfs.rootfs.erofs_writer import build_index
from lazyfs.rootfs.layout import device_offsets, device_size
from lazyfs.rootfs.provenance import Provenance
from lazyfs.rootfs.walk import walk_path

CHUNK_SIZE = 64 << 10
MTIME = 1_700_000_000


def regular(path: bytes, data: bytes = b"", mode: int = 0o644, **attributes) -> tuple:
    """Return an entry and its contents, for ``MadeImage``."""
    chunks = tuple(
        Chunk(offset, len(piece), 0, offset, hashlib.sha256(piece).digest())
        for offset in range(0, len(data), CHUNK_SIZE)
        for piece in (data[offset : offset + CHUNK_SIZE],)
    )
    attributes = {"uid": 0, "gid": 0, "mtime_seconds": MTIME} | attributes
    return (
        TocEntry(
            path=path,
            kind=Kind.REGULAR,
            mode=mode,
            size=len(data),
            chunks=chunks,
            digest=hashlib.sha256(data).digest(),
            **attributes,
        ),
        data,
    )


def other(path: bytes, kind: Kind, mode: int = 0o755, **attributes) -> tuple:
    """Return an entry without contents, for ``MadeImage``."""
    attributes = {"uid": 0, "gid": 0, "mtime_seconds": MTIME} | attributes
    return TocEntry(path=path, kind=kind, mode=mode, **attributes), b""


@dataclass
class LayerNames:
    digest: str
    diff_id: str


@dataclass
class MadeContents:
    """Devices in memory.

    ``cold`` devices miss: a reader waits for ``gate``, and then for nothing.  ``faults`` are
    raised instead, by device.  ``log`` has every read, as (was a hit, device, offset, size).
    """

    devices: dict[int, bytes]
    cold: set[int] = field(default_factory=set)
    faults: dict[int, Exception] = field(default_factory=dict)
    gate: trio.Event = field(default_factory=trio.Event)
    waiting: int = 0
    log: list[tuple[bool, int, int, int]] = field(default_factory=list)

    def chill(self, device: int) -> None:
        """Let reads of *device* wait for the gate."""
        self.gate = trio.Event()
        self.cold.add(device)

    def warm(self) -> None:
        """Let nothing be cold."""
        self.cold.clear()

    def break_(self, device: int, error: Exception) -> None:
        """Let reads of *device* fail."""
        self.faults[device] = error

    def mend(self) -> None:
        """Let nothing fail."""
        self.faults.clear()

    def read_nowait(self, device: int, offset: int, size: int) -> bytes | None:
        if device in self.cold or device in self.faults:
            return None
        self.log.append((True, device, offset, size))
        return self.devices[device][offset : offset + size]

    async def read(self, device: int, offset: int, size: int) -> bytes:
        self.log.append((False, device, offset, size))
        if device in self.faults:
            raise self.faults[device]
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return self.devices[device][offset : offset + size]


class MadeImage:
    """What drivers want of an image, made of layers: lists of ``regular`` and ``other``."""

    def __init__(
        self,
        *layers: list[tuple[TocEntry, bytes]],
        attributes: Mapping[bytes, bytes | Callable[[], bytes]] | None = None,
    ) -> None:
        self.tocs = tocs = [
            Toc(digest_of(b"%d" % number), tuple(entry for entry, _ in layer))
            for number, layer in enumerate(layers)
        ]
        built = build_index(
            tocs,
            root_xattrs={b"user.lazyfs.schema": b"1"},
            device_tags=[toc.digest.hex for toc in tocs],
        )
        self.image = built.image
        self.index = ErofsIndex(built.image)
        self.provenance = Provenance(built.provenance)
        self.contents = MadeContents(
            {
                number: _device(toc, layer)
                for number, (toc, layer) in enumerate(zip(tocs, layers, strict=True), start=1)
            }
        )
        self.layers = [
            LayerNames(str(Digest("sha256", f"{n:064x}")), str(Digest("sha256", f"{n + 256:064x}")))
            for n in range(len(layers))
        ]
        self.attributes = dict(attributes or {})

    def nid(self, path: str) -> int:
        """Return the nid of *path*."""
        return walk_path(self.index, path.encode())


def _device(toc: Toc, layer: list[tuple[TocEntry, bytes]]) -> bytes:
    device = bytearray(device_size(toc))
    for offset, (_, data) in zip(device_offsets(toc), layer, strict=True):
        if data:
            device[offset : offset + len(data)] = data
    return bytes(device)
