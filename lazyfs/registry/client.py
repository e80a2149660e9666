"""One repository, over HTTP, wherever it is served: a source and a destination of images.

Spec: OCI distribution-spec.  Verification of manifests and whole blobs happens here; ranges are
handed out as they come.  Mirrors are asked before the registry itself, as the configuration has
it; only the registry is written to.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import trio

from lazyfs.digest import Digest, DigestMismatch, verify_digest
from lazyfs.errors import LazyfsError, UsageError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import DOCUMENT_LIMIT
from lazyfs.oci.reference import Reference
from lazyfs.registry.answers.referrers import Referrers, Support
from lazyfs.registry.config.configured import load_endpoints
from lazyfs.registry.config.endpoints import PULL, PUSH, REFERRERS, RESOLVE, Endpoint
from lazyfs.registry.config.errors import TooLarge
from lazyfs.registry.config.registries_conf import Blocked
from lazyfs.registry.documents import ACCEPT, receive_document
from lazyfs.registry.place import Place
from lazyfs.registry.push import Pusher
from lazyfs.registry.redirects import discard
from lazyfs.registry.refer import ask_referrers
from lazyfs.registry.retry import ONCE, RetryPolicy
from lazyfs.registry.route import Route, try_places
from lazyfs.registry.source import AccessOptions, Document, EndpointState, SourceStatistics
from lazyfs.registry.stream import BlobStream, Ledger

log = logging.getLogger(__name__)


class RegistryClient:
    """The repository that *reference* names; of the reference itself only that is used.

    *endpoints* are those of the configuration where they are not given.  ``warnings`` are the
    registry's own, for people, each once.
    """

    kind = "registry"

    def __init__(
        self,
        reference: Reference,
        options: AccessOptions,
        *,
        policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - immutable
        endpoints: Sequence[Endpoint] | None = None,
    ) -> None:
        self.repository = reference.name
        self.statistics = SourceStatistics()
        if endpoints is None:
            endpoints = load_endpoints(reference, options)
        self._places = [Place(endpoint, options, self.statistics) for endpoint in endpoints]
        self._policy = policy
        self._ledger = Ledger()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the registry and its mirrors warned of."""
        return tuple(text for place in self._places for text in place.exchanger.warnings)

    def endpoints(self) -> tuple[EndpointState, ...]:
        """Return how the endpoints fare, in the order of preference."""
        return tuple(place.state() for place in self._places)

    def _route(self, capability: str, subject: Digest | None) -> Route:
        places = [place for place in self._places if place.endpoint.can(capability)]
        return Route(places, subject, self._policy, self.statistics)

    def once(self) -> "RegistryClient":
        """Return the same repository, with the same connections, asked once whatever happens."""
        other = copy.copy(self)
        other._policy = ONCE
        return other

    async def reconnect(self) -> None:
        """Let go of all connections: they may be dead, although nobody has said so."""
        await self.aclose()  # each is made again when it is needed

    # Reading.

    async def connect(self, count: int) -> None:
        """Have *count* connections to whom is asked first; never raises.

        Each asks for the API's version: the answer, which may be a refusal, is of no interest.
        """

        async def ask() -> None:
            try:
                place = self._route(PULL, None).place
                url = f"{place.endpoint.api}/"
                await discard(await place.transport.send("GET", url, dict(place.endpoint.headers)))
            except LazyfsError as exc:
                log.debug("%s", exc.message)  # whoever needs it will be told

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(ask)

    async def fetch_manifest(self, reference: str | Digest) -> Document:
        """Return the manifest or index named by a tag or a digest, its bytes verified.

        Bytes that do not have the digest are asked for once more: something on the way may have
        kept the wrong ones.
        """
        subject = reference if isinstance(reference, Digest) else None
        capability = RESOLVE if subject is None else PULL

        async def attempt(place: Place) -> Document:
            return await self._fetch_manifest(place, reference)

        try:
            return await try_places(attempt, self._route(capability, subject))
        except DigestMismatch:
            return await try_places(attempt, self._route(capability, subject))

    async def _fetch_manifest(self, place: Place, reference: str | Digest) -> Document:
        url = place.endpoint.address(f"manifests/{reference}")
        answer = await place.exchanger.request(
            "GET", url, place.scope, {200}, headers={"accept": ACCEPT}
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
        while True:
            pieces: list[bytes] = []
            async with self.open_range(descriptor, 0, descriptor.size) as body:
                async for data in body:
                    pieces.append(data)
            blob = b"".join(pieces)
            try:
                verify_digest(blob, descriptor.digest, f"blob of {self.repository}")
            except DigestMismatch as error:
                if not self.blame(descriptor, 0, descriptor.size, error.message):
                    raise
            else:
                return blob

    def open_range(self, descriptor: Descriptor, start: int, end: int) -> BlobStream:
        """Open bytes *start* to *end* (exclusive) of a blob as a stream of pieces."""
        if not 0 <= start <= end <= descriptor.size:
            raise ValueError(f"range {start}-{end} of a blob of {descriptor.size} bytes")
        route = self._route(PULL, descriptor.digest)
        return BlobStream(route, self._ledger, descriptor, start, end)

    def blame(self, descriptor: Descriptor, start: int, end: int, reason: str) -> bool:
        """Learn that bytes of a blob, handed out before, are wrong; say if others may have them."""
        digest = descriptor.digest
        blamed = self._ledger.places(digest, start, end)
        for place in blamed:
            place.blame(digest, f"{place.endpoint.address(f'blobs/{digest}')}: {reason}")
        return bool(blamed) and any(
            place.endpoint.can(PULL) and not place.is_blamed(digest) for place in self._places
        )

    async def fetch_referrers(self, subject: Digest, artifact_type: str | None = None) -> Referrers:
        """Return the manifests that refer to *subject*, of one type or of all.

        An endpoint without the API and the tag is no answer while another one has them.  Raises
        what kept it from knowing: silence never looks like an empty list.
        """
        nothing = Referrers((), Support.NONE)
        failure: LazyfsError | None = None
        for place in self._places:
            if not place.endpoint.can(REFERRERS):
                continue

            async def attempt(place: Place) -> Referrers:
                return await ask_referrers(place, subject, artifact_type)

            try:
                found = await try_places(
                    attempt, Route([place], subject, self._policy, self.statistics)
                )
            except UsageError:
                raise
            except LazyfsError as error:
                failure = error
                continue
            if found.support is not Support.NONE:
                return found
        if failure is not None:
            raise failure
        return nothing

    # Writing.

    async def _pusher(self) -> Pusher:
        for place in self._places:
            if place.endpoint.is_origin and place.endpoint.can(PUSH):
                await place.settle()
                return Pusher(place, self._policy, self.statistics)
        raise Blocked(f"{self.repository}: the registry is not configured with the capability push")

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there already."""
        return await (await self._pusher()).has_blob(descriptor)

    async def push_blob(
        self, descriptor: Descriptor, content: bytes | Path, *, mount_from: Sequence[str] = ()
    ) -> None:
        """Store a blob whose size and digest the descriptor states.

        *mount_from* names repositories of the registry that may have it already.
        """
        pusher = await self._pusher()
        await pusher.push_blob(descriptor, content, mount_from=mount_from)

    async def push_manifest(self, data: bytes, media_type: str, tag: str | None) -> Digest:
        """Store a manifest or index, under a tag or by digest only; return its digest.

        One with a subject can be found among the subject's referrers afterwards.
        """
        return await (await self._pusher()).push_manifest(data, media_type, tag)

    async def aclose(self) -> None:
        """Close connections; idempotent."""
        for place in self._places:
            await place.aclose()
