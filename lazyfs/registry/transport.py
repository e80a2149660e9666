"""HTTP: one request, one answer.  The only user of httpx; its exceptions end here.

No client of httpx is used, only its transports: redirects, authorisation and retries are decided
above, so nothing here may follow, authorise or repeat.  HTTP/1.1 with keep-alive, connections
pooled per proxy.  Bodies come as the socket delivers them; nothing is decoded.
"""

import errno
import os
import re
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Protocol

import httpcore  # noqa: F401 - httpx would, in the middle of the first request
import httpx
import trio

from lazyfs import __version__
from lazyfs.errors import UsageError
from lazyfs.printable import printable
from lazyfs.registry.answers.encodings import inflate
from lazyfs.registry.answers.rate import SAMPLE_SIZE, Rate
from lazyfs.registry.config.endpoints import Tls
from lazyfs.registry.config.errors import (
    BadAnswer,
    ConnectionTrouble,
    Refused,
    Silent,
    Slow,
    TlsRefused,
    TooLarge,
    redact_url,
)
from lazyfs.registry.config.files import check_regular
from lazyfs.registry.config.hosts import Origin, origin_of, proxy_for
from lazyfs.registry.source import AccessOptions, SourceStatistics

CONNECTIONS = 32
"""At most, to all hosts together: fetching asks for some 10 ranges at once, prefetch for more."""

KEEPALIVE_SECONDS = 55.0
"""Below the 60 s after which the load balancers of the large registries hang up."""

KNOWN_URLS = 256

NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "record layer failure", "(EOF)")
"""What OpenSSL says of a server that does not speak TLS."""

LASTING = (
    *("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"),
    *("record layer failure", "UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION", "NO_SHARED_CIPHER"),
    *("HANDSHAKE_FAILURE", "INSUFFICIENT_SECURITY", "UNRECOGNIZED_NAME", "ALERT_UNKNOWN_CA"),
    *("ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE", "CERTIFICATE_REQUIRED", "ALERT_ACCESS_DENIED"),
)
"""What OpenSSL says of what stays so until somebody changes a certificate or a configuration.  What
it says of a connection that broke, or of a server in trouble, is not among these."""

REFUSED_BY_PROXY_RE = re.compile(r"4(?!08|29)[0-9]{2}\b")
"""How a proxy's answer to CONNECT begins where it will not: 403, 407, …; not 408 and 429."""

