"""HTTP: one request, one answer.  The only user of httpx; its exceptions end here.

No client of httpx is used, only its transports: redirects, authorisation and retries are decided
above, so nothing here may follow, authorise or repeat.  HTTP/1.1 with keep-alive, connections
pooled per proxy.  Bodies come as the socket delivers them; nothing is decoded.
"""

import os
import ssl
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import httpx
import trio

from lazyfs import __version__
from lazyfs.registry.errors import (
    BadAnswer,
    ConnectionTrouble,
    Silent,
    TooLarge,
    printable,
    redact_url,
)
from lazyfs.registry.hosts import origin_of, proxy_for
from lazyfs.registry.source import AccessOptions, SourceStatistics

CONNECTIONS = 32
"""At most, to all hosts together: fetching asks for some 10 ranges at once, prefetch for more."""

KEEPALIVE_SECONDS = 55.0
"""Below the 60 s after which the load balancers of the large registries hang up."""

KNOWN_URLS = 256

NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "record layer failure", "(EOF)")
"""What OpenSSL says of a server that does not speak TLS."""

USER_AGENT = f"lazyfs/{__version__}"


class Body(Protocol):
    """A request's body of a known size, which can be sent more than once."""

    @property
    def size(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Answer:
    """Status, headers (names in lower case, repeated ones joined by commas), and a body to read.

    It holds a connection until the body has been read to its end or ``aclose`` is called.
    """

    __slots__ = (
        "_is_over",
        "_pieces",
        "_response",
        "_statistics",
        "headers",
        "method",
        "status",
        "url",
    )

    def __init__(
        self, method: str, url: str, response: httpx.Response, statistics: SourceStatistics
    ) -> None:
        self.method = method
        self.url = url
        self.status = response.status_code
        self.headers = _headers(response.headers.raw)
        self._response = response
        self._statistics = statistics
        stream = response.stream
        assert isinstance(stream, AsyncIterable)
        self._pieces = aiter(stream)
        self._is_over = False

    async def piece(self) -> bytes | None:
        """Return the next piece of the body as it came, None at the end.

        Raises ConnectionTrouble if the body breaks off, Silent if nothing more comes.
        """
        try:
            data = await anext(self._pieces)
        except StopAsyncIteration:
            self._is_over = True
            return None
        except httpx.HTTPError as error:
            self._is_over = True
            raise translated(error, f"{self.method} {redact_url(self.url)}") from error
        self._statistics.received_size += len(data)
        return data

    async def read_some(self, limit: int) -> bytes:
        """Return the body up to about *limit* bytes; the rest stays where it is."""
        pieces: list[bytes] = []
        size = 0
        while size < limit and (data := await self.piece()) is not None:
            pieces.append(data)
            size += len(data)
        return b"".join(pieces)

    async def read(self, limit: int) -> bytes:
        """Return the whole body, which may have *limit* bytes at most.

        A body that was compressed unasked is inflated, under the same limit.
        """
        data = await self.read_some(limit + 1)
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("gzip", "x-gzip") and len(data) <= limit:
            data = _inflate(data, limit + 1, self)
        elif encoding not in ("identity", ""):
            raise BadAnswer(
                f"{self}: Content-Encoding: got {printable(encoding, 40)!r}, expected none"
            )
        if len(data) > limit:
            raise TooLarge(f"{self}: got more than {limit} bytes, expected at most {limit}")
        return data

    async def aclose(self) -> None:
        """Give the connection back; it is closed unless the body was read to its end."""
        with trio.CancelScope(shield=True):
            await self._response.aclose()
            # Inside are generators in generators, which trio wants ended and not dropped.  Reading
            # on ends them, at the latest where the closed connection is noticed.
            while not self._is_over:
                try:
                    await anext(self._pieces)
                except (StopAsyncIteration, httpx.HTTPError):
                    self._is_over = True

    def __str__(self) -> str:
        return f"{self.method} {redact_url(self.url)}"


class Transport:
    """The connections of one source; *statistics* counts requests and bytes of bodies."""

    def __init__(self, options: AccessOptions, statistics: SourceStatistics) -> None:
        self._environment = options.environment
        self._statistics = statistics
        self._timeouts = {
            "connect": options.connect_seconds,
            "read": options.idle_seconds,
            "write": options.idle_seconds,
            "pool": None,
        }
        self._pools: dict[tuple[str, str | None], httpx.AsyncHTTPTransport] = {}
        self._routes: dict[str, tuple[httpx.URL, httpx.AsyncHTTPTransport]] = {}

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | Body | None = None,
    ) -> Answer:
        """Send a request, and return the answer as soon as its head is there.

        The caller closes the answer.  Raises ConnectionTrouble, Silent, or BadAnswer for a URL
        that cannot be used.
        """
        parsed, pool = self._route(url)
        fields = {"user-agent": USER_AGENT, "accept-encoding": "identity", **headers}
        if content is not None and not isinstance(content, bytes):
            fields["content-length"] = str(content.size)
        request = httpx.Request(
            method, parsed, headers=fields, content=content, extensions={"timeout": self._timeouts}
        )
        self._statistics.requests += 1
        with translating(f"{method} {redact_url(url)}"):
            response = await pool.handle_async_request(request)
        return Answer(method, url, response, self._statistics)

    def _route(self, url: str) -> tuple[httpx.URL, httpx.AsyncHTTPTransport]:
        """Return *url* parsed and the pool that serves it; both cost more than a lookup."""
        route = self._routes.get(url)
        if route is None:
            origin = origin_of(url)
            proxy = proxy_for(origin, self._environment)
            try:
                parsed = httpx.URL(url)
            except httpx.InvalidURL as error:
                raise BadAnswer(f"URL: got {redact_url(url)!r}, expected a valid one") from error
            if len(self._routes) >= KNOWN_URLS:
                self._routes.clear()
            route = self._routes[url] = (parsed, self._pool(origin[0], proxy))
        return route

    def _pool(self, scheme: str, proxy: str | None) -> httpx.AsyncHTTPTransport:
        pool = self._pools.get((scheme, proxy))
        if pool is None:
            is_secure = scheme == "https" or (proxy or "").startswith("https:")
            pool = self._pools[scheme, proxy] = httpx.AsyncHTTPTransport(
                # Reading the machine's certificates takes 20 ms: not for plain http.
                verify=_trust(self._environment) if is_secure else _no_trust(),
                proxy=proxy,
                limits=httpx.Limits(
                    max_connections=CONNECTIONS,
                    max_keepalive_connections=CONNECTIONS,
                    keepalive_expiry=KEEPALIVE_SECONDS,
                ),
            )
        return pool

    async def aclose(self) -> None:
        """Close all connections; idempotent."""
        pools = list(self._pools.values())
        self._pools.clear()
        self._routes.clear()
        for pool in pools:
            await pool.aclose()


