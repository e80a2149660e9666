"""A source of images in memory, whose bodies a test can hold back, cut or bend."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from lazyfs.digest import Digest
from lazyfs.errors import NotFound
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.source import Document, EndpointState, SourceStatistics


@dataclass
class MemorySource:
    """Serves blobs by digest.

    ``requests`` logs each range.  ``gate`` holds bodies back while it is not None and not set.
    ``bend`` may change the bytes of a range; ``fail`` may raise instead of serving it.
    """

    blobs: dict[Digest, bytes]
    kind: str = "registry"
    repository: str = "test/image"
    piece_size: int = 10_000
    requests: list[tuple[int, int]] = field(default_factory=list)
    gate: trio.Event | None = None
    bend: Callable[[int, bytes], bytes] | None = None
    fail: Callable[[int, int], None] | None = None
    statistics: SourceStatistics = field(default_factory=SourceStatistics)
    is_closed: bool = False
    blamed: list[tuple[int, int]] = field(default_factory=list)
    others: int = 0

    async def fetch_manifest(self, reference: str | Digest) -> Document:
        """Refuse: there are no manifests here."""
        raise NotFound(f"manifest {reference}: got none, expected one")

    async def fetch_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a whole blob."""
        return self.blobs[descriptor.digest][:limit]

    @asynccontextmanager
    async def open_range(
        self, descriptor: Descriptor, start: int, end: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a range of a blob in memory."""
        self.requests.append((start, end))
        self.statistics.requests += 1
        if self.fail is not None:
            self.fail(start, end)
        data = self.blobs[descriptor.digest][start:end]
        if self.bend is not None:
            data = self.bend(start, data)
        yield self._body(data)

    async def _body(self, data: bytes) -> AsyncIterator[bytes]:
        for offset in range(0, len(data), self.piece_size):
            await trio.lowlevel.checkpoint()
            if self.gate is not None:
                await self.gate.wait()
            yield data[offset : offset + self.piece_size]

    def blame(self, descriptor: Descriptor, start: int, end: int, reason: str) -> bool:
        """Note who is blamed; there are as many others as ``others`` says."""
        self.blamed.append((start, end))
        self.others -= 1
        return self.others > 0

    async def connect(self, count: int) -> None:
        """Do nothing: there is nobody to connect to."""

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Return nothing: memory has no endpoints."""
        return ()

    async def aclose(self) -> None:
        """Note that the source was closed."""
        self.is_closed = True
