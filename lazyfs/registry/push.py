"""Writing to a repository: blobs in one piece, manifests, and asking what is there.

Spec: OCI distribution-spec, "Pushing blobs" (POST then PUT) and "Pushing manifests".  Everything
is addressed by digest, so a push that failed half-way is simply done again.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import trio

from lazyfs.digest import Digest, digest_of, verify_digest
from lazyfs.errors import StoreError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.errors import Denied, Missing, Refused, SizeMismatch
from lazyfs.registry.exchange import Exchanger
from lazyfs.registry.hosts import next_url
from lazyfs.registry.redirects import discard
from lazyfs.registry.retry import RetryPolicy, persist
from lazyfs.registry.source import SourceStatistics
from lazyfs.registry.tokens import push_scope

PIECE_SIZE = 1 << 20


class BlobUnreadable(StoreError):
    """A file that was to be pushed cannot be read."""


@dataclass(frozen=True, slots=True)
class FileBody:
    """A file as a request's body, read anew each time it is sent."""

    path: Path
    size: int

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self.size
        async with await trio.open_file(self.path, "rb") as stream:
            while left:
                data = await stream.read(min(PIECE_SIZE, left))
                if not data:
                    raise BlobUnreadable(
                        f"{self.path}: got a file that has shrunk, expected {self.size} bytes"
                    )
                left -= len(data)
                yield data


class Pusher:
    """Writes to the repository whose API is at *base* (``…/v2/NAME``)."""

    def __init__(
        self,
        exchanger: Exchanger,
        base: str,
        repository: str,
        policy: RetryPolicy,
        statistics: SourceStatistics,
    ) -> None:
        self._exchanger = exchanger
        self._base = base
        self._scope = push_scope(repository)
        self._policy = policy
        self._statistics = statistics

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there; where HEAD is refused, by asking for its first byte."""
        url = f"{self._base}/blobs/{descriptor.digest}"

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
                except Missing:
                    return False
            await answer.aclose()
            return True

        return await persist(ask, self._policy, self._statistics)

    async def push_blob(self, descriptor: Descriptor, content: bytes | Path) -> None:
        """Store a blob."""
        body: bytes | FileBody
        if isinstance(content, bytes):
            body, size = content, len(content)
            verify_digest(content, descriptor.digest, "blob")
        else:
            size = await _size_of(content)
            body = FileBody(content, size)
        if size != descriptor.size:
            raise SizeMismatch(
                f"blob {descriptor.digest}: got {size} bytes, expected {descriptor.size}"
            )

        async def push() -> None:
            start = f"{self._base}/blobs/uploads/"
            answer = await self._exchanger.request("POST", start, self._scope, {202}, content=b"")
            await discard(answer)
            location = next_url(answer.url, answer.headers.get("location"))
            answer = await self._exchanger.request(
                "PUT",
                with_digest(location, descriptor.digest),
                self._scope,
                {201},
                headers={"content-type": "application/octet-stream"},
                content=body,
            )
            await discard(answer)

        await persist(push, self._policy, self._statistics)

    async def push_manifest(self, data: bytes, media_type: str, tag: str | None) -> Digest:
        """Store a manifest or index, under *tag* or by its digest only; return the digest."""
        digest = digest_of(data)
        url = f"{self._base}/manifests/{tag or digest}"

        async def push() -> None:
            headers = {"content-type": media_type}
            answer = await self._exchanger.request(
                "PUT", url, self._scope, {200, 201}, headers=headers, content=data
            )
            await discard(answer)

        await persist(push, self._policy, self._statistics)
        return digest


def with_digest(location: str, digest: Digest) -> str:
    """Return an upload's URL with the digest that ends it; its own query stays as it is."""
    parts = urlsplit(location)
    query = f"{parts.query}&digest={digest}" if parts.query else f"digest={digest}"
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


async def _size_of(path: Path) -> int:
    try:
        return (await trio.Path(path).stat()).st_size
    except OSError as error:
        raise BlobUnreadable(f"{path}: got {error.strerror}, expected a file to push") from error
