"""What the rest of lazyfs asks of a place that holds images; no transport is visible here."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lazyfs.digest import Digest
from lazyfs.oci.descriptor import Descriptor


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """How to reach a registry.

    ``environment`` is what credential and proxy variables are read from (the command line passes
    the process's own, tests a dictionary).  Times are in seconds: ``connect_seconds`` for a
    connection, ``idle_seconds`` between two pieces of a body; there is no limit on the whole.
    """

    authfile: Path | None = None
    plain_http: bool = False
    connect_seconds: float = 10.0
    idle_seconds: float = 30.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index as received; ``digest`` is of ``data``, and has been checked."""

    data: bytes
    media_type: str
    digest: Digest


@dataclass(slots=True)
class SourceStatistics:
    """Counts since the source was opened; sizes in bytes."""

    requests: int = 0
    received_size: int = 0
    retries: int = 0
    errors: int = 0


class Source(Protocol):
    """One repository: a registry's, or an image layout on disk.

    ``kind`` is "registry" or "layout".  ``repository`` is the canonical name that a resolved
    reference starts with (``docker.io/library/python``, ``oci:/srv/images``).
    """

    kind: str
    repository: str
    statistics: SourceStatistics

    async def fetch_manifest(self, reference: str | Digest) -> Document:
        """Return the manifest or index named by a tag or a digest, its bytes verified.

        Raises NotFound, AccessDenied, Unavailable or VerificationFailed.
        """
        ...

    async def fetch_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a whole small blob of at most *limit* bytes, size and digest verified."""
        ...

    def open_range(
        self, descriptor: Descriptor, start: int, end: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open bytes ``start`` to ``end`` (exclusive) of a blob as a stream of pieces.

        The pieces add up to exactly ``end - start`` bytes, or the iterator raises Unavailable:
        a body is never short and never of another range.  VerificationFailed is raised where the
        blob turns out to have another size.  The bytes are *not* verified.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; idempotent."""
        ...


class Destination(Protocol):
    """Where an image can be written: a registry's repository, or an image layout on disk."""

    repository: str

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there already."""
        ...

    async def push_blob(self, descriptor: Descriptor, content: bytes | Path) -> None:
        """Store a blob whose size and digest the descriptor states."""
        ...

    async def push_manifest(self, data: bytes, media_type: str, tag: str | None) -> Digest:
        """Store a manifest or index, under a tag or by digest only; return its digest."""
        ...

    async def aclose(self) -> None:
        """Close connections; idempotent."""
        ...