GZIP_MAGIC = b"\x1f\x8b"

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
        "_rate",
        "_received",
        "_response",
        "_waited",
        "_window_size",
        "headers",
        "method",
        "status",
        "url",
    )

    def __init__(
        self,
        method: str,
        url: str,
        response: httpx.Response,
        received: Callable[[int], None],
        rate: Rate,
    ) -> None:
        self.method = method
        self.url = url
        self.status = response.status_code
        self.headers = _headers(response.headers.raw)
        self._response = response
        self._received = received  # told of bytes of the body
        stream = response.stream
        assert isinstance(stream, AsyncIterable)
        self._pieces = aiter(stream)
        self._is_over = False
        self._rate = rate
        self._waited = 0.0
        self._window_size = 0

    async def piece(self) -> bytes | None:
        """Return the next piece of the body as it came, None at the end.

        Raises ConnectionTrouble if the body breaks off, Silent if nothing more comes, or so little
        at a time that it is as good as nothing.
        """
        started = trio.current_time()
        try:
            data = await anext(self._pieces)
        except StopAsyncIteration:
            self._is_over = True
            return None
        except httpx.HTTPError as error:
            self._is_over = True
            raise translated(error, str(self), is_answered=True) from error
        self._received(len(data))
        self._window_size += len(data)
        # Only waiting counts: a reader may take its time.
        self._waited += trio.current_time() - started
        if self._waited >= self._rate.window_seconds:
            least = self._rate.judge(self._window_size, self._waited)
            if least is not None:
                raise Slow(
                    f"{self}: got {self._window_size} bytes in {self._waited:.1f} s, "
                    f"expected at least {least:.0f} bytes a second"
                )
            self._waited, self._window_size = 0.0, 0
        elif self._window_size >= SAMPLE_SIZE:
            self._rate.learn(self._window_size, self._waited)
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

        A body that was compressed unasked is inflated, under the same limit.  Other encodings are
        for whoever parses the body to refuse.
        """
        data = await self.read_some(limit + 1)
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        is_compressed = data.startswith(GZIP_MAGIC)  # some label what they send as it is
        if encoding in ("gzip", "x-gzip") and is_compressed and len(data) <= limit:
            data = inflate(data, limit + 1, str(self))
        if len(data) > limit:
            raise TooLarge(f"{self}: the body is larger than {limit} bytes")
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


class BadCertificate(UsageError):
    """A certificate or key that is configured cannot be used."""

    code = "E_REGISTRY_CONFIG"


class Transport:
    """The connections of one endpoint; *statistics* counts requests and bytes of bodies.

    ``received_size`` is this endpoint's part of these bytes, and of where it redirects to.

    *tls* names authorities that hold for wherever the endpoint redirects to as well.  The
    certificates that it shows go to *origin* only, and only the host of *origin* is believed
    without a certificate where that is wanted.
    """

    def __init__(
        self,
        options: AccessOptions,
        statistics: SourceStatistics,
        *,
        tls: Tls = Tls(),  # noqa: B008 - immutable
        origin: Origin | None = None,
        connect_seconds: float | None = None,
    ) -> None:
        self._environment = options.environment
        self._statistics = statistics
        self.received_size = 0
        self._tls = tls
        self._origin = origin
        self._rate = Rate(options.idle_seconds)
        connect = min(connect_seconds or options.connect_seconds, options.connect_seconds)
        # A head that drips is no answer either; sending a body may take as long as it takes.
        self._head_seconds = connect + options.idle_seconds
        self._timeouts = {
            "connect": connect,
            "read": options.idle_seconds,
            "write": options.idle_seconds,
            "pool": None,
        }
        self._pools: dict[tuple[str, str | None, bool, bool], httpx.AsyncHTTPTransport] = {}
        self._routes: dict[str, tuple[httpx.URL, httpx.AsyncHTTPTransport]] = {}

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | Body | None = None,
    ) -> Answer:
        """Send a request, and return the answer as soon as its head is there.

        The caller closes the answer.  Raises ConnectionTrouble, Silent, TlsRefused, Refused (by a
        proxy), or BadAnswer for a URL that cannot be used.
        """
        parsed, pool = self._route(url)
        fields = {"user-agent": USER_AGENT, "accept-encoding": "identity", **headers}
        if content is not None and not isinstance(content, bytes):
            fields["content-length"] = str(content.size)
        # All types in one line, as containerd sends them, since some registries read no other;
        # then a line for each, as docker sends them, since some do not split one at commas.
        accept = fields.pop("accept", "")
        each_type = accept.split(", ") if ", " in accept else ()
        accepted = [("accept", each) for each in (accept, *each_type) if each]
        lines = [*fields.items(), *accepted]
        request = httpx.Request(
            method, parsed, headers=lines, content=content, extensions={"timeout": self._timeouts}
        )
        self._statistics.requests += 1
        what = f"{method} {redact_url(url)}"
        limit = self._head_seconds if content is None or isinstance(content, bytes) else inf
        with translating(what):
            try:
                with trio.fail_after(limit):
                    response = await pool.handle_async_request(request)
            except trio.TooSlowError:
                raise Silent(f"{what}: no complete response head within {limit:g} s") from None
        return Answer(method, url, response, self._received, self._rate)

    def _received(self, size: int) -> None:
        self.received_size += size
        self._statistics.received_size += size

    def _route(self, url: str) -> tuple[httpx.URL, httpx.AsyncHTTPTransport]:
        """Return *url* parsed and the pool that serves it; both cost more than a lookup."""
        route = self._routes.get(url)
        if route is None:
            origin = origin_of(url)
            proxy = proxy_for(origin, self._environment)
            try:
                parsed = httpx.URL(url)
            except httpx.InvalidURL as error:
                raise BadAnswer(f"{redact_url(url)!r} is not a valid URL") from error
            if len(self._routes) >= KNOWN_URLS:
                self._routes.clear()
            route = self._routes[url] = (parsed, self._pool(origin, proxy))
        return route

    def _pool(self, origin: Origin, proxy: str | None) -> httpx.AsyncHTTPTransport:
        is_known = origin == self._origin and bool(self._tls.clients)
        is_checked = self._tls.is_verified or self._origin is None or origin[1] != self._origin[1]
        key = (origin[0], proxy, is_known, is_checked)
        pool = self._pools.get(key)
        if pool is None:
            is_secure = origin[0] == "https" or (proxy or "").startswith("https:")
            pool = self._pools[key] = httpx.AsyncHTTPTransport(
                # Reading the machine's certificates takes 20 ms: not for plain http.
                verify=self._context(is_known, is_checked) if is_secure else _no_trust(),
                proxy=proxy,
                limits=httpx.Limits(
                    max_connections=CONNECTIONS,
                    max_keepalive_connections=CONNECTIONS,
                    keepalive_expiry=KEEPALIVE_SECONDS,
                ),
            )
        return pool

    def _context(self, shows_certificates: bool, is_checked: bool) -> ssl.SSLContext:
        context = _trust(self._environment)
        for path in self._tls.authorities:
            with _naming(path):
                check_regular(path)
                context.load_verify_locations(cafile=path)
        for path, key in self._tls.clients if shows_certificates else ():
            with _naming(path):
                check_regular(path)
                check_regular(key or path)
                # An empty password: a key with one must fail, not ask on the terminal.
                context.load_cert_chain(path, key, password="")
        if not is_checked:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def aclose(self) -> None:
        """Close all connections; idempotent."""
        pools = list(self._pools.values())
        self._pools.clear()
        self._routes.clear()
        for pool in pools:
            await pool.aclose()


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Say which configured file of certificates cannot be used."""
    try:
        yield
    except OSError as error:  # of ssl too
        said = printable(error.strerror or str(error), 120)
        raise BadCertificate(f"{path} is not a usable certificate or key in PEM: {said}") from error


