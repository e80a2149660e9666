"""Writing to a repository: blobs whole, in pieces or from elsewhere, and manifests.

Spec: OCI distribution-spec, "Pushing blobs" (POST then PUT, POST PATCH… PUT, mounting) and
"Pushing manifests".  Everything is addressed by digest: what failed half-way is done again.
"""

import logging
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec
import trio

from lazyfs.digest import Digest, digest_of, verify_digest
from lazyfs.errors import LazyfsError, StoreError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.answers.referrers import referrer_of
from lazyfs.registry.answers.tokens import pull_scope, push_scope
from lazyfs.registry.config.errors import (
    TEMPORARY,
    BadAnswer,
    ConnectionTrouble,
    Denied,
    Missing,
    Refused,
    SizeMismatch,
)
from lazyfs.registry.config.hosts import next_url
from lazyfs.registry.place import Place
from lazyfs.registry.redirects import discard
from lazyfs.registry.refer import add_to_tag
from lazyfs.registry.retry import Patience, RetryPolicy, persist
from lazyfs.registry.source import SourceStatistics
from lazyfs.registry.transport import Answer

log = logging.getLogger(__name__)

PIECE_SIZE = 1 << 20
WHOLE_LIMIT = 256 << 20
CHUNK_SIZE = 64 << 20
LEAST_PIECE = 32 << 10
TOO_LARGE = frozenset({413, 416})
"""What a body over a limit is answered: 413, by GHCR 416."""

OTHER_WAY = frozenset({400, 404, 405, 411, 415, 501})
"""What a registry may answer to a blob in one request that it takes in pieces only (Artifactory),
or the reverse (Google's)."""

ARRIVED_RE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


class BlobUnreadable(StoreError):
    """A file that was to be pushed cannot be read."""


class FileBody(msgspec.Struct, frozen=True):
    """A file, or *size* bytes of it from *start*, as a body that is read anew when it is sent."""

    path: Path
    size: int
    start: int = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self.size
        async with await trio.open_file(self.path, "rb") as stream:
            await stream.seek(self.start)
            while left:
                data = await stream.read(min(PIECE_SIZE, left))
                if not data:
                    raise BlobUnreadable(
                        f"{self.path} shrank while it was read; it had {self.size} bytes"
                    )
                left -= len(data)
                yield data


