"""One logical request to a repository's endpoint: authorised, redirects followed, errors named.

The only reason to repeat a request here is that its credentials were refused; see ``retry.py``.
"""

import logging
import re
from collections.abc import Collection, Mapping

from lazyfs.printable import printable
from lazyfs.registry.auth import Authorizer
from lazyfs.registry.config.endpoints import Endpoint
from lazyfs.registry.config.errors import error_for
from lazyfs.registry.config.hosts import Origin, origin_of
from lazyfs.registry.redirects import discard, follow
from lazyfs.registry.transport import Answer, Body, Transport

log = logging.getLogger(__name__)

RENEWALS = 2
"""How often one request is authorised anew: a token expired, then the credentials changed."""

OTHERS = 8
"""Places that redirects lead to and that have tokens of their own."""

WARNINGS = 100
WARNING_RE = re.compile(r'\b299[ \t]+[^ \t"]+[ \t]+"((?:[^"\\]|\\.)*)"')


class Exchanger:
    """Sends requests to one endpoint, with the headers that are configured for it.

    ``requests`` counts them.  ``warnings`` holds what the endpoint warned of, each text once; it
    is logged once too.
    """

    def __init__(self, transport: Transport, endpoint: Endpoint, authorizer: Authorizer) -> None:
        self.endpoint = endpoint
        self.warnings: list[str] = []
        self.requests = 0
        self._transport = transport
        self._authorizer = authorizer
        self._origin = origin_of(endpoint.url)
        self._others: dict[Origin, Authorizer] = {}

    async def request(
        self,
        method: str,
        url: str,
        scope: str,
        expected: Collection[int],
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Body | None = None,
    ) -> Answer:
        """Return the answer, whose status is one of *expected*; the caller closes it.

        ``Answer.url`` is where redirects ended.  Any other status becomes the error it stands for.
        """
        self.requests += 1
        authorization = await self._authorizer.authorization(scope)
        others = {
            origin: given
            for origin, authorizer in self._others.items()
            if (given := await authorizer.authorization("")) is not None
        }
        for renewals in range(RENEWALS + 1):
            answer = await follow(
                self._transport,
                method,
                url,
                headers or {},
                content,
                authorization=authorization,
                origin=self._origin,
                own=self.endpoint.headers,
                others=others,
                notice=self._notice,
            )
            if answer.status in expected:
                return answer
            body = await discard(answer)
            if answer.status not in (401, 403) or renewals == RENEWALS:
                break
            origin = origin_of(answer.url)
            if origin != self._origin:
                if not await self._authorize_at(origin, answer, others):
                    break
                continue
            renewed = await self._authorizer.renewed(scope, answer, authorization)
            if renewed is None:
                break
            authorization = renewed
        raise error_for(
            answer.method,
            answer.url,
            answer.status,
            answer.headers,
            body,
            registry=self.endpoint.registry,
        )

    async def _authorize_at(
        self, origin: Origin, answer: Answer, others: dict[Origin, str]
    ) -> bool:
        """Put what a place that a redirect led to may be sent into *others*, if it is to be had.

        It is a registry of its own, which asks with 401: for a token that anybody gets, or by
        credentials that the user has for it.  Nothing of this endpoint's is ever sent there.
        """
        if answer.status != 401 or answer.method not in ("GET", "HEAD"):
            return False
        authorizer = self._others.get(origin)
        if authorizer is None:
            if len(self._others) >= OTHERS:
                return False
            authorizer = self._others[origin] = self._authorizer.at(origin)
        renewed = await authorizer.renewed("", answer, others.get(origin))
        if renewed is None:
            return False
        others[origin] = renewed
        return True

    def _notice(self, answer: Answer) -> None:
        """Keep what Warning headers say.  Spec: distribution-spec, "Warnings"; only 299 counts."""
        header = answer.headers.get("warning")
        if header is None:
            return
        for match in WARNING_RE.finditer(header[:10_000]):
            text = printable(re.sub(r"\\(.)", r"\1", match[1]).strip(), 300)
            if text and text not in self.warnings and len(self.warnings) < WARNINGS:
                self.warnings.append(text)
                log.warning("%s warns: %s", self.endpoint.registry, text, extra={"once": True})
