"""An endpoint in use: its connections, its authorization, and its failures so far."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from lazyfs.digest import Digest
from lazyfs.errors import LazyfsError, NotFound, VerificationFailed
from lazyfs.printable import printable
from lazyfs.registry.answers.tokens import pull_scope
from lazyfs.registry.auth import Authorizer
from lazyfs.registry.config.endpoints import Endpoint
from lazyfs.registry.config.errors import (
    ConnectionTrouble,
    Refused,
    TlsRefused,
    is_meant_for_tls,
    redact_url,
)
from lazyfs.registry.config.hosts import origin_of
from lazyfs.registry.exchange import Exchanger
from lazyfs.registry.redirects import discard
from lazyfs.registry.source import AccessOptions, EndpointState, SourceStatistics
from lazyfs.registry.transport import Transport

ASIDE_SECONDS = 30.0
"""How long an endpoint that failed is asked after the others; doubled each time it fails again."""

LONGEST_ASIDE_SECONDS = 300.0
WITHOUT_SECONDS = 60.0
"""The same for one blob that it does not have: a cache may be filling itself."""

BLAMED_SECONDS = 300.0
"""The same for one blob of which it served wrong bytes."""

KNOWN_BLOBS = 1024
REASON_LIMIT = 300


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


class Place:
    """One endpoint; ``failures`` counts what went wrong there, ``reason`` is the last of it."""

    def __init__(
        self,
        endpoint: Endpoint,
        options: AccessOptions,
        statistics: SourceStatistics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._statistics = statistics
        self._left: list[Transport] = []  # those of a scheme that was given up
        self._use(endpoint)
        self.locations = Locations()
        self.scope = pull_scope(endpoint.repository)
        self.failures = 0
        self.reason: str | None = None
        self._when = ""
        self._clock = clock
        self._strikes = 0
        self._aside = (0.0, 0.0)  # since, until
        self._blobs: OrderedDict[Digest, tuple[float, float]] = OrderedDict()

    def _use(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.transport = Transport(
            self._options,
            self._statistics,
            tls=endpoint.tls,
            origin=origin_of(endpoint.url),
            connect_seconds=endpoint.connect_seconds,
        )
        authorizer = Authorizer(self.transport, endpoint, self._options)
        self.exchanger = Exchanger(self.transport, endpoint, authorizer)

    def change_scheme(self, error: LazyfsError, asked: str) -> bool:
        """Use the other of http and https if *error*, met at the URL *asked*, may be of this one.

        Only where nobody said which is spoken, and nothing has worked yet.  True if the request is
        worth another try: another request may have changed it meanwhile.
        """
        if asked != self.endpoint.url:
            return True
        other = self.endpoint.other_url
        if other is None or not isinstance(error, ConnectionTrouble | TlsRefused | Refused):
            return False
        if not error.is_garbled:
            return False
        back = None if self._left else self.endpoint.url
        self._left.append(self.transport)
        self._use(replace(self.endpoint, url=other, other_url=back))
        return True

    async def settle(self) -> None:
        """Find out which of http and https is spoken, before anything is written."""
        while self.endpoint.other_url is not None:
            asked = self.endpoint.url
            try:
                answer = await self.transport.send("GET", f"{self.endpoint.api}/", {})
                body = await discard(answer)
            except (ConnectionTrouble, TlsRefused) as error:
                if not self.change_scheme(error, asked):
                    return  # whoever needs it will be told
                continue
            refused = Refused("", is_garbled=is_meant_for_tls(answer.status, body))
            if not self.change_scheme(refused, asked):
                self.succeed()

    async def aclose(self) -> None:
        """Close all connections; idempotent."""
        for transport in (self.transport, *self._left):
            await transport.aclose()

    def rank(self, subject: Digest | None) -> tuple[int, float]:
        """Return what places are sorted by: the unblamed in their order, then who failed first."""
        now = self._clock()
        marks = [self._aside]
        if subject is not None and subject in self._blobs:
            marks.append(self._blobs[subject])
        since = [mark[0] for mark in marks if now < mark[1]]
        return (1, max(since)) if since else (0, 0.0)

    def is_blamed(self, subject: Digest) -> bool:
        """Say whether the blob is better had from elsewhere, or not at all from here."""
        return subject in self._blobs and self._clock() < self._blobs[subject][1]

    def fail(self, error: LazyfsError, subject: Digest | None) -> None:
        """Note that it could not serve *subject*, or nothing at all."""
        self._note(error.message)
        if not isinstance(error, NotFound | VerificationFailed):
            self._strikes += 1
            doubled = ASIDE_SECONDS * 2.0 ** min(
                self._strikes - 1, 10
            )  # thousands in a long outage
            seconds = min(doubled, LONGEST_ASIDE_SECONDS)
            now = self._clock()
            self._aside = (now, now + seconds)
        elif subject is not None:
            self._without(subject, WITHOUT_SECONDS)

    def blame(self, subject: Digest, reason: str) -> None:
        """Note that what it served of *subject* was wrong."""
        self._note(reason)
        self._without(subject, BLAMED_SECONDS)

    def succeed(self) -> None:
        """Note that it works."""
        self._strikes = 0
        self._aside = (0.0, 0.0)
        if self.endpoint.other_url is not None:
            self.endpoint = replace(self.endpoint, other_url=None)

    def _note(self, reason: str) -> None:
        self.failures += 1
        self.reason = printable(reason, REASON_LIMIT)
        self._when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _without(self, subject: Digest, seconds: float) -> None:
        now = self._clock()
        self._blobs[subject] = (now, now + seconds)
        self._blobs.move_to_end(subject)
        if len(self._blobs) > KNOWN_BLOBS:
            self._blobs.popitem(last=False)

    def state(self) -> EndpointState:
        """Return how it fares."""
        return EndpointState(
            url=redact_url(self.endpoint.url),
            is_origin=self.endpoint.is_origin,
            requests=self.exchanger.requests,
            received_size=self.transport.received_size,
            failures=self.failures,
            reason=self.reason,
            when=self._when or None,
            is_avoided=self._clock() < self._aside[1],
        )