class Pusher:
    """Writes to the repository at *place*.

    A blob goes in one request, unless it has more than *whole_limit* bytes or the registry finds
    it too large: then in pieces of *piece_size* bytes, of which one that failed is sent again, and
    of smaller ones if these are too large as well.  A registry that does not know one of the two
    ways gets the blob in the other.
    """

    def __init__(
        self,
        place: Place,
        policy: RetryPolicy,
        statistics: SourceStatistics,
        *,
        whole_limit: int = WHOLE_LIMIT,
        piece_size: int = CHUNK_SIZE,
    ) -> None:
        self._place = place
        self._endpoint = place.endpoint
        self._exchanger = place.exchanger
        self._scope = push_scope(place.endpoint.repository)
        self._policy = policy
        self._statistics = statistics
        self._whole_limit = whole_limit
        self._piece_size = piece_size

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there; where HEAD is refused, by asking for its first byte."""
        url = self._endpoint.address(f"blobs/{descriptor.digest}")

        async def ask() -> bool:
            try:
                answer = await self._exchanger.request("HEAD", url, self._scope, {200})
            except Missing:
                return False
            except (Refused, Denied):
                headers = {"range": "bytes=0-0"}
                try:
                    answer = await self._exchanger.request(
                        "GET", url, self._scope, {200, 206, 416}, headers=headers
                    )
                except (Missing, Denied):
                    return False  # some refuse what is not there; who may not push is told then
            await answer.aclose()
            return True

        return await persist(ask, self._policy, self._statistics)

    async def push_blob(
        self, descriptor: Descriptor, content: bytes | Path, *, mount_from: Sequence[str] = ()
    ) -> None:
        """Store a blob; *mount_from* are repositories that may have it already."""
        size = len(content) if isinstance(content, bytes) else await _size_of(content)
        if isinstance(content, bytes):
            verify_digest(content, descriptor.digest, "blob")
        if size != descriptor.size:
            raise SizeMismatch(
                f"blob {descriptor.digest}: got {size} bytes, expected {descriptor.size}"
            )
        is_whole = size <= self._whole_limit

        async def push() -> None:
            nonlocal is_whole
            location = await self._begin(descriptor.digest, mount_from)
            if location is None:
                return
            for is_last in (False, True):
                try:
                    await send(location, descriptor.digest)
                    return
                except (Refused, Missing, ConnectionTrouble) as error:
                    if is_last or not self._is_worth_the_other(error, size, is_whole):
                        raise
                    log.debug("%s; trying %s", error.message, "pieces" if is_whole else "the whole")
                    is_whole = not is_whole
                    location = await self._begin(descriptor.digest, ())
                    if location is None:
                        return

        async def send(location: str, digest: Digest) -> None:
            body: bytes | FileBody = b""
            if is_whole:
                body = body_of(content, 0, size)
            else:
                location = await self._push_pieces(location, content, size)
            await self._finish(location, digest, body)

        await persist(push, self._policy, self._statistics)

    def _is_worth_the_other(self, error: LazyfsError, size: int, is_whole: bool) -> bool:
        """Say whether a blob that could not be sent, whole or in pieces, may be in the other way.

        Proxies cap bodies: some say so, some hang up in the middle.
        """
        if isinstance(error, ConnectionTrouble):
            return is_whole and size > self._piece_size
        status = 404 if isinstance(error, Missing) else getattr(error, "status", 0)
        if is_whole and status in TOO_LARGE:
            self._piece_size = max(min(self._piece_size, size // 2), LEAST_PIECE)
            return True
        return status in OTHER_WAY

    async def _begin(self, digest: Digest, mount_from: Sequence[str]) -> str | None:
        """Begin an upload; return where it goes, None if the blob could be mounted instead."""
        start = self._endpoint.address("blobs/uploads/")
        location = None
        for repository in mount_from:
            if repository == self._endpoint.repository:
                continue
            url = with_query(start, mount=str(digest), **{"from": repository})
            scope = f"{self._scope} {pull_scope(repository)}"
            try:
                answer = await self._exchanger.request("POST", url, scope, {201, 202}, content=b"")
            except (Denied, Missing, Refused):
                continue  # nothing is lost but a chance
            await discard(answer)
            if answer.status == 201:
                return None
            location = next_url(answer.url, answer.headers.get("location"))
        if location is not None:
            return location  # not mounted, but begun
        answer = await self._exchanger.request("POST", start, self._scope, {202}, content=b"")
        await discard(answer)
        self._piece_size = max(self._piece_size, _least_piece(answer))
        return next_url(answer.url, answer.headers.get("location"))

    async def _finish(self, location: str, digest: Digest, body: bytes | FileBody) -> None:
        answer = await self._exchanger.request(
            "PUT",
            with_query(location, digest=str(digest)),
            self._scope,
            {201},
            headers={"content-type": "application/octet-stream"},
            content=body,
        )
        await discard(answer)

    async def _push_pieces(self, location: str, content: bytes | Path, size: int) -> str:
        """Send a blob piece by piece; return where the upload is finished."""
        position = 0
        patience = Patience(self._policy, self._statistics)
        while position < size:
            end = min(position + self._piece_size, size)
            try:
                answer = await self._exchanger.request(
                    "PATCH",
                    location,
                    self._scope,
                    {202},
                    headers={
                        "content-type": "application/octet-stream",
                        "content-range": f"{position}-{end - 1}",
                    },
                    content=body_of(content, position, end),
                )
            except (*TEMPORARY, Refused) as error:
                if not isinstance(error, Refused):
                    await patience.bear(error)
                    location, position = await self._where(location, size)
                    continue
                if error.status not in TOO_LARGE:
                    raise
                location, arrived = await self._where(location, size)
                if arrived == position and end - position > LEAST_PIECE:
                    self._piece_size = max((end - position) // 4, LEAST_PIECE)
                    continue  # it has all that we know of: the piece was too large
                if error.status == 413:
                    raise
                await patience.bear(BadAnswer(error.message))
                position = arrived
                continue
            await discard(answer)
            location = next_url(answer.url, answer.headers.get("location"))
            position = end
            patience.renew()
        return location

    async def _where(self, location: str, size: int) -> tuple[str, int]:
        """Return where an upload goes on, and how much of it has arrived."""
        answer = await self._exchanger.request("GET", location, self._scope, {204})
        await discard(answer)
        match = ARRIVED_RE.fullmatch(answer.headers.get("range", "").strip())
        position = 0
        if match is not None and match[1] != "0":  # "0-0" is also how nothing is spelled
            position = int(match[1]) + 1
        if position > size:
            raise BadAnswer(f"{answer}: Range: got {position} bytes, expected at most {size}")
        return next_url(answer.url, answer.headers.get("location") or location), position

    async def push_manifest(self, data: bytes, media_type: str, tag: str | None) -> Digest:
        """Store a manifest or index, under *tag* or by its digest only; return the digest.

        Where the registry does not keep the list of a subject's referrers, it is kept here.
        """
        digest = digest_of(data)
        url = self._endpoint.address(f"manifests/{tag or digest}")
        referrer = referrer_of(data, media_type, digest)

        async def push() -> None:
            headers = {"content-type": media_type}
            answer = await self._exchanger.request(
                "PUT", url, self._scope, {200, 201}, headers=headers, content=data
            )
            await discard(answer)
            if referrer is not None and "oci-subject" not in answer.headers:
                await add_to_tag(self._place, referrer, self._scope)

        await persist(push, self._policy, self._statistics)
        return digest


def body_of(content: bytes | Path, start: int, end: int) -> "bytes | FileBody":
    """Return bytes *start* to *end* of *content* as a request's body."""
    if isinstance(content, bytes):
        return content[start:end]
    return FileBody(content, end - start, start)


def with_query(location: str, **parameters: str) -> str:
    """Return *location* with more parameters; its own query stays as it is."""
    parts = urlsplit(location)
    added = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in parameters.items())
    query = f"{parts.query}&{added}" if parts.query else added
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def _least_piece(answer: Answer) -> int:
    """Return the least size of a piece that the registry wants, 0 if it does not say."""
    text = answer.headers.get("oci-chunk-min-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0


async def _size_of(path: Path) -> int:
    try:
        return (await trio.Path(path).stat()).st_size
    except OSError as error:
        raise BlobUnreadable(f"cannot read {path} to push it: {error.strerror}") from error
