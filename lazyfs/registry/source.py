"""What the rest of lazyfs asks of a place that holds images; no transport is visible here."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from lazyfs.digest import Digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.config.access import AccessOptions as AccessOptions

if TYPE_CHECKING:
    from lazyfs.registry.answers.referrers import Referrers


class Document(msgspec.Struct, frozen=True):
    """A manifest or index as received; ``digest`` is of ``data``, and has been checked."""

    data: bytes
    media_type: str
    digest: Digest


class SourceStatistics(msgspec.Struct):
    """Counts since the source was opened; sizes in bytes."""

    requests: int = 0
    received_size: int = 0
    retries: int = 0
    errors: int = 0


class EndpointState(msgspec.Struct, frozen=True):
    """How one endpoint of a source fares; ``reason`` is the last thing that was wrong with it.

    ``received_size`` is bytes of bodies, those of where it redirects to among them.
    ``when`` is RFC 3339, UTC.  ``is_avoided``: it is asked after the others for now.
    """

    url: str
    is_origin: bool
    requests: int
    received_size: int
    failures: int
    reason: str | None
    when: str | None
    is_avoided: bool


class Source(Protocol):
    """One repository: a registry's, or an image layout on disk.

    ``kind`` is "registry" or "layout".  ``repository`` is the canonical name that a resolved
    reference starts with (``docker.io/library/python``, ``oci:/srv/images``).
    """

    kind: str
    repository: str
    statistics: SourceStatistics

    async def connect(self, count: int) -> None:
        """Have *count* connections, for requests that are about to be made; never raises."""
        ...

    async def fetch_manifest(self, reference: str | Digest) -> Document:
        """Return the manifest or index named by a tag or a digest, its bytes verified.

        Raises NotFound, AccessDenied, Unavailable or VerificationFailed.
        """
        ...

    async def fetch_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a whole small blob of at most *limit* bytes, size and digest verified."""
        ...

    async def fetch_referrers(
        self, subject: Digest, artifact_type: str | None = None
    ) -> "Referrers":
        """Return the manifests that name *subject* as theirs, of one type or of all.

        Raises what kept it from knowing: silence never looks like an empty list.
        """
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

    def blame(self, descriptor: Descriptor, start: int, end: int, reason: str) -> bool:
        """Learn that bytes *start* to *end* of a blob, handed out before, are wrong.

        Whoever they came from is asked last from now on.  Returns whether somebody is left who
        has not been blamed for this blob: worth another try.
        """
        ...

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Return how the places fare that serve this source, in the order of preference."""
        ...

    def once(self) -> "Source":
        """Return the same source, for asking without a second try."""
        ...

    async def reconnect(self) -> None:
        """Let go of all connections; what was under way goes on by new ones."""
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

    async def push_blob(
        self, descriptor: Descriptor, content: bytes | Path, *, mount_from: Sequence[str] = ()
    ) -> None:
        """Store a blob whose size and digest the descriptor states.

        *mount_from* names repositories of the same place that may have it already.
        """
        ...

    async def push_manifest(self, data: bytes, media_type: str, tag: str | None) -> Digest:
        """Store a manifest or index, under a tag or by digest only; return its digest."""
        ...

    async def aclose(self) -> None:
        """Close connections; idempotent."""
        ...