@contextmanager
def translating(what: str) -> Iterator[None]:
    """Turn exceptions of httpx into ours; *what* is the request, redacted."""
    try:
        yield
    except httpx.HTTPError as error:
        raise translated(error, what) from error


def translated(
    error: httpx.HTTPError, what: str, *, is_answered: bool = False
) -> ConnectionTrouble | Silent | TlsRefused | Refused | BadAnswer:
    """Return our error for one of httpx; *is_answered*: it was met in the body of an answer."""
    said = printable(_reason(error), 200) or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        return Silent(f"{what}: no connection within the time limit")
    if isinstance(error, httpx.TimeoutException):
        return Silent(f"{what}: no data within the idle limit")
    message = f"cannot reach {_host(what)}: {said[:1].lower()}{said[1:]} ({what})"
    is_garbled = any(text in said for text in NO_TLS)
    hint = None
    if is_garbled:
        hint = "if the registry speaks plain HTTP, use --plain-http"
    elif "CERTIFICATE_VERIFY_FAILED" in said:
        hint = (
            "put the certificate of the registry's authority into "
            "~/.config/containers/certs.d/HOST/ca.crt, or name it in SSL_CERT_FILE"
        )
    if "[SSL" in said and any(text in said for text in LASTING):
        return TlsRefused(message, hint=hint, is_garbled=is_garbled)
    if isinstance(error, httpx.ProxyError) and REFUSED_BY_PROXY_RE.match(said):
        return Refused(message, hint="the proxy refuses; it is in HTTP_PROXY or HTTPS_PROXY")
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        return ConnectionTrouble(message, hint=hint, is_garbled=is_garbled)
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        is_stale = "without sending a response" in said or isinstance(error, httpx.ReadError)
        return ConnectionTrouble(
            f"{what}: the connection broke: {said}",
            is_stale=is_stale,
            is_garbled=not is_answered,
        )
    return BadAnswer(f"{what}: not a valid HTTP answer: {said} ({type(error).__name__})")


def _host(what: str) -> str:
    """Return the host and port in *what*, a method and a URL, redacted."""
    return what.partition("://")[2].partition("/")[0].partition("?")[0]


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
            said = _plain(error) or said
    return said


def _plain(error: OSError) -> str | None:
    """Return what the system calls an error; trio puts addresses before that."""
    # Errors of names that do not resolve have numbers of their own.
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers


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
