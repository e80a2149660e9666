"""A range of a blob as one continuous stream, however often its transfer breaks.

The pieces add up to exactly what was asked for.  A body that breaks off is continued where it
stopped; if a server ignores ranges and sends the whole blob, what was not asked for is dropped; if
a remembered URL is refused, it is forgotten and the registry is asked once more.  If one endpoint
gives up, the next one continues at the byte where it stopped.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import NamedTuple

from lazyfs.digest import Digest
from lazyfs.errors import LazyfsError
from lazyfs.oci.descriptor import Descriptor
from lazyfs.registry.answers.ranges import Extent, build_range, check_answer
from lazyfs.registry.config.errors import (
    TEMPORARY,
    BadAnswer,
    ConnectionTrouble,
    Denied,
    Missing,
    Refused,
    SizeMismatch,
)
from lazyfs.registry.place import Place
from lazyfs.registry.route import Route
from lazyfs.registry.transport import Answer

PROGRESS_SIZE = 64 << 10
"""So many bytes make up for the failures before them.  Below, a server that breaks off after each
byte would be asked once for every byte."""

EXPIRED = (Denied, Missing, Refused)
"""What a URL that was signed for some minutes becomes: 400, 401, 403, 404 or 410."""

EXPECTED = frozenset({200, 206, 416})


class Served(NamedTuple):
    """Bytes *start* to *end* of a blob that came from one place."""

    digest: Digest
    start: int
    end: int
    place: Place


class Ledger:
    """Who served what lately, so that the right one is blamed for wrong bytes; bounded."""

    def __init__(self, limit: int = 1024) -> None:
        self._served: deque[Served] = deque(maxlen=limit)

    def add(self, served: Served) -> None:
        """Keep who served a range."""
        self._served.append(served)

    def places(self, digest: Digest, start: int, end: int) -> set[Place]:
        """Return who served the first and the last byte of a range, the last time."""
        found = set()
        for byte in (start, end - 1):
            for served in reversed(self._served):
                if served.digest == digest and served.start <= byte < served.end:
                    found.add(served.place)
                    break
        return found


class BlobStream(AbstractAsyncContextManager["BlobStream"], AsyncIterator[bytes]):
    """Bytes *start* to *end* of a blob; the request is made on entering."""

    def __init__(
        self, route: Route, ledger: Ledger, descriptor: Descriptor, start: int, end: int
    ) -> None:
        self._route = route
        self._ledger = ledger
        self._digest = descriptor.digest
        self._blob_size = descriptor.size
        self._position = start
        self._end = end
        self._answer: Answer | None = None
        self._answer_start = start
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
                raise BadAnswer(
                    f"{answer}: the body is longer than the {self._extent.size} bytes asked for"
                )
        if self._position + self._left == self._end:
            await self._close(self._end)
        return data[: self._left]

    async def _ended(self, answer: Answer) -> None:
        """A body has ended before the range: ask for the rest."""
        if self._left:
            raise ConnectionTrouble(
                f"{answer}: the body ended {self._skip + self._left} bytes short of "
                f"{self._extent.skip + self._extent.size} bytes"
            )
        if self._progress < PROGRESS_SIZE:
            raise BadAnswer(f"{answer}: only {self._extent.size} bytes of the range at a time")
        await self._close()

    async def _break(self, error: LazyfsError) -> None:
        """Prepare to continue where the stream stopped, or raise *error*."""
        await self._close()
        place = self._route.place
        url = self._url(place)
        target = place.locations.get(url)
        if target is not None:
            place.locations.forget(url, target)
        if self._progress >= PROGRESS_SIZE:
            self._route.renew()
            self._progress = 0
        await self._route.bear(error)

    async def _open(self) -> None:
        """Ask for what is still missing until there is an answer to read."""
        while True:
            try:
                self._answer = await self._request(self._route.place)
                self._answer_start = self._position
                return
            except LazyfsError as error:
                await self._route.bear(error)

    def _url(self, place: Place) -> str:
        return place.endpoint.address(f"blobs/{self._digest}")

    async def _request(self, place: Place) -> Answer:
        url = self._url(place)
        target = place.locations.get(url)
        if target is not None:
            try:
                return await self._ask(place, target)
            except EXPIRED:
                place.locations.forget(url, target)
            except LazyfsError:
                place.locations.forget(url, target)
                raise
        return await self._ask(place, url)

    async def _ask(self, place: Place, url: str) -> Answer:
        is_whole = self._position == 0 and self._end == self._blob_size
        headers = {} if is_whole else {"range": build_range(self._position, self._end)}
        answer = await place.exchanger.request("GET", url, place.scope, EXPECTED, headers=headers)
        try:
            if answer.status == 416:
                raise SizeMismatch(
                    f"HTTP status 416 for a range of a blob of {self._blob_size} bytes"
                )
            self._extent = check_answer(
                answer.status, answer.headers, self._position, self._end, self._blob_size
            )
        except (BadAnswer, SizeMismatch) as error:
            await answer.aclose()
            raise type(error)(f"{answer}: {error.message}") from None
        self._skip, self._left, _ = self._extent
        own = self._url(place)
        if answer.url != own:
            place.locations.remember(own, answer.url)
        return answer

    async def _close(self, end: int | None = None) -> None:
        """Give the connection back; *end* is where this answer's bytes end, if not here."""
        if self._answer is None:
            return
        answer, self._answer = self._answer, None
        end = self._position if end is None else end
        if end > self._answer_start:
            place = self._route.place
            place.succeed()
            self._ledger.add(Served(self._digest, self._answer_start, end, place))
        await answer.aclose()