@contextmanager
def translating(what: str) -> Iterator[None]:
    """Turn exceptions of httpx into ours; *what* is the request, redacted."""
    try:
        yield
    except httpx.HTTPError as error:
        raise translated(error, what) from error


def translated(error: httpx.HTTPError, what: str) -> ConnectionTrouble | Silent | BadAnswer:
    """Return our error for one of httpx."""
    said = printable(_reason(error), 200) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        return Silent(f"{what}: got no connection within the time limit, expected one")
    if isinstance(error, httpx.TimeoutException):
        return Silent(f"{what}: got nothing within the idle limit, expected an answer")
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        hint = None
        if any(text in said for text in NO_TLS):
            hint = "if the registry speaks plain http, use --plain-http"
        elif "CERTIFICATE_VERIFY_FAILED" in said:
            hint = "name the registry's own authority in SSL_CERT_FILE, or install it"
        return ConnectionTrouble(f"{what}: got no connection ({said}), expected one", hint=hint)
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        is_stale = "without sending a response" in said or isinstance(error, httpx.ReadError)
        return ConnectionTrouble(
            f"{what}: got a broken connection ({said}), expected an answer", is_stale=is_stale
        )
    return BadAnswer(f"{what}: got {type(error).__name__} ({said}), expected an HTTP answer")


def _reason(error: BaseException) -> str:
    """Return what the machine said: the innermost cause, which httpx keeps but does not name."""
    said = str(error)
    for _ in range(10):
        cause = error.__cause__ or error.__context__
        if isinstance(cause, BaseExceptionGroup):  # of several addresses, the first
            cause = cause.exceptions[0]
        if cause is None:
            break
        error = cause
        if isinstance(error, ssl.SSLError):
            said = str(error)
        elif isinstance(error, OSError):
            said = error.strerror or said
    return said


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers


def _inflate(data: bytes, limit: int, what: Answer) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(data, limit)
    except zlib.error as error:
        raise BadAnswer(f"{what}: got a body that is no gzip stream, expected one") from error


def _trust(environment: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that trusts the machine's authorities, or those of SSL_CERT_FILE or _DIR."""
    file, directory = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    if file or directory:
        return ssl.create_default_context(cafile=file, capath=directory)
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and os.listdir(paths.capath)):
        return ssl.create_default_context()
    return httpx.create_ssl_context(trust_env=False)  # a machine without any: certifi's


def _no_trust() -> ssl.SSLContext:
    """Return a context for connections that must not be encrypted; it trusts nobody."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
