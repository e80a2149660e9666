"""A range of a blob as one continuous stream, however often its transfer breaks.

The pieces add up to exactly what was asked for.  A body that breaks off is continued where it
stopped; a server that ignores ranges sends the whole blob, of which the rest is skipped and cut
off; a remembered URL that is refused is forgotten, and the registry asked once more.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from lazyfs.errors import LazyfsError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.errors import (
    TEMPORARY,
    BadAnswer,
    ConnectionTrouble,
    Denied,
    Missing,
    Refused,
    SizeMismatch,
)
from lazyfs.registry.exchange import Exchanger
from lazyfs.registry.ranges import Extent, build_range, check_answer
from lazyfs.registry.retry import Patience, RetryPolicy
from lazyfs.registry.source import SourceStatistics
from lazyfs.registry.transport import Answer

PROGRESS_SIZE = 64 << 10
"""So many bytes make up for the failures before them.  Below, a server that breaks off after each
byte would be asked once for every byte."""

EXPIRED = (Denied, Missing, Refused)
"""What a URL that was signed for some minutes becomes: 400, 401, 403, 404 or 410."""

EXPECTED = frozenset({200, 206, 416})


class Locations:
    """Where redirects of blobs ended, so that the next range goes there at once; bounded."""

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._urls: OrderedDict[str, str] = OrderedDict()

    def get(self, url: str) -> str | None:
        """Return where *url* led the last time."""
        return self._urls.get(url)

    def remember(self, url: str, target: str) -> None:
        """Keep where *url* led."""
        self._urls[url] = target
        if len(self._urls) > self._limit:
            self._urls.popitem(last=False)

    def forget(self, url: str, target: str) -> None:
        """Forget that *url* led to *target*, unless it was found to lead elsewhere meanwhile."""
        if self._urls.get(url) == target:
            del self._urls[url]


class BlobStream(AbstractAsyncContextManager["BlobStream"], AsyncIterator[bytes]):
    """Bytes *start* to *end* of the blob at *url*; the request is made on entering."""

    def __init__(
        self,
        exchanger: Exchanger,
        locations: Locations,
        url: str,
        scope: str,
        descriptor: Descriptor,
        start: int,
        end: int,
        policy: RetryPolicy,
        statistics: SourceStatistics,
    ) -> None:
        self._exchanger = exchanger
        self._locations = locations
        self._url = url
        self._scope = scope
        self._blob_size = descriptor.size
        self._position = start
        self._end = end
        self._policy = policy
        self._statistics = statistics
        self._patience = Patience(policy, statistics)
        self._answer: Answer | None = None
        self._extent = Extent(0, 0, True)
        self._skip = 0
        self._left = 0
        self._progress = 0

    async def __aenter__(self) -> "BlobStream":
        if self._position < self._end:
            await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def __anext__(self) -> bytes:
        while self._position < self._end:
            answer = self._answer
            if answer is None:
                await self._open()
                continue
            try:
                data = await answer.piece()
                if data is None:
                    await self._ended(answer)
                    continue
                if self._skip or len(data) >= self._left:
                    data = await self._cut(answer, data)
            except TEMPORARY as error:
                await self._break(error)
                continue
            size = len(data)
            if size:
                self._left -= size
                self._position += size
                self._progress += size
                return data
        raise StopAsyncIteration

    async def _cut(self, answer: Answer, data: bytes) -> bytes:
        """Return what of a piece was asked for.

        With the last of it the body must end, unless it is of the whole blob: that is looked at
        before the piece is handed out, and the connection is given back before it is used.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        excess = len(data) - self._left
        if excess < 0:
            return data
        if self._extent.is_exact:
            if excess == 0:
                try:
                    excess = len(await answer.piece() or b"")
                except TEMPORARY:
                    pass  # all is here; only the body's end got lost
            if excess:
                raise BadAnswer(f"{answer}: got a longer body, expected {self._extent.size} bytes")
        if self._position + self._left == self._end:
            await self._close()
        return data[: self._left]

    async def _ended(self, answer: Answer) -> None:
        """A body has ended before the range has: go on behind it."""
        if self._left:
            raise ConnectionTrouble(
                f"{answer}: got a body {self._skip + self._left} bytes too short, "
                f"expected {self._extent.skip + self._extent.size} bytes"
            )
        if self._progress < PROGRESS_SIZE:
            raise BadAnswer(f"{answer}: got {self._extent.size} bytes, expected the whole range")
        await self._close()

    async def _break(self, error: LazyfsError) -> None:
        """Wait for another try where the stream stopped, or raise *error*."""
        await self._close()
        target = self._locations.get(self._url)
        if target is not None:
            self._locations.forget(self._url, target)
        if self._progress >= PROGRESS_SIZE:
            self._patience.renew()
            self._progress = 0
        await self._patience.bear(error)

    async def _open(self) -> None:
        """Ask for what is still missing until there is an answer to read."""
        while True:
            try:
                self._answer = await self._request()
                return
            except LazyfsError as error:
                await self._patience.bear(error)

    async def _request(self) -> Answer:
        target = self._locations.get(self._url)
        if target is not None:
            try:
                return await self._ask(target)
            except EXPIRED:
                self._locations.forget(self._url, target)
            except LazyfsError:
                self._locations.forget(self._url, target)
                raise
        return await self._ask(self._url)

    async def _ask(self, url: str) -> Answer:
        is_whole = self._position == 0 and self._end == self._blob_size
        headers = {} if is_whole else {"range": build_range(self._position, self._end)}
        answer = await self._exchanger.request("GET", url, self._scope, EXPECTED, headers=headers)
        try:
            if answer.status == 416:
                raise SizeMismatch(f"got 416, expected a blob of {self._blob_size} bytes")
            self._extent = check_answer(
                answer.status, answer.headers, self._position, self._end, self._blob_size
            )
        except (BadAnswer, SizeMismatch) as error:
            await answer.aclose()
            raise type(error)(f"{answer}: {error.message}") from None
        self._skip, self._left, _ = self._extent
        if answer.url != self._url:
            self._locations.remember(self._url, answer.url)
        return answer

    async def _close(self) -> None:
        if self._answer is not None:
            answer, self._answer = self._answer, None
            await answer.aclose()
