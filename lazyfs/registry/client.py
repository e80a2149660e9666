"""One repository of a registry, over HTTP: a source and a destination of images.

Spec: OCI distribution-spec.  Verification of manifests and whole blobs happens here; ranges are
handed out as they come.
"""

from pathlib import Path

from lazyfs.digest import Digest, DigestMismatch, verify_digest
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import DOCUMENT_LIMIT
from lazyfs.oci.reference import Reference
from lazyfs.registry.auth import Authorizer
from lazyfs.registry.documents import ACCEPT, receive_document
from lazyfs.registry.errors import TooLarge
from lazyfs.registry.exchange import Exchanger
from lazyfs.registry.hosts import endpoint_of
from lazyfs.registry.push import Pusher
from lazyfs.registry.retry import RetryPolicy, persist
from lazyfs.registry.source import AccessOptions, Document, SourceStatistics
from lazyfs.registry.stream import BlobStream, Locations
from lazyfs.registry.tokens import pull_scope
from lazyfs.registry.transport import Transport


class RegistryClient:
    """The repository that *reference* names; of the reference itself only that is used.

    ``warnings`` are the registry's own, for people, each once.
    """

    kind = "registry"

    def __init__(
        self,
        reference: Reference,
        options: AccessOptions,
        *,
        policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - immutable
    ) -> None:
        self.repository = reference.name
        self.statistics = SourceStatistics()
        endpoint = endpoint_of(reference.registry, plain_http=options.plain_http)
        self._transport = Transport(options, self.statistics)
        authorizer = Authorizer(self._transport, endpoint, reference.repository, options)
        self._exchanger = Exchanger(self._transport, endpoint, authorizer)
        self._base = f"{endpoint.url}/v2/{reference.repository}"
        self._scope = pull_scope(reference.repository)
        self._policy = policy
        self._locations = Locations()
        self._pusher = Pusher(
            self._exchanger, self._base, reference.repository, policy, self.statistics
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the registry warned of."""
        return tuple(self._exchanger.warnings)

    async def fetch_manifest(self, reference: str | Digest) -> Document:
        """Return the manifest or index named by a tag or a digest, its bytes verified.

        Bytes that do not have the digest are asked for once more: something on the way may have
        kept the wrong ones.
        """
        try:
            return await persist(
                lambda: self._fetch_manifest(reference), self._policy, self.statistics
            )
        except DigestMismatch:
            return await persist(
                lambda: self._fetch_manifest(reference), self._policy, self.statistics
            )

    async def _fetch_manifest(self, reference: str | Digest) -> Document:
        url = f"{self._base}/manifests/{reference}"
        answer = await self._exchanger.request(
            "GET", url, self._scope, {200}, headers={"accept": ACCEPT}
        )
        try:
            data = await answer.read(DOCUMENT_LIMIT)
        finally:
            await answer.aclose()
        stated = answer.headers.get("content-type")
        return receive_document(data, stated, reference, f"manifest {self.repository}")

    async def fetch_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a whole small blob of at most *limit* bytes, size and digest verified."""
        if descriptor.size > limit:
            raise TooLarge(
                f"blob {descriptor.digest}: got {descriptor.size} bytes, expected at most {limit}"
            )
        pieces: list[bytes] = []
        async with self.open_range(descriptor, 0, descriptor.size) as body:
            async for data in body:
                pieces.append(data)
        blob = b"".join(pieces)
        verify_digest(blob, descriptor.digest, f"blob of {self.repository}")
        return blob

    def open_range(self, descriptor: Descriptor, start: int, end: int) -> BlobStream:
        """Open bytes *start* to *end* (exclusive) of a blob as a stream of pieces."""
        if not 0 <= start <= end <= descriptor.size:
            raise ValueError(f"range {start}-{end} of a blob of {descriptor.size} bytes")
        return BlobStream(
            self._exchanger,
            self._locations,
            f"{self._base}/blobs/{descriptor.digest}",
            self._scope,
            descriptor,
            start,
            end,
            self._policy,
            self.statistics,
        )

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there already."""
        return await self._pusher.has_blob(descriptor)

    async def push_blob(self, descriptor: Descriptor, content: bytes | Path) -> None:
        """Store a blob whose size and digest the descriptor states."""
        await self._pusher.push_blob(descriptor, content)

    async def push_manifest(self, data: bytes, media_type: str, tag: str | None) -> Digest:
        """Store a manifest or index, under a tag or by digest only; return its digest."""
        return await self._pusher.push_manifest(data, media_type, tag)

    async def aclose(self) -> None:
        """Close connections; idempotent."""
        await self._transport.aclose()
