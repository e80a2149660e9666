"""Asking certificate authorities whether a certificate was revoked: CRLs and OCSP, by plain http.

These are not registries: nothing of a registry's configuration, and no credential, goes there, and
no redirect is followed.  Both kinds of answers are signed by the authority, so http is enough, and
nothing else is spoken.

Spec: RFC 5280, section 4.2.1.13; RFC 6960, appendix A.
"""

import hashlib
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from lazyfs.errors import LazyfsError, StoreError
from lazyfs.registry.redirects import discard
from lazyfs.registry.source import AccessOptions, SourceStatistics
from lazyfs.registry.transport import Transport
from lazyfs.store.content.regular import open_regular
from lazyfs.store.paths import Store
from lazyfs.trust.errors import BadSignature, CannotTell, Malformed
from lazyfs.trust.questions import LIMITS, refused_url

if TYPE_CHECKING:
    from lazyfs.trust.certificates import Certificate

log = logging.getLogger(__name__)

SECONDS = 10.0
"""For one answer, all of it."""


class Authorities:
    """Whom certificates name, asked over the network; CRLs are kept until they expire."""

    def __init__(
        self,
        store: Store | None,
        environment: Mapping[str, str],
        now: datetime,
        *,
        is_offline: bool = False,
    ) -> None:
        options = AccessOptions(environment=environment, connect_seconds=5.0, idle_seconds=5.0)
        self._transport = Transport(options, SourceStatistics())
        self._store = store
        self._now = now
        self._is_offline = is_offline

    async def crl(self, url: str, issuer: "Certificate") -> bytes:
        """Return the CRL at *url*, DER as received; raises CannotTell.

        Only one that *issuer* has signed, and that holds now, is kept and taken from what was
        kept: whoever answers once in its place would otherwise decide for as long as they like.
        """
        path = self._path(url)
        kept = None if path is None else await trio.to_thread.run_sync(_load, path)
        if kept is not None and await self._is_current(kept, issuer):
            return kept
        data = await self._ask("GET", url, b"", LIMITS["crl"], {})
        if path is not None and await self._is_current(data, issuer):
            await trio.to_thread.run_sync(self._keep, path, data)
        return data

    async def ocsp(self, url: str, request: bytes) -> bytes:
        """Return the answer of the responder at *url* to *request*, DER as received.

        Raises CannotTell.
        """
        headers = {
            "content-type": "application/ocsp-request",
            "accept": "application/ocsp-response",
        }
        return await self._ask("POST", url, request, LIMITS["ocsp"], headers)

    async def _ask(
        self, method: str, url: str, content: bytes, limit: int, headers: Mapping[str, str]
    ) -> bytes:
        if self._is_offline:
            raise CannotTell("--offline asks nobody")
        refused = refused_url(url)
        if refused is not None:
            raise CannotTell(refused)
        try:
            with trio.fail_after(SECONDS):
                answer = await self._transport.send(method, url, headers, content or None)
                try:
                    if answer.status != 200:
                        raise CannotTell(f"{answer}: HTTP status {answer.status}")
                    return await answer.read(limit)
                finally:
                    await discard(answer)
        except trio.TooSlowError:
            raise CannotTell(f"{method} {url[:200]}: no answer within {SECONDS:g} s") from None
        except CannotTell:
            raise
        except LazyfsError as error:
            raise CannotTell(error.message) from error

    def _path(self, url: str) -> Path | None:
        name = hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()
        return None if self._store is None else self._store.revocation / name

    def _keep(self, path: Path, data: bytes) -> None:
        assert self._store is not None
        try:
            self._store.make_folder(path.parent)
            self._store.write_file(path, data)
        except StoreError as error:
            log.debug("%s", error.message)

    async def _is_current(self, data: bytes, issuer: "Certificate") -> bool:
        return await trio.to_thread.run_sync(_is_current, data, issuer, self._now)

    async def aclose(self) -> None:
        """Close connections; idempotent."""
        await self._transport.aclose()


def _load(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            return file.read(LIMITS["crl"] + 1)
    except OSError:
        return None


def _is_current(data: bytes, issuer: "Certificate", now: datetime) -> bool:
    """Say whether a CRL need not be asked for again; what it says is judged anew."""
    from lazyfs.trust.crl import parse_current  # noqa: PLC0415 - cryptography, for a policy only

    try:
        parse_current(data, issuer, now)
    except (BadSignature, Malformed):
        return False
    return True
